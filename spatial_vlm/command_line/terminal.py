"""Text wrapped to the width of a terminal."""

import re
import textwrap
from collections.abc import Iterator


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
