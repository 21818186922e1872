"""Random positions of the objects of a scene, drawn until a statement is clearly true (or false).

A design holds what the two scenes of a contrastive pair share: names and sizes. `draw_scene` finds positions for it.
"""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np

from spatial_vlm.answers import Box
from spatial_vlm.data import relations
from spatial_vlm.data.relations import Relation
from spatial_vlm.data.scenes.render import (
  COLORS,
  SHAPES,
  TEXTURES,
  Background,
  Scene,
  SceneObject,
  covers,
)

STEP = 20
"""Coordinates are multiples of this; sizes of twice this, so that centres are multiples too."""

SPLITS: dict[str, range] = {
  "pretrain": range(0, 6),
  "train": range(6, 12),
  "validation": range(12, 14),
  "test": range(14, 16),
}
"""Residues of the fingerprint modulo 16 that each split owns."""

_SIDES = (160, 200, 240, 280, 320)
_CONTAINER_SIDES = (400, 440, 480, 520)
_CONTAINED_SIDES = (120, 160)
_CONTAINER_SHAPES = ("circle", "square", "diamond")
_BAR_LENGTHS, _BAR_WIDTHS = (280, 320, 360), (80, 120)
_CONTAINED_BAR = (200, 80)
_CLEARANCE = 20
_CONFUSABLE_SHARE = 0.7
"""Share of distractors that have the colour or the shape of a named object, so that a name needs both its words."""
_PROPOSALS, _PLACEMENTS = 24, 64


def fingerprint(scene: Scene) -> int:
  """Returns a hash of names and boxes; tints, texture and brightness do not change it."""
  content = sorted((o.name, o.box) for o in scene.objects)
  return zlib.crc32(repr(content).encode())


@dataclasses.dataclass(frozen=True)
class Part:
  """An object without a position."""

  color: str
  shape: str
  width: int
  height: int

  @property
  def name(self) -> str:
    return f"{self.color} {self.shape}"

  def at(self, x: int, y: int) -> Box:
    return x - self.width // 2, y - self.height // 2, x + self.width // 2, y + self.height // 2


@dataclasses.dataclass(frozen=True)
class Design:
  """The shared part of the two scenes of a contrastive pair."""

  relation: Relation
  subject: Part
  other: Part
  distractors: tuple[Part, ...]

  @property
  def has_one_shape(self) -> bool:
    """Whether only the colours tell the objects apart."""
    return len({part.shape for part in (self.subject, self.other, *self.distractors)}) == 1


def draw_design(rng: np.random.Generator, relation: Relation, objects: int) -> Design:
  subject, other = _draw_pair(rng, relation)
  parts = [subject, other]
  while len(parts) < objects:
    parts.append(_draw_distractor(rng, parts))
  return Design(relation, subject, other, tuple(parts[2:]))


def _draw_pair(rng: np.random.Generator, relation: Relation) -> tuple[Part, Part]:
  subject_shape, other_shape = _pick(rng, SHAPES), _pick(rng, SHAPES)
  subject_sides = other_sides = _SIDES
  if relation.measure == "axis":
    subject_shape = other_shape = "bar"
  elif relation.measure == "overhang":
    other_shape = _pick(rng, _CONTAINER_SHAPES)
    subject_sides, other_sides = _CONTAINED_SIDES, _CONTAINER_SIDES
  subject_color, other_color = _pick(rng, tuple(COLORS)), _pick(rng, tuple(COLORS))
  overlapping = relation.category == "Topological"
  if subject_color == other_color and (overlapping or subject_shape == other_shape):
    return _draw_pair(rng, relation)
  return (
    _draw_part(rng, subject_color, subject_shape, subject_sides),
    _draw_part(rng, other_color, other_shape, other_sides),
  )


def _draw_distractor(rng: np.random.Generator, parts: list[Part]) -> Part:
  color, shape = _pick(rng, tuple(COLORS)), _pick(rng, SHAPES)
  if rng.random() < _CONFUSABLE_SHARE:
    twin = parts[int(rng.integers(2))]
    color, shape = (twin.color, shape) if rng.random() < 0.5 else (color, twin.shape)
  if any(part.name == f"{color} {shape}" for part in parts):
    return _draw_distractor(rng, parts)
  return _draw_part(rng, color, shape, _SIDES)


