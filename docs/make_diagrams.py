"""Draws the diagrams of the documentation as SVG files in docs/images.

python docs/make_diagrams.py
"""

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

IMAGES = Path(__file__).parent / "images"
INK, LINE = "#222222", "#5b6770"
FILLS = {
  "data": "#e3f1fa",
  "model": "#fdebd3",
  "check": "#dff3ea",
  "plain": "#f1f3f5",
}
EDGES = {"data": "#0072b2", "model": "#c27c00", "check": "#008a62", "plain": "#8a949c"}
LINE_HEIGHT = 17


class Box(NamedTuple):
  """A rectangle with a bold first line and further lines."""

  x: int
  y: int
  width: int
  height: int
  kind: str
  lines: tuple[str, ...]


class Arrow(NamedTuple):
  """A line through points, with a head at its end and a label next to it."""

  points: tuple[tuple[int, int], ...]
  label: str = ""
  at: tuple[int, int] = (0, 0)


def svg(
  width: int, height: int, title: str, boxes: tuple[Box, ...], arrows: tuple[Arrow, ...]
) -> str:
  """Returns a diagram as SVG text."""
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
    f'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="13" fill="{INK}" role="img">',
    f"<title>{escape(title)}</title>",
    '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0 L10 5 L0 10 z" fill="{LINE}"/></marker></defs>',
    f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
  ]
  for arrow in arrows:
    path = " ".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(arrow.points))
    parts.append(
      f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#head)"/>'
    )
    if arrow.label:
      x, y = arrow.at
      parts.append(
        f'<text x="{x}" y="{y}" font-size="12" fill="{LINE}" text-anchor="middle">{escape(arrow.label)}</text>'
      )
  for box in boxes:
    parts.append(
      f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="7" fill="{FILLS[box.kind]}" '
      f'stroke="{EDGES[box.kind]}" stroke-width="1.4"/>'
    )
    top = box.y + box.height / 2 - (len(box.lines) - 1) * LINE_HEIGHT / 2 + 4.5
    for i, line in enumerate(box.lines):
      weight = ' font-weight="bold"' if i == 0 else ""
      parts.append(
        f'<text x="{box.x + box.width / 2:g}" y="{top + i * LINE_HEIGHT:g}" text-anchor="middle"{weight}>'
        f"{escape(line)}</text>"
      )
  return "\n".join([*parts, "</svg>", ""])


def method() -> str:
  """The four stages, from labelled records to short answers."""
  boxes = (
    Box(10, 20, 170, 74, "data", ("Labelled records", "image, statement,", "true or false")),
    Box(260, 20, 170, 74, "check", ("Teacher + checks", "verified chains", "of four steps")),
    Box(510, 20, 170, 74, "model", ("SFT", "learns the form", "of the chains")),
    Box(760, 20, 170, 74, "model", ("DAPO", "learns from", "the verdicts alone")),
    Box(760, 176, 170, 74, "check", ("Behaviors", "procedures that recur", "in correct chains")),
    Box(510, 176, 170, 74, "model", ("SFT on own answers", "short form that cites", "a behavior")),
    Box(260, 176, 170, 74, "plain", ("Answer", "full chain, or", "recalled behavior")),
  )
  arrows = (
    Arrow(((180, 57), (258, 57)), "ask", (219, 48)),
    Arrow(((430, 57), (508, 57)), "chains", (469, 48)),
    Arrow(((680, 57), (758, 57)), "policy", (719, 48)),
    Arrow(((845, 94), (845, 174)), "correct chains", (895, 138)),
    Arrow(((760, 213), (682, 213)), "examples", (721, 204)),
    Arrow(((510, 213), (432, 213)), "policy", (471, 204)),
    Arrow(((95, 94), (95, 140), (730, 140), (730, 80), (758, 80)), "labels", (300, 133)),
  )
  return svg(940, 265, "From labelled records to short answers", boxes, arrows)


