"""Text is wrapped to the terminal."""

import pytest

from spatial_vlm.command_line.terminal import wrap_help

HELP = """Paint a scene of many objects, one after the other.

Reads a palette and a file of strokes:

  spatial-vlm paint --config configs/paint.py:tiny --config.title="a long title" \\
    --workdir runs/paint   # in oil
  one line
"""


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
