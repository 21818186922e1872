"""Sources of scenes: labels, pairs, splits, statistics."""

import collections
import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from spatial_vlm.data import relations
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.data.scenes.render import COLORS, SHAPES, covers
from spatial_vlm.data.scenes.scene_layout import SPLITS, STEP, fingerprint
from spatial_vlm.data.scenes.source import SceneImageSource, SceneSource

COUNT = 600


@pytest.fixture(scope="module")
def described():
  source = SceneSource("train", 3, COUNT)
  return [source.describe(index) for index in range(COUNT)]


def named_boxes(record, scene):
  return scene.boxes[record.subj], scene.boxes[record.obj]


def test_labels_are_those_of_the_predicates(described):
  for record, scene in described:
    assert RELATIONS[record.relation].holds(*named_boxes(record, scene)) is bool(record.label)


def test_labels_are_balanced_in_every_relation_and_position(described):
  labels = collections.defaultdict(list)
  for record, _ in described:
    labels[record.relation].append(record.label)
  assert set(labels) == set(RELATIONS)
  assert {len(values) for values in labels.values()} == {COUNT // len(RELATIONS)}
  assert all(sum(values) * 2 == len(values) for values in labels.values())
  first = [record.label for record, _ in described[::2]]
  assert 0.4 < np.mean(first) < 0.6


def test_adjacent_examples_are_contrastive_pairs_with_equal_object_sizes(described):
  for (a, scene_a), (b, scene_b) in zip(described[::2], described[1::2], strict=True):
    assert a.caption == b.caption and {a.label, b.label} == {0, 1}
    assert scene_a.boxes.keys() == scene_b.boxes.keys()
    if RELATIONS[a.relation].measure != "axis":
      for name, box in scene_a.boxes.items():
        assert relations.size(box) == relations.size(scene_b.boxes[name])


def test_positions_do_not_predict_labels_of_symmetric_relations(described):
  """A bar is as often horizontal in true scenes as in false ones."""
  horizontal = collections.Counter()
  source = SceneSource("train", 3, 2000, relations=("parallel to", "perpendicular to"))
  for record, scene in map(source.describe, range(len(source))):
    for box in named_boxes(record, scene):
      width, height = relations.size(box)
      horizontal[record.relation, record.label, width > height] += 1
  for relation, label in itertools.product(source.relations, (0, 1)):
    share = horizontal[relation, label, True] / 1000
    assert 0.44 < share < 0.56


def test_false_scenes_are_false_in_more_than_one_way():
  source = SceneSource("train", 3, 1200, relations=("left of", "touching", "inside"))
  near_misses = collections.Counter()
  for record, scene in map(source.describe, range(len(source))):
    if record.label:
      continue
    subject, other = named_boxes(record, scene)
    dx, dy = relations.offsets(subject, other)
    match record.relation:
      case "left of":
        near_misses[record.relation, dy > dx] += 1
      case "touching":
        near_misses[record.relation, max(relations.gaps(subject, other)) <= 160] += 1
      case "inside":
        near_misses[record.relation, max(relations.gaps(subject, other)) == 0] += 1
  for relation in source.relations:
    share = near_misses[relation, True] / 200
    assert 0.25 < share < 0.75, relation


def test_boxes_are_on_the_lattice_inside_the_image(described):
  for _, scene in described:
    for box in scene.boxes.values():
      numbers = [*box, *relations.center(box)]
      assert all(number % STEP == 0 for number in numbers)
      assert STEP <= min(box) and max(box) <= 1000 - STEP
      assert all(type(number) is int for number in box)
    assert 2 <= len(scene.objects) <= 3
    assert len(scene.boxes) == len(scene.objects)


def test_objects_stay_apart_unless_the_relation_is_topological(described):
  for record, scene in described:
    named = {record.subj, record.obj}
    for a, b in itertools.combinations(scene.boxes, 2):
      if {a, b} != named or RELATIONS[record.relation].category != "Topological":
        assert max(relations.gaps(scene.boxes[a], scene.boxes[b])) >= STEP


def test_touching_and_inside_hold_in_the_rendered_image():
  source = SceneSource("train", 4, 400, relations=("touching", "inside"))
  points = np.arange(0, 1000, 5)
  for record, scene in map(source.describe, range(len(source))):
    if not record.label:
      continue
    masks = {}
    for item in scene.objects:
      x1, y1, x2, y2 = item.box
      u, v = (2 * points - x1 - x2) / (x2 - x1), (2 * points - y1 - y2) / (y2 - y1)
      masks[item.name] = covers(item.shape, u[None, :], v[:, None])
    subject, other = masks[record.subj], masks[record.obj]
    assert (subject & other).any()
    if record.relation == "inside":
      assert (subject <= other).all()
      assert [o.name for o in scene.objects if o.name in (record.subj, record.obj)][
        1
      ] == record.subj


def test_distractors_share_words_with_named_objects(described):
  shared, total = 0, 0
  for record, scene in described:
    words = {*record.subj.split(), *record.obj.split()}
    for name in scene.boxes.keys() - {record.subj, record.obj}:
      shared += bool(words & set(name.split()))
      total += 1
  assert total > COUNT / 4 and shared / total > 0.6


def test_all_colours_and_shapes_occur(described):
  names = {name for _, scene in described for name in scene.boxes}
  assert names == {f"{color} {shape}" for color in COLORS for shape in SHAPES}


def test_splits_share_no_scene():
  owners = [set(residues) for residues in SPLITS.values()]
  assert all(a.isdisjoint(b) for a, b in itertools.combinations(owners, 2))
  assert set().union(*owners) == set(range(16))
  for split, residues in SPLITS.items():
    source, images = SceneSource(split, 0, 40), SceneImageSource(split, 0, 40)
    for scene in [source.describe(i)[1] for i in range(40)] + [images[i].scene for i in range(40)]:
      assert fingerprint(scene) % 16 in residues


def test_the_fingerprint_depends_on_content_not_on_appearance(described):
  scene = described[0][1]
  redressed = dataclasses.replace(
    scene,
    objects=tuple(dataclasses.replace(o, tint=(9, 9, 9)) for o in reversed(scene.objects)),
    brightness=0.9,
  )
  assert fingerprint(redressed) == fingerprint(scene)
  first, *rest = scene.objects
  x1, y1, x2, y2 = first.box
  moved = dataclasses.replace(first, box=(x1 + 20, y1, x2 + 20, y2))
  assert fingerprint(dataclasses.replace(scene, objects=(moved, *rest))) != fingerprint(scene)


def test_examples_depend_on_seed_split_and_index_alone():
  source, shorter = SceneSource("test", 5, 40), SceneSource("test", 5, 12)
  np.testing.assert_array_equal(source[11].image, shorter[11].image)
  assert source[11].record == shorter[np.int64(11)].record
  assert source[11].record != SceneSource("test", 6, 40)[11].record
  assert source[11].scene != SceneSource("validation", 5, 40)[11].scene
  captions = {SceneSource(split, 5, 2)[0].record.caption for split in SPLITS}
  assert len(captions) > 1
  again = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(source[39].image, again[39].image)
  assert [example.id for example in source] == list(range(40))


def test_examples_are_vsr_records():
  example = SceneSource("test", 0, 4, image_size=80)[3]
  record = example.record
  assert record.image == "test_000003.png" and record.image_link == ""
  assert record.caption == f"The {record.subj} is {record.relation} the {record.obj}."
  votes = (record.vote_true_validator_id, record.vote_false_validator_id)
  assert votes == (("[1, 2, 3]", "[]") if record.label else ("[]", "[1, 2, 3]"))
  assert example.image.shape == (80, 80, 3)
  assert example.boxes == example.scene.boxes


def test_pretraining_images_have_one_to_four_objects():
  images = SceneImageSource("pretrain", 0, 200)
  counts = collections.Counter(len(images[i].scene.objects) for i in range(200))
  assert set(counts) == {1, 2, 3, 4} and min(counts.values()) > 25
  assert images[7].scene == SceneImageSource("pretrain", 0, 9)[7].scene


@pytest.mark.parametrize(
  ("share", "least", "most"), [(0.0, 10, 50), (0.5, 80, 130), (1.0, 160, 160)]
)
def test_objects_of_one_shape_differ_in_colour_alone(share, least, most):
  images = SceneImageSource("pretrain", 0, 160, 8, objects=(2, 3), same_shape=share)
  scenes = [images[i].scene for i in range(160)]
  of_one_shape = [s for s in scenes if len({o.shape for o in s.objects}) == 1]
  assert least <= len(of_one_shape) <= most
  assert all(len({o.color for o in s.objects}) == len(s.objects) for s in of_one_shape)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("dev", 0, 2), "'dev'.*validation"),
    (("train", 0, 3), "count is 3.*even"),
    (("train", 0, -2), "count is -2"),
    (("train", 0, 2, 64, (1, 3)), r"\(1, 3\)"),
    (("train", 0, 2, 64, (2, 3), ("left of", "behind")), "'behind'.*touching"),
  ],
)
def test_impossible_settings_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    SceneSource(*arguments)


def test_indices_beyond_the_end_are_refused():
  source = SceneSource("train", 0, 2)
  with pytest.raises(IndexError):
    source[2]
  with pytest.raises(IndexError):
    source[-1]
  assert len(list(source)) == 2
