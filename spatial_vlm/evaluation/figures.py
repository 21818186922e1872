"""Figures of a run: training curves, accuracy by relation, scenes with boxes.

This is the only file that draws with matplotlib. Colours are Okabe and Ito's, which colour-blind readers can tell
apart; series also differ in marker or line. A figure contains neither a date nor a version, so that equal data gives
equal bytes.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from spatial_vlm import answers
from spatial_vlm.answers import Box
from spatial_vlm.data.records import Example
from spatial_vlm.evaluation.boxes import named_objects
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.scores import Scores
from spatial_vlm.evaluation.statistics import Rate

BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE = (
  "#0072B2",
  "#E69F00",
  "#009E73",
  "#D55E00",
  "#56B4E9",
  "#CC79A7",
)
INK, FAINT = "#222222", "#DDDDDD"
SERIES = (
  (BLUE, "o"),
  (VERMILLION, "s"),
  (GREEN, "^"),
  (ORANGE, "D"),
  (PURPLE, "v"),
  (SKY, "P"),
  (INK, "X"),
)
STYLE: dict[Any, Any] = {
  "font.family": "DejaVu Sans",
  "font.size": 11,
  "text.color": INK,
  "text.parse_math": False,  # captions are data: a "$" in one is a dollar sign
  "figure.constrained_layout.h_pad": 0.08,
  "figure.constrained_layout.w_pad": 0.08,
  "axes.edgecolor": INK,
  "axes.titlesize": 11,
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": FAINT,
  "legend.frameon": False,
  "legend.fontsize": 9.5,
  "lines.linewidth": 1.6,
}


class Panel(NamedTuple):
  """One panel of the training figure."""

  title: str
  metrics: Mapping[str, str]
  """Name of a metric → its name in the legend."""
  scale: str = "linear"
  covered: tuple[float, float] | None = None
  """Range that the axis covers at least, so that noise does not look like a change."""


PANELS = (
  Panel("SFT: cross-entropy, nats per token", {"loss": "training"}, scale="log"),
  Panel("DAPO: reward of the groups kept", {"kept/reward": "reward"}, covered=(0.0, 1.0)),
  Panel(
    "DAPO: accuracy",
    {
      "sampled/accuracy": "all groups",
      "kept/accuracy": "groups kept",
      "validation/accuracy": "validation, greedy",
    },
    covered=(0.5, 1.0),
  ),
  Panel(
    "DAPO: length of an answer, tokens",
    {"sampled/length_tokens": "all groups", "kept/length_tokens": "groups kept"},
    covered=(0.0, 1.0),
  ),
  Panel("DAPO: entropy, nats per token", {"entropy": "entropy"}, covered=(0.0, 0.1)),
  Panel(
    "DAPO: share of groups",
    {
      "sampled/mixed_outcomes": "mixed outcomes",
      "sampled/all_right": "all right",
      "sampled/all_wrong": "all wrong",
    },
    covered=(0.0, 1.0),
  ),
  Panel(
    "DAPO: share of tokens whose ratio is clipped",
    {"clip_high": "above 1 + ε_high", "clip_low": "below 1 − ε_low"},
    covered=(0.0, 0.005),
  ),
  Panel("DAPO: KL to the sampler, nats per token", {"kl_old": "KL"}, covered=(0.0, 0.001)),
  Panel("DAPO: KL to the start, nats per token", {"kl_reference": "KL"}, covered=(0.0, 0.001)),
)


def training_curves(
  metrics_by_stage: Mapping[str, Sequence[Mapping[str, float]]], path: epath.PathLike
) -> None:
  """Draws metrics against optimizer steps, one panel for each quantity that some stage measured.

  `metrics_by_stage`: name of a stage → its records `{"step": …, metric: …}` in any order. Metrics
  that `PANELS` does not name are not drawn. Raises ValueError when there is none to draw.
  """
  panels = [(panel, _series(panel, metrics_by_stage)) for panel in PANELS]
  panels = [(panel, series) for panel, series in panels if series]
  if not panels:
    known = sorted({name for panel in PANELS for name in panel.metrics})
    raise ValueError(
      f"no metric to draw in stages {sorted(metrics_by_stage)}; known metrics are {known}"
    )
  across = min(3, len(panels))
  down = -(-len(panels) // across)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(4.2 * across, 3.3 * down), layout="constrained")
    for i, (panel, series) in enumerate(panels):
      axes = figure.add_subplot(down, across, i + 1, title=panel.title, xlabel="step")
      for (color, _), (name, steps, values) in zip(SERIES, series, strict=False):
        _curve(axes, name, steps, values, color)
      axes.set_yscale(panel.scale)
      axes.yaxis.set_major_formatter("{x:g}")
      axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
      axes.margins(y=0.12 if panel.covered is None else 0.04)
      if panel.covered is not None:
        axes.update_datalim([(axes.dataLim.x0, y) for y in panel.covered], updatex=False)
        axes.autoscale_view()
      if len(series) > 1:  # below the panel, where no curve runs
        columns = 3 if sum(len(name) for name, _, _ in series) < 42 else 2
        axes.legend(
          loc="upper center",
          bbox_to_anchor=(0.5, -0.2),
          ncols=columns,
          handlelength=1.2,
          columnspacing=1.2,
        )
    _save(figure, path)


def _series(
  panel: Panel, metrics_by_stage: Mapping[str, Sequence[Mapping[str, float]]]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
  """Returns (name, steps, values) of every stage and metric of the panel, sorted by step."""
  found = {}
  for stage, records in metrics_by_stage.items():
    for metric, name in panel.metrics.items():
      points = sorted(
        (record["step"], record[metric]) for record in records if record.get(metric) is not None
      )
      if points:
        found[stage, name] = np.array(points, float)
  stages, names = {stage for stage, _ in found}, {name for _, name in found}

  def label(stage: str, name: str) -> str:
    return name if len(stages) == 1 else stage if len(names) == 1 else f"{stage}: {name}"

  return [(label(*key), points[:, 0], points[:, 1]) for key, points in found.items()]


def _curve(axes: Axes, name: str, steps: np.ndarray, values: np.ndarray, color: str) -> None:
  """Draws a line; a long one is drawn faint, with its moving average over a fortieth of the run on top."""
  window = len(steps) // 40
  if window < 3:
    axes.plot(steps, values, color=color, label=name, marker="o", markersize=3)
    return
  axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
  kernel = np.ones(window) / window
  axes.plot(
    np.convolve(steps, kernel, "valid"),
    np.convolve(values, kernel, "valid"),
    color=color,
    label=name,
  )


class LinePanel(NamedTuple):
  """One panel of `line_panels`."""

  title: str
  xlabel: str
  lines: Mapping[str, Sequence[tuple[float, float]]]
  """Name in the legend → points (x, y)."""
  xscale: str = "linear"
  yscale: str = "linear"


def line_panels(panels: Sequence[LinePanel], path: epath.PathLike, columns: int = 3) -> None:
  """Draws panels whose lines have the same names, with one legend above them."""
  rows = -(-len(panels) // columns)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows + 0.7), layout="constrained")
    handles: dict[str, Any] = {}
    for i, panel in enumerate(panels):
      axes = figure.add_subplot(rows, columns, i + 1, title=panel.title, xlabel=panel.xlabel)
      for (name, points), (color, marker) in zip(panel.lines.items(), _cycle(), strict=False):
        x, y = np.array(points, float).reshape(-1, 2).T
        (handles[name],) = axes.plot(x, y, color=color, marker=marker, markersize=5, alpha=0.9)
      axes.set_xscale(panel.xscale)
      axes.set_yscale(panel.yscale)
      at = sorted({x for points in panel.lines.values() for x, _ in points})
      if panel.xscale == "log" and len(at) <= _FEW:  # a decade has one tick, and these may share it
        axes.set_xticks(at)
      for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter("")
    # One panel is too narrow for names side by side.
    ncols = len(handles) if columns > 1 else 1
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=ncols)
    _save(figure, path)


_FEW = 8
"""Most places of points that are ticks of a logarithmic axis."""


class Point(NamedTuple):
  """A point with the interval of its y."""

  x: float
  y: float
  low: float
  high: float


def scatter(points: Mapping[str, Point], xlabel: str, ylabel: str, path: epath.PathLike) -> None:
  """Draws named points with their intervals."""
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    for (name, p), (color, marker) in zip(points.items(), _cycle(), strict=False):
      errors = np.clip([[p.y - p.low], [p.high - p.y]], 0, None)
      axes.errorbar(
        p.x, p.y, errors, fmt=marker, color=color, markersize=7, elinewidth=1.4, label=name
      )
    axes.margins(x=0.08)
    figure.legend(loc="outside right upper")
    _save(figure, path)


def accuracy_intervals(
  rates: Mapping[str, Mapping[str, Rate]], guess: float | None, path: epath.PathLike
) -> None:
  """Draws accuracies with their 95 % intervals, one row for each name.

  Args:
    rates: name → name in the legend → accuracy.
    guess: accuracy of guessing, drawn as a dashed line; None: there is nothing to guess.
    path: of the PNG.
  """
  names, kinds = [*rates], [*next(iter(rates.values()))]
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(9, 1.5 + 0.42 * len(names)), layout="constrained")
    axes = figure.add_subplot(xlabel="accuracy, % (95 % interval; dashed: guessing)")
    offsets = np.linspace(-0.16, 0.16, len(kinds)) if len(kinds) > 1 else [0.0]
    for kind, (color, marker), offset in zip(kinds, _cycle(), offsets, strict=False):
      drawn = [rates[name][kind] for name in names]
      mean, low, high = (
        100 * np.array([r[key] for r in drawn]) for key in ("accuracy", "ci_low", "ci_high")
      )
      errors = np.clip([mean - low, high - mean], 0, None)
      y = np.arange(len(names)) + offset
      axes.errorbar(mean, y, xerr=errors, fmt=marker, color=color, elinewidth=1.4, label=kind)
    if guess is not None:
      axes.axvline(100 * guess, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(names)), [textwrap.shorten(n, 40, placeholder="…") for n in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=len(kinds))
    _save(figure, path)


def accuracy_by_relation(scores_by_method: Mapping[str, Scores], path: epath.PathLike) -> None:
  """Draws accuracy with its 95 % interval for every relation and method; the last row is over all relations."""
  relations = sorted(
    {relation for scores in scores_by_method.values() for relation in scores["by_relation"]}
  )
  rows = [*relations, "all"]
  height = 0.1 * len(scores_by_method) + 0.12
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(9, 1.7 + height * len(rows)), layout="constrained")
    axes = figure.add_subplot(
      title="Accuracy on held-out statements, by relation",
      xlabel="accuracy, % (95 % interval; dashed: chance)",
    )
    offsets = (
      np.linspace(-0.36, 0.36, len(scores_by_method)) if len(scores_by_method) > 1 else [0.0]
    )
    for (method, scores), (color, marker), offset in zip(
      scores_by_method.items(), _cycle(), offsets, strict=False
    ):
      rates = [(y, scores["by_relation"].get(name)) for y, name in enumerate(relations)] + [
        (len(relations), scores)
      ]
      drawn = [
        (y + offset, 100 * r["accuracy"], 100 * r["ci_low"], 100 * r["ci_high"])
        for y, r in rates
        if r
      ]
      y, mean, low, high = np.array(drawn).T
      axes.errorbar(
        mean,
        y,
        xerr=np.clip([mean - low, high - mean], 0, None),
        fmt=marker,
        color=color,
        markersize=5,
        elinewidth=1.4,
        label=method,
      )
    axes.axvline(50, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    for y in range(len(rows) - 1):
      axes.axhline(y + 0.5, color=INK if y == len(relations) - 1 else FAINT, linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=3)
    _save(figure, path)


def _cycle() -> list[tuple[str, str]]:
  """Returns enough series for any number of methods: colours repeat with other markers."""
  colors, markers = zip(*SERIES, strict=True)
  return [
    (color, marker)
    for shift in range(7)
    for color, marker in zip(colors, markers[shift:] + markers[:shift], strict=True)
  ]


SCENE_KEYS: tuple[dict[str, Any], ...] = (
  {"color": BLUE, "label": "answer: first object"},
  {"color": VERMILLION, "label": "answer: second object"},
  {"color": PURPLE, "label": "answer: other object"},
  {"color": INK, "linestyle": (0, (4, 3)), "label": "true box (white, dashed)"},
)
"""Lines of the boxes in the legend of `sample_scenes`; the statement of a wrong answer is bold."""


def sample_scenes(
  examples: Sequence[Example],
  predictions: Sequence[Prediction],
  path: epath.PathLike,
  columns: int = 4,
) -> None:
  """Draws scenes with true boxes (dashed), boxes of the answer (solid, named), statement and verdict; a legend says so.

  Shows every example given; a dozen reads well. Raises ValueError when an example has no
  prediction, or there is no example.
  """
  answered = {p.id: p for p in predictions}
  missing = [example.id for example in examples if example.id not in answered]
  if missing or not examples:
    raise ValueError(
      f"{len(examples)} examples, of which {missing} have no prediction; give examples with answers"
    )
  rows = -(-len(examples) // columns)
  with matplotlib.rc_context(STYLE):
    across = min(columns, len(SCENE_KEYS))
    legend = 0.25 + 0.25 * -(-len(SCENE_KEYS) // across)
    figure = Figure(figsize=(2.9 * columns, 3.5 * rows + legend), layout="constrained")
    keys = [Line2D([], [], linewidth=2.2, **key) for key in SCENE_KEYS]
    figure.legend(handles=keys, loc="outside upper center", ncols=across)
    for i, example in enumerate(examples):
      _scene(figure.add_subplot(rows, columns, i + 1), example, answered[example.id])
    _save(figure, path)


def _scene(axes: Axes, example: Example, prediction: Prediction) -> None:
  """Draws one scene: the subject's box blue, the object's vermillion, other boxes purple, true boxes on top."""
  height, width = example.image.shape[:2]
  axes.imshow(example.image, interpolation="nearest", extent=(0, width, height, 0))
  axes.set_axis_off()
  answer = answers.STATEMENT.parse(prediction.text)
  predicted = answer.boxes if answer else {}
  colors = dict(zip(named_objects(prediction), (BLUE, VERMILLION), strict=False))
  downward = sorted(predicted, key=lambda name: predicted[name][1] + predicted[name][3])
  for i, name in enumerate(downward):
    box, color = predicted[name], colors.get(name, PURPLE)
    axes.add_patch(_rectangle(box, width, height, color=color, linewidth=2.2, stroke=3.6))
    _name_box(axes, name, box, width, height, color, above=2 * i < len(downward) - 1)
  for box in example.boxes.values():
    axes.add_patch(
      _rectangle(box, width, height, color="white", linewidth=0.9, stroke=1.8, dashes=(4, 3))
    )
  axes.set_title(
    f"{_wrapped(prediction.caption)}\n{_judgement(prediction)}",
    fontsize=9.5,
    fontweight="normal" if prediction.right else "bold",
  )


def _rectangle(
  box: Box,
  width: int,
  height: int,
  color: str,
  linewidth: float,
  stroke: float,
  dashes: tuple[int, int] | None = None,
) -> Rectangle:
  x1, y1, x2, y2 = np.array(box) / 1000 * (width, height, width, height)
  outline = withStroke(linewidth=stroke, foreground="black" if color == "white" else "white")
  return Rectangle(
    (x1, y1),
    x2 - x1,
    y2 - y1,
    fill=False,
    edgecolor=color,
    linewidth=linewidth,
    linestyle=(0, dashes) if dashes else "-",
    path_effects=[outline],
  )


def _name_box(
  axes: Axes, name: str, box: Box, width: int, height: int, color: str, above: bool
) -> None:
  """Writes the name at its box, inside the image: above upper boxes and below lower ones, away from other boxes."""
  x1, y1, x2, y2 = np.array(box) / 1000 * (width, height, width, height)
  x, left = (x1, True) if x1 < width / 2 else (x2, False)
  y = max(y1, 0.09 * height) if above else min(y2, 0.91 * height)
  axes.text(
    x,
    y,
    textwrap.shorten(name, 22, placeholder="…"),
    ha="left" if left else "right",
    va="bottom" if above else "top",
    fontsize=8,
    color="white",
    bbox={"facecolor": color, "edgecolor": "none", "pad": 1.2},
  )


def _wrapped(caption: str) -> str:
  return "\n".join(textwrap.wrap(textwrap.shorten(caption, 72, placeholder=" …"), 34))


def _judgement(p: Prediction) -> str:
  stated = {1: "yes", 0: "no"}.get(p.verdict, "no verdict")
  return f"{'true' if p.label else 'false'}; says {stated} {'✓' if p.right else '✗'}"


def _save(figure: Figure, path: epath.PathLike) -> None:
  png = io.BytesIO()
  figure.savefig(png, format="png", dpi=150, facecolor="white", metadata={"Software": None})
  epath.Path(path).write_bytes(png.getvalue())
