"""Text on terminals: wrapped to a width, and readable where the encoding lacks a character."""

import codecs
import re
import textwrap
import unicodedata
from collections.abc import Iterator
from typing import TextIO

_ASCII = {
  "…": "...", "×": "x", "−": "-", "–": "-", "—": "-", "→": "->", "·": "*", "≤": "<=", "≥": ">=", "≈": "~", "±": "+-",
  "“": '"', "”": '"', "‘": "'", "’": "'", "ε": "epsilon", "β": "beta", "Σ": "sum", "√": "sqrt", "✓": "ok", "█": "#",
}  # fmt: skip
_HANDLER = "spatial_vlm.readable"


def _readable(error: UnicodeError) -> tuple[str, int]:
  """Replaces characters that an encoding lacks by ASCII: "…" by "...", "é" by "e", others by "?"."""
  if not isinstance(error, UnicodeEncodeError):
    raise error
  return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
  letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
  return _ASCII.get(character) or letters or "?"


codecs.register_error(_HANDLER, _readable)


def never_fail_to_encode(*streams: TextIO) -> None:
  """Makes streams replace the characters that their encoding lacks, e.g. ASCII under LC_ALL=C, instead of raising."""
  for stream in streams:
    if hasattr(stream, "reconfigure"):  # a notebook's or a test's stream takes all characters
      stream.reconfigure(errors=_HANDLER)  # pyright: ignore[reportAttributeAccessIssue]


def wrap(text: str, width: int, indent: str = "", first: str | None = None) -> list[str]:
  """Returns lines of at most `width` columns, unless a word is longer; words are not broken."""
  return textwrap.wrap(
    text,
    width,
    initial_indent=indent if first is None else first,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )


def wrap_help(text: str, width: int) -> str:
  """Wraps a docstring: paragraphs are filled, indented lines stay lines; long command lines continue after a `\\`."""
  lines: list[str] = []
  paragraph: list[str] = []
  for line in [*text.replace("\\\n", "\\").splitlines(), ""]:
    if line and not line.startswith(" "):
      paragraph.append(line)
      continue
    lines += wrap(" ".join(paragraph), width)
    paragraph = []
    lines += _wrap_example(line, width) if line else [""]
  return "\n".join(lines).rstrip()


def _wrap_example(line: str, width: int) -> Iterator[str]:
  """Yields the lines of an indented line; `\\` within it marks where it was continued in the source."""
  line = re.sub(r" *\\ *", " ", line)
  indent = line[: len(line) - len(line.lstrip())]
  if len(line) <= width:
    yield line
    return
  command, _, comment = line.strip().partition("  #")
  if comment:
    yield from wrap(f"#{comment}", width, f"{indent}# ", indent)
  if "spatial-vlm" not in command and not command.startswith("--"):
    yield from wrap(command, width, f"{indent}  ", indent)
    return
  row = ""
  for word in re.findall(r"(?:[^\s\"']|\"[^\"]*\"|'[^']*')+", command):
    if row and len(row) + len(word) + 3 > width:
      yield f"{row} \\"
      row = f"{indent}  {word}"
    else:
      row = f"{row} {word}" if row else f"{indent}{word}"
  yield row