def dapo() -> str:
  """One policy batch of DAPO."""
  boxes = (
    Box(10, 20, 150, 74, "data", ("Prompts", "rollout_batch_size", "of them")),
    Box(225, 20, 165, 74, "model", ("Sample", "group_size answers", "to each prompt")),
    Box(455, 20, 165, 74, "check", ("Verdict", "read from token ids", "on the device")),
    Box(
      685,
      20,
      195,
      74,
      "check",
      ("Mixed outcomes?", "keep a group if some, but", "not all, are correct"),
    ),
    Box(
      685, 186, 195, 74, "data", ("Buffer", "groups_per_batch groups,", "part of the checkpoint")
    ),
    Box(
      455,
      186,
      165,
      74,
      "check",
      ("Reward, advantage", "accuracy + overlong,", "normalised per group"),
    ),
    Box(225, 186, 165, 74, "model", ("Update", "minibatches updates,", "clip-higher")),
  )
  arrows = (
    Arrow(((160, 57), (223, 57))),
    Arrow(((390, 57), (453, 57))),
    Arrow(((620, 57), (683, 57))),
    Arrow(((782, 94), (782, 184)), "yes", (800, 160)),
    Arrow(
      ((720, 94), (720, 125), (85, 125), (85, 96)),
      "no, or too few groups: next round, at most max_rollout_rounds",
      (400, 118),
    ),
    Arrow(((685, 223), (622, 223)), "full", (653, 214)),
    Arrow(((455, 223), (392, 223))),
    Arrow(((225, 223), (60, 223), (60, 96)), "new policy", (140, 214)),
  )
  return svg(890, 275, "One policy batch of DAPO", boxes, arrows)


def reuse() -> str:
  """How a question recalls a behavior."""
  boxes = (
    Box(10, 60, 175, 74, "data", ("Statement", "The cat is left of", "the mug.")),
    Box(245, 60, 175, 74, "plain", ("Mask objects", "The X is left of", "the Y.")),
    Box(480, 60, 175, 74, "check", ("Nearest behavior", "embedding + ScaNN", "")),
    Box(
      740,
      10,
      190,
      74,
      "model",
      ("Short answer", "behavior in the question;", "one comparison, verdict"),
    ),
    Box(740, 114, 190, 74, "model", ("Full chain", "four steps", "")),
  )
  boxes = tuple(box._replace(lines=tuple(line for line in box.lines if line)) for box in boxes)
  arrows = (
    Arrow(((185, 97), (243, 97))),
    Arrow(((420, 97), (478, 97))),
    Arrow(((655, 85), (738, 50)), "similar enough", (680, 45)),
    Arrow(((655, 109), (738, 146)), "else", (690, 148)),
  )
  return svg(940, 200, "A question recalls a behavior", boxes, arrows)


def layers() -> str:
  """The layers of the package; a file imports from lower layers."""
  rows = (
    ("layer 3", "plain", ("demo, commands, cli", "load, call, write: one thin file per command")),
    (
      "layer 2",
      "check",
      (
        "data, evaluation, tasks, rewards, rollout, reuse, inference, synthesis, train, planning",
        "what the project does: steps, loops, pipelines",
      ),
    ),
    (
      "layer 1",
      "model",
      (
        "hosts, checkpoint, metrics, parameters, sharding, optim, model, huggingface, processor, objectives",
        "what it is built from: equations, architecture, files, meshes",
      ),
    ),
    ("layer 0", "data", ("types, config, answers, text, jsonl", "words that all others share")),
  )
  boxes = tuple(
    Box(90, 12 + 72 * i, 740, 54, kind, lines) for i, (_, kind, lines) in enumerate(rows)
  )
  tags = tuple(
    Box(10, 12 + 72 * i, 70, 54, "plain", (name,)) for i, (name, _, _) in enumerate(rows)
  )
  arrows = tuple(Arrow(((460, 66 + 72 * i), (460, 82 + 72 * i))) for i in range(3))
  return svg(840, 290, "Layers of the package", boxes + tags, arrows)


DIAGRAMS = {"method": method, "dapo": dapo, "reuse": reuse, "layers": layers}

if __name__ == "__main__":
  IMAGES.mkdir(exist_ok=True)
  for name, draw in DIAGRAMS.items():
    (IMAGES / f"{name}.svg").write_text(draw())
