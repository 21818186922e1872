"""Draws the image of the front page: a scene with boxes, its full chain and its short answer.

The scene, the chain and the comparison come from the package's renderer and scene teacher; tokens are those of the tiny
base's tokenizer. Same versions of matplotlib give the same bytes.

  python docs/make_answer_image.py
"""

import io
import textwrap
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from spatial_vlm import answers
from spatial_vlm.data.scenes.source import SceneExample, SceneSource
from spatial_vlm.evaluation.figures import BLUE, FAINT, INK, PURPLE, STYLE, VERMILLION
from spatial_vlm.processor.tokenizer import load_tokenizer
from spatial_vlm.reuse.extraction.patterns import behavior_name
from spatial_vlm.synthesis import scene_teacher

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "docs" / "images" / "answer.png"
EXAMPLE = 4
"""Number in the test split of seed 0."""


def draw(example: SceneExample) -> Figure:
  """Returns the figure of one example."""
  record = example.record
  assert record.subj and record.obj
  chain = scene_teacher.chain(example)
  short = answers.render_short(
    behavior_name(record.relation), scene_teacher.comparison(example), record.label
  )
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11, 4.4))
    figure.text(0.012, 0.925, f"“{record.caption}” True or false?", fontsize=14, fontweight="bold")
    scene = figure.add_axes((0.012, 0.03, 0.352, 0.85))
    draw_scene(scene, example, {record.subj: BLUE, record.obj: VERMILLION})
    text = figure.add_axes((0.38, 0.03, 0.61, 0.85))
    text.set_axis_off()
    text.set(xlim=(0, 100), ylim=(0, 100))
    panel(text, "Full chain", chain, top=100, height=64)
    panel(text, "Short answer, with a recalled behavior", short, top=31, height=31)
  return figure


def draw_scene(axes: Axes, example: SceneExample, colors: dict[str, str]) -> None:
  """Draws the image with all boxes; `colors` are those of the two objects that the statement names."""
  size = example.image.shape[0]
  axes.imshow(example.image, extent=(0, size, size, 0), interpolation="nearest")
  axes.set_axis_off()
  for name, box in example.boxes.items():
    color = colors.get(name, PURPLE)
    x1, y1, x2, y2 = (value * size / 1000 for value in box)
    axes.add_patch(
      Rectangle(
        (x1, y1),
        x2 - x1,
        y2 - y1,
        fill=False,
        edgecolor=color,
        linewidth=2.4,
        path_effects=[withStroke(linewidth=4.2, foreground="white")],
      )
    )
    left = x1 < size / 2
    axes.text(
      x1 if left else x2,
      y1 - 0.012 * size,
      name,
      ha="left" if left else "right",
      va="bottom",
      fontsize=9.5,
      color="white",
      bbox={"facecolor": color, "edgecolor": "none", "pad": 1.6},
    )


def panel(axes: Axes, title: str, answer: str, top: float, height: float) -> None:
  """Draws a frame with a title, the number of tokens, and the lines of an answer with their labels in bold."""
  frame = FancyBboxPatch(
    (0.6, top - height + 0.6),
    98.8,
    height - 1.2,
    boxstyle="round,pad=0,rounding_size=1.2",
    facecolor="#F7F9FA",
    edgecolor=FAINT,
  )
  axes.add_patch(frame)
  y = top - 7.4
  axes.text(2.5, y, title, fontsize=11, fontweight="bold", color=BLUE)
  axes.text(97.5, y, f"{count_tokens(answer)} tokens", fontsize=11, ha="right", color=VERMILLION)
  for line in answer.splitlines():
    label, _, rest = line.partition(": ")
    for i, piece in enumerate(textwrap.wrap(rest, 62 if len(label) < 15 else 42)):
      y -= 6.6
      if i == 0:
        axes.text(2.5, y, label, fontsize=9.5, fontweight="bold", color=INK)
      axes.text(16 if len(label) < 15 else 33, y, piece, fontsize=9, family="DejaVu Sans Mono")
    y -= 1.4


def count_tokens(text: str) -> int:
  """Returns the length of a text in tokens of the tiny base."""
  return len(load_tokenizer(ROOT / "spatial_vlm" / "assets" / "tiny_base").encode(text))


if __name__ == "__main__":
  source = SceneSource("test", seed=0, count=EXAMPLE + 2, image_size=448)
  png = io.BytesIO()
  draw(source[EXAMPLE]).savefig(png, format="png", dpi=130, facecolor="white")
  image = Image.open(png).convert("RGB").quantize(128, dither=Image.Dither.NONE)
  png = io.BytesIO()
  image.save(png, format="png", optimize=True)
  IMAGE.parent.mkdir(exist_ok=True)
  IMAGE.write_bytes(png.getvalue())
  print(f"{IMAGE}: {len(png.getvalue()) / 1000:.0f} kB")