def _draw_part(rng: np.random.Generator, color: str, shape: str, sides: tuple[int, ...]) -> Part:
  if shape != "bar":
    side = _pick(rng, sides)
    return Part(color, shape, side, side)
  lengths = (_pick(rng, _BAR_LENGTHS), _pick(rng, _BAR_WIDTHS))
  if sides == _CONTAINED_SIDES:
    lengths = _CONTAINED_BAR
  return _turned(Part(color, shape, *lengths), horizontal=rng.random() < 0.5)


def _turned(bar: Part, horizontal: bool) -> Part:
  short, long = sorted((bar.width, bar.height))
  width, height = (long, short) if horizontal else (short, long)
  return dataclasses.replace(bar, width=width, height=height)


def draw_scene(
  rng: np.random.Generator, design: Design, label: bool, split: str, count: int | None = None
) -> Scene | None:
  """Returns a scene of the split in which the statement is `label`; None if none was found.

  Args:
    rng: source of randomness.
    design: names and sizes of the objects.
    label: truth of the statement.
    split: whose residues the scene's fingerprint must have.
    count: number of objects to keep, if the design has more.
  """
  for _ in range(_PLACEMENTS):
    objects = _place_pair(rng, design, label)
    if objects and _add_distractors(rng, objects, design.distractors):
      scene = _dressed(rng, objects[:count])
      if fingerprint(scene) % 16 in SPLITS[split]:
        return scene
  return None


def _place_pair(rng: np.random.Generator, design: Design, label: bool) -> list[SceneObject]:
  relation, subject, other = design.relation, design.subject, design.other
  if relation.measure == "axis":
    horizontal = rng.random() < 0.5
    parallel = label == (relation.name == "parallel to")
    subject, other = _turned(subject, horizontal), _turned(other, horizontal == parallel)
  propose, accept = _LAYOUTS.get(relation.measure, (_anywhere, _apart))
  for _ in range(_PROPOSALS):
    boxes = propose(rng, subject, other, label)
    fits = relation.holds(*boxes) is label and all(map(_in_image, boxes))
    if fits and accept(subject, other, *boxes, label):
      parts = zip((subject, other), boxes, strict=True)
      objects = [SceneObject(part.color, part.shape, box) for part, box in parts]
      subject_in_front = relation.measure == "overhang" or rng.random() < 0.5
      return objects[::-1] if subject_in_front else objects
  return []


def _add_distractors(
  rng: np.random.Generator, objects: list[SceneObject], parts: tuple[Part, ...]
) -> bool:
  for part in parts:
    for _ in range(_PROPOSALS):
      box = _random_box(rng, part)
      if all(max(relations.gaps(box, o.box)) >= _CLEARANCE for o in objects):
        objects.append(SceneObject(part.color, part.shape, box))
        break
    else:
      return False
  return True


# Layouts: functions that propose two boxes, and conditions on the image besides the predicate.


def _anywhere(rng: np.random.Generator, subject: Part, other: Part, label: bool) -> tuple[Box, Box]:
  return _random_box(rng, subject), _random_box(rng, other)


def _apart(subject: Part, other: Part, subject_box: Box, other_box: Box, label: bool) -> bool:
  return max(relations.gaps(subject_box, other_box)) >= _CLEARANCE


def _propose_contact(
  rng: np.random.Generator, subject: Part, other: Part, label: bool
) -> tuple[Box, Box]:
  """Proposes neighbours: overlapping by up to 40 units, or slightly apart; half of the false ones lie anywhere."""
  if not label and rng.random() < 0.5:
    return _anywhere(rng, subject, other, label)
  gap = -STEP * int(rng.integers(0, 3)) if label else STEP * int(rng.integers(3, 9))
  return _adjacent(rng, subject, other, lambda reach: reach + gap)


def _visible_contact(
  subject: Part, other: Part, subject_box: Box, other_box: Box, label: bool
) -> bool:
  """Returns whether some point belongs to both shapes, if they should touch; touching boxes are not enough."""
  return not label or _overlap(subject.shape, subject_box, other.shape, other_box)


def _propose_containment(
  rng: np.random.Generator, subject: Part, other: Part, label: bool
) -> tuple[Box, Box]:
  """Proposes a subject inside the other object; or across its border (half of the false ones), outside, or anywhere."""
  other_box = _random_box(rng, other)
  if label:
    (x, y), play_x, play_y = relations.center(other_box), *_play(subject, other)
    dx, dy = _lattice(rng, -play_x, play_x), _lattice(rng, -play_y, play_y)
    return subject.at(x + dx, y + dy), other_box
  kind = rng.random()
  if kind < 0.5:
    depth = STEP * int(rng.integers(1, 7))
    return _adjacent(rng, subject, other, lambda reach: reach - depth)
  if kind < 0.75:
    gap = STEP * int(rng.integers(1, 6))
    return _adjacent(rng, subject, other, lambda reach: reach + gap)
  return _random_box(rng, subject), other_box


