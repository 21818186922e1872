"""Griffe extension: shows doctests and indented lines of a docstring as they are written.

Docstrings here indent examples, grammars and equations by two spaces. Markdown needs four for a code block, and takes
the prompt of a doctest for a quotation.
"""

import re

import griffe

BLOCK = re.compile(r"(?:\A|(?<=\n\n))(?:  [^\n]+(?:\n|\Z))+(?=\n|\Z)")
"""Lines indented by two or more spaces, between blank lines."""

DOCTEST = re.compile(r"^>>> [^\n]*(?:\n[^\n]+)*", re.MULTILINE)
"""Lines from a prompt to the next blank line."""


class WrittenBlocks(griffe.Extension):
  """Indents blocks of two spaces by two more, and fences doctests."""

  def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
    """Changes the docstring of every module, class, function and attribute before it is rendered."""
    if obj.docstring:
      text = BLOCK.sub(_indented, obj.docstring.value)
      obj.docstring.value = DOCTEST.sub(_fenced, text)


def _indented(block: re.Match[str]) -> str:
  return "".join(f"  {line}" for line in block[0].splitlines(keepends=True))


def _fenced(doctest: re.Match[str]) -> str:
  return f"\n```pycon\n{doctest[0]}\n```\n"
