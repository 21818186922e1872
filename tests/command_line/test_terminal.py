"""Text is wrapped to the terminal and never fails to encode."""

import io

import pytest

from spatial_vlm.command_line.terminal import never_fail_to_encode, wrap_help

HELP = """Paint a scene of many objects, one after the other.

Reads a palette and a file of strokes:

  spatial-vlm paint --config configs/paint.py:tiny --config.title="a long title" \\
    --workdir runs/paint   # in oil
  one line
"""


def test_characters_that_an_encoding_lacks_become_readable():
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, encoding="ascii")
  never_fail_to_encode(stream, io.StringIO())
  stream.write("64 × 64 → café … ≥ 1, −1, 图")
  stream.flush()
  assert raw.getvalue() == b"64 x 64 -> cafe ... >= 1, -1, ?"


def test_text_that_is_encoded_stays():
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, encoding="utf-8")
  never_fail_to_encode(stream)
  stream.write("64 × 64")
  stream.flush()
  assert raw.getvalue().decode() == "64 × 64"


@pytest.mark.parametrize("width", [40, 60, 200])
def test_help_keeps_its_words_and_its_width(width):
  lines = wrap_help(HELP, width).splitlines()
  assert max(map(len, lines)) <= width
  text = " ".join(lines).replace("\\", " ").replace("#", " ").split()
  assert sorted(text) == sorted(HELP.replace("\\", " ").replace("#", " ").split())
  assert '--config.title="a long title"' in "\n".join(lines)


def test_a_command_that_is_too_long_can_still_be_pasted():
  assert wrap_help(HELP, 60).splitlines()[4:] == [
    "  # in oil",
    "  spatial-vlm paint --config configs/paint.py:tiny \\",
    '    --config.title="a long title" --workdir runs/paint',
    "  one line",
  ]
