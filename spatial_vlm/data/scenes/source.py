"""Sources of procedurally rendered scenes with statements about them, as VSR records.

All coordinates are on a lattice of 20 units of 0–1000, so that boxes, centres, distances and gaps are written exactly.
Examples 2k and 2k+1 are a contrastive pair as in VSR: one caption, true of one scene and false of the other, with
objects of the same sizes in both. Every scene has a fingerprint, and each split owns some of its residues: a scene of
one split cannot occur in another.
"""

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from spatial_vlm.data.records import Example, Record
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.data.scenes.render import Scene, render
from spatial_vlm.data.scenes.scene_layout import SPLITS, Design, draw_design, draw_scene

_DESIGNS = 100
"""Tries for one example; the first nearly always succeeds."""


@dataclasses.dataclass(frozen=True)
class SceneExample(Example):
  """A statement about a scene, with its label and the rendered image."""

  record: Record
  scene: Scene


@dataclasses.dataclass(frozen=True)
class SceneImage:
  """A rendered scene without a statement, for captioning and grounding."""

  id: int
  scene: Scene
  image: UInt8[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True)
class SceneSource:
  """Random-access source of statements about scenes; example i depends on (seed, split, i) and the settings alone.

  Pair k has relation k modulo the number of relations, so labels are exactly balanced in each relation. `objects` is
  the least and the largest number of objects in a scene.
  """

  split: str
  seed: int
  count: int
  image_size: int = 64
  objects: tuple[int, int] = (2, 3)
  relations: tuple[str, ...] = tuple(RELATIONS)

  def __post_init__(self):
    _check_split(self.split)
    if self.count < 0 or self.count % 2:
      raise ValueError(
        f"count is {self.count}; scenes come in contrastive pairs, so give an even number"
      )
    if not 2 <= self.objects[0] <= self.objects[1] <= 4:
      raise ValueError(
        f"objects is {self.objects}; a statement needs 2 objects and a scene holds at most 4"
      )
    if unknown := set(self.relations) - set(RELATIONS):
      raise ValueError(
        f"relations {sorted(unknown)} are unknown; scenes can show {list(RELATIONS)}"
      )

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> SceneExample:
    record, scene = self.describe(index)
    return SceneExample(record, render(scene, self.image_size), scene.boxes, int(index), scene)

  def __iter__(self) -> Iterator[SceneExample]:
    return (self[index] for index in range(self.count))

  def describe(self, index: int) -> tuple[Record, Scene]:
    """Returns the record and the scene without rendering it."""
    if not 0 <= index < self.count:
      raise IndexError(f"example {index} of {self.count}")
    pair, position = divmod(int(index), 2)
    relation = RELATIONS[self.relations[pair % len(self.relations)]]
    rng = np.random.default_rng((self.seed, list(SPLITS).index(self.split), pair))
    first_label = int(rng.integers(2))
    for _ in range(_DESIGNS):
      objects = int(rng.integers(self.objects[0], self.objects[1] + 1))
      design = draw_design(rng, relation, objects)
      first = draw_scene(rng, design, bool(first_label), self.split)
      second = draw_scene(rng, design, not first_label, self.split)
      if first and second:
        label = first_label ^ position
        return _record(self.split, int(index), design, label), (first, second)[position]
    raise RuntimeError(
      f"no scenes found for pair {pair} of {relation.name!r} with {self.objects} objects"
    )


@dataclasses.dataclass(frozen=True)
class SceneImageSource:
  """Random-access source of scenes without statements: layouts of `SceneSource`, and single objects.

  In a `same_shape` share of the images all objects have one shape, so that only the colour in a name tells which is
  meant. Without them, a model that looks at shapes alone finds most objects, and learns the colours late or never.
  """

  split: str
  seed: int
  count: int
  image_size: int = 64
  objects: tuple[int, int] = (1, 4)
  same_shape: float = 0.0

  def __post_init__(self):
    _check_split(self.split)
    if not 1 <= self.objects[0] <= self.objects[1] <= 4:
      raise ValueError(f"objects is {self.objects}; a scene holds from 1 to 4 objects")

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> SceneImage:
    if not 0 <= index < self.count:
      raise IndexError(f"scene {index} of {self.count}")
    # The leading count keeps these draws apart from those of SceneSource.
    rng = np.random.default_rng(
      (len(SPLITS), self.seed, list(SPLITS).index(self.split), int(index))
    )
    count = int(rng.integers(self.objects[0], self.objects[1] + 1))
    has_one_shape = self.same_shape > 0 and rng.random() < self.same_shape
    for _ in range(_DESIGNS):
      relation = tuple(RELATIONS.values())[int(rng.integers(len(RELATIONS)))]
      design = draw_design(rng, relation, max(count, 2))
      while has_one_shape and not design.has_one_shape:
        design = draw_design(rng, relation, max(count, 2))
      if scene := draw_scene(rng, design, bool(rng.integers(2)), self.split, count):
        return SceneImage(int(index), scene, render(scene, self.image_size))
    raise RuntimeError(f"no scene found for image {index} with {count} objects")

  def origin(self, index: int) -> tuple[str, int]:
    """Returns a name of the source, and the number of the scene in it."""
    return f"{self.split} images of seed {self.seed}", index


def _record(split: str, index: int, design: Design, label: int) -> Record:
  votes = (1, 2, 3)
  return Record(
    image=f"{split}_{index:06d}.png",
    image_link="",
    caption=design.relation.caption(design.subject.name, design.other.name),
    label=label,
    relation=design.relation.name,
    annotator_id=0,
    vote_true_validator_id=json.dumps(votes if label else []),
    vote_false_validator_id=json.dumps([] if label else votes),
    subj=design.subject.name,
    obj=design.other.name,
  )


def _check_split(split: str) -> None:
  if split not in SPLITS:
    raise ValueError(f"split is {split!r}; allowed are {list(SPLITS)}")
