"""What a process prints: readable where the encoding lacks a character, with log lines of this package."""

import codecs
import logging
import os
import sys
import unicodedata
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


def set_up_streams() -> None:
  """Prepares the output of a process that runs commands."""
  # At its import transformers advises to install PyTorch, which nothing here needs.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  never_fail_to_encode(sys.stdout, sys.stderr)
  logging.basicConfig(format="%(levelname)s: %(message)s")
  logging.getLogger("spatial_vlm").setLevel(logging.INFO)