def _play(subject: Part, other: Part) -> tuple[int, int]:
  """Returns how far the subject can move from the centre of the other box without touching its border."""
  return (
    (other.width - subject.width) // 2 - _CLEARANCE,
    (other.height - subject.height) // 2 - _CLEARANCE,
  )


def _visible_containment(
  subject: Part, other: Part, subject_box: Box, other_box: Box, label: bool
) -> bool:
  """Returns whether the whole subject, with a margin, is on the other shape, if it should be inside."""
  if not label:
    return True
  (x, y), (ox, oy) = relations.center(subject_box), relations.center(other_box)
  u = (abs(x - ox) + subject.width / 2 + _CLEARANCE) / (other.width / 2)
  v = (abs(y - oy) + subject.height / 2 + _CLEARANCE) / (other.height / 2)
  return bool(covers(other.shape, np.asarray(u), np.asarray(v)))


_LAYOUTS: dict[str, tuple[Callable, Callable]] = {
  "gap": (_propose_contact, _visible_contact),
  "overhang": (_propose_containment, _visible_containment),
}


def _adjacent(
  rng: np.random.Generator, subject: Part, other: Part, distance: Callable[[int], int]
) -> tuple[Box, Box]:
  """Puts the subject at one of the four sides; `distance` maps the distance of touching centres to the wanted one."""
  ox, oy = _random_center(rng, other)
  reach_x, reach_y = (subject.width + other.width) // 2, (subject.height + other.height) // 2
  side = 1 if rng.random() < 0.5 else -1
  if rng.random() < 0.5:
    x, y = ox + side * distance(reach_x), oy + _lattice(rng, -reach_y // 2, reach_y // 2)
  else:
    x, y = ox + _lattice(rng, -reach_x // 2, reach_x // 2), oy + side * distance(reach_y)
  return subject.at(x, y), other.at(ox, oy)


def _overlap(shape: str, box: Box, other_shape: str, other_box: Box) -> bool:
  x1, x2 = max(box[0], other_box[0]), min(box[2], other_box[2])
  y1, y2 = max(box[1], other_box[1]), min(box[3], other_box[3])
  x, y = np.arange(x1, x2 + 1, 10)[None, :], np.arange(y1, y2 + 1, 10)[:, None]
  return bool((_covers_at(shape, box, x, y) & _covers_at(other_shape, other_box, x, y)).any())


def _covers_at(shape: str, box: Box, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  x1, y1, x2, y2 = box
  return np.asarray(covers(shape, (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)))


def _in_image(box: Box) -> bool:
  return min(box) >= STEP and max(box) <= 1000 - STEP


def _random_box(rng: np.random.Generator, part: Part) -> Box:
  return part.at(*_random_center(rng, part))


def _random_center(rng: np.random.Generator, part: Part) -> tuple[int, int]:
  x, y = part.width // 2 + STEP, part.height // 2 + STEP
  return _lattice(rng, x, 1000 - x), _lattice(rng, y, 1000 - y)


def _lattice(rng: np.random.Generator, low: int, high: int) -> int:
  """Returns a multiple of STEP from `low` to `high`."""
  return STEP * int(rng.integers(-(-low // STEP), high // STEP + 1))


def _pick(rng: np.random.Generator, options: tuple):
  return options[int(rng.integers(len(options)))]


def _dressed(rng: np.random.Generator, objects: list[SceneObject]) -> Scene:
  """Adds irrelevant variation: tints, background, brightness."""
  tints = rng.integers(-16, 17, (len(objects), 3)).tolist()
  base, angle, period = rng.integers(45, 110), rng.random() * 2 * np.pi, rng.integers(80, 300)
  background = Background(
    texture=_pick(rng, TEXTURES),
    color=tuple((base + rng.integers(-12, 13, 3)).tolist()),
    angle=float(angle),
    period=float(period),
    seed=int(rng.integers(2**31)),
  )
  dressed = tuple(
    dataclasses.replace(o, tint=tuple(t)) for o, t in zip(objects, tints, strict=True)
  )
  return Scene(dressed, background, brightness=float(rng.uniform(0.85, 1.1)))
