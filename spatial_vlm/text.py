"""Text of reports: escaped Markdown for words from files and models, tables, and numbers as text."""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence


def markdown_table(
  header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1
) -> str:
  """Returns a table padded to equal widths: `text_columns` aligned left, then figures aligned right."""
  cells = [list(header), *map(list, rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

  def line(row: Sequence[str]) -> str:
    padded = [
      cell.ljust(width) if i < text_columns else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"

  rule = [
    "-" * (width + 2) if i < text_columns else "-" * (width + 1) + ":"
    for i, width in enumerate(widths)
  ]
  return "\n".join([line(cells[0]), "|" + "|".join(rule) + "|", *map(line, cells[1:])])


def escaped(text: str) -> str:
  """Returns `text` on one line, in which Markdown and HTML interpret nothing (neither links nor math)."""
  line = html.escape(" ".join(_visible(text).split()), quote=False)
  return re.sub(r"([\\`*_{}\[\]#|~$@!]|:(?=//)|(?<=www)\.)", r"\\\1", line)


def fenced(text: str) -> str:
  """Returns `text` as a code block whose fence no run of backticks inside it can close."""
  longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  return f"{fence}text\n{_visible(text)}\n{fence}"


def short_line(text: str, most: int = 300) -> str:
  """Returns text of a foreign file on one line for a message: cut, without control characters.

  >>> short_line("a\\tb " + 400 * "c", most=9)
  'a b cccc…'
  """
  line = " ".join(_visible(text[: 2 * most]).split())
  return line if len(line) <= most and len(text) <= 2 * most else line[: most - 1] + "…"


def without_surrogates(text: str) -> str:
  """Replaces half surrogate pairs, which no file can hold, by U+FFFD.

  >>> without_surrogates("caf\\u00e9 \\ud83d")
  'café �'
  """
  return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def percent(share: float | None) -> str:
  """Returns a share in percent, with one decimal; a dash for None.

  >>> percent(0.7414), percent(None)
  ('74.1 %', '–')
  """
  return "–" if share is None else f"{100 * share:.1f} %"


def _visible(text: str) -> str:
  """Replaces control and formatting characters (terminal colours, bidirectional overrides) by U+FFFD."""
  return "".join(
    c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else "\ufffd"
    for c in text
  )
