"""The exact teacher of rendered scenes: derives every box, number and verdict from the scene.

All numbers are in units of 0–1000 of the image and appear in boxes or right after "=".
"""

import collections
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import UInt8

from spatial_vlm import answers
from spatial_vlm.answers import Box
from spatial_vlm.data import messages, relations
from spatial_vlm.data.messages import Messages
from spatial_vlm.data.records import Record
from spatial_vlm.data.relations import NEAR_DISTANCE, RELATIONS, Relation
from spatial_vlm.data.scenes.render import Scene
from spatial_vlm.data.scenes.source import SceneExample, SceneImageSource, SceneSource
from spatial_vlm.synthesis import draft as drafts
from spatial_vlm.synthesis.draft import Draft
from spatial_vlm.tasks import statements


def draft(record: Record, boxes: Mapping[str, Box]) -> Draft:
  """Returns the draft of a record: the question, all objects with boxes, the derivation and the verdict.

  Raises ValueError if the boxes contradict the label or scenes cannot show the relation.
  """
  subject, relation, other = _statement(record)
  verdict = _verdict(record, boxes)
  outcome = f"it is {'' if verdict else 'not '}{relation.name} it"
  return Draft(
    summary=f"{record.caption} True?",
    caption="",
    objects=tuple(boxes.items()),
    reasoning=f"{_derivation(relation, subject, boxes[subject], other, boxes[other])}, so {outcome}.",
    verdict=verdict,
  )


def chain(example: SceneExample) -> str:
  """Returns the chain of an example."""
  return drafts.chain(draft(example.record, example.scene.boxes))


def comparison(example: SceneExample) -> str:
  """Returns the deciding comparison, for the short form.

  Examples: "red circle x=160 < blue square x=640", "red circle to blue square gap=0".
  """
  subject, relation, other = _statement(example.record)
  return _comparison(
    relation, subject, example.scene.boxes[subject], other, example.scene.boxes[other]
  )


def pretrain_messages(
  scene: Scene,
  image: UInt8[np.ndarray, "H W 3"],
  rng: np.random.Generator,
  requests: int = 4,
  list_share: float = 0.5,
) -> Messages:
  """Returns a conversation about one image, in random order, that judges no statement.

  Args:
    scene: the scene of the image.
    image: its pixels.
    rng: random generator.
    requests: number of different questions: where one or two objects are, their centre, span or size, or what is at a
      point. A small scene has fewer.
    list_share: share of conversations that also ask for the list of all objects; those without a request always do.
  """
  possible = _requests(scene)
  turns = [possible[i] for i in rng.permutation(len(possible))[:requests]]
  if not turns or rng.random() < list_share:
    turns.insert(int(rng.integers(len(turns) + 1)), listing(scene))
  return messages.conversation(image, turns)


def listing(scene: Scene) -> tuple[str, str]:
  """Returns question and answer: all objects with their boxes, in scan order."""
  return statements.LIST_OBJECTS, answers.render_boxes(scene.boxes.items())


def where(boxes: Mapping[str, Box], *names: str) -> tuple[str, str]:
  """Returns question and answer: the boxes of the named objects, in the given order."""
  listed = " and ".join(f"the {name}" for name in names)
  verb = "is" if len(names) == 1 else "are"
  return f"Where {verb} {listed}?", answers.render_boxes((name, boxes[name]) for name in names)


def point(boxes: Mapping[str, Box], name: str) -> tuple[str, str]:
  """Returns question and answer: the centre of the named object."""
  return f"Point to the {name}.", f"{name} centre {_point(boxes[name])}"


def reach(boxes: Mapping[str, Box], name: str, axis: str) -> tuple[str, str]:
  """Returns question and answer: span and centre of the named object along "x" or "y"."""
  return f"How far does the {name} reach along {axis}?", _span(name, boxes[name], axis)


def extent(boxes: Mapping[str, Box], name: str) -> tuple[str, str]:
  """Returns question and answer: width and height of the named object, compared."""
  return f"How large is the {name}?", f"{name} {_extents(boxes[name])}"


def what(boxes: Mapping[str, Box], name: str) -> tuple[str, str]:
  """Returns question and answer: the name of the object at the given centre."""
  return f"What is at {_point(boxes[name])}?", name


def vocabulary_texts(count: int, seed: int) -> Iterator[str]:
  """Yields texts with every word of scenes (questions, answers, requests), to train a tokenizer.

  No model is asked these questions, so they come from the task and not from a `QuestionBuilder`: the short form cites
  behaviors that no index has.
  """
  examples = SceneSource("pretrain", seed, 2 * ((count + 1) // 2), image_size=8)
  images = SceneImageSource("pretrain", seed, count, image_size=8)
  rng = np.random.default_rng(seed)
  for index in range(count):
    example = examples[index]
    caption, verdict = example.record.caption, example.record.label
    behavior = "behavior_" + example.record.relation.replace(" ", "_")
    yield f"{statements.question(caption, 'chain')}\n{chain(example)}"
    yield f"{statements.question(caption, 'direct')}\n{answers.render_direct(verdict)}"
    yield answers.render_short(behavior, comparison(example), verdict)
    yield statements.question(caption, "short")
    yield statements.behavior_prompt(f"{behavior}: yes when X or Y: {comparison(example)}")
    pretraining = images[index]
    for turn in pretrain_messages(pretraining.scene, pretraining.image, rng):
      yield turn["content"][-1]["text"]


def _statement(record: Record) -> tuple[str, Relation, str]:
  if record.subj is None or record.obj is None or record.relation not in RELATIONS:
    raise ValueError(f"{record} lacks a subject, an object or a relation that scenes can show")
  return record.subj, RELATIONS[record.relation], record.obj


def _verdict(record: Record, boxes: Mapping[str, Box]) -> int:
  """Returns the label; raises ValueError if it contradicts the scene."""
  subject, relation, other = _statement(record)
  holds = relation.holds(boxes[subject], boxes[other])
  if holds is None or int(holds) != record.label:
    raise ValueError(f"{record.caption!r} is labelled {record.label}, but the scene says {holds}")
  return int(holds)


def _derivation(relation: Relation, subject: str, s: Box, other: str, o: Box) -> str:
  """Returns the derivation from the boxes to the comparison."""
  result = _comparison(relation, "", s, "", o).strip()
  match relation.measure:
    case "x" | "y" as axis:
      return f"{_span(subject, s, axis)}; {_span(other, o, axis)}; {result}"
    case "d":
      dx, dy = relations.offsets(s, o)
      centres = f"{subject} centre {_point(s)}; {other} centre {_point(o)}"
      return f"{centres}; offsets x={dx}, y={dy}; {result}"
    case "gap" | "overhang" as measure:
      spans = f"{subject} spans {_spans(s)}; {other} spans {_spans(o)}"
      apart = f"apart {_pair(relations.gaps(s, o))}"
      outside = f"outside {_pair(relations.overhangs(s, o))}"
      return f"{spans}; {apart if measure == 'gap' else outside}; {result}"
    case "axis":
      # One exclusive or at a time: whether the signs are equal, then whether that is what was asked.
      word = "parallel" if RELATIONS["parallel to"].evidence(s, o) > 0 else "perpendicular"
      return f"{_comparison(relation, subject, s, other, o)}; {word}"
  raise ValueError(f"no derivation for measure {relation.measure!r} of {relation.name!r}")


def _comparison(relation: Relation, subject: str, s: Box, other: str, o: Box) -> str:
  match relation.measure:
    case "x" | "y" as axis:
      a, b = (relations.center(box)["xy".index(axis)] for box in (s, o))
      return f"{subject} {axis}={a} {_sign(a, b)} {other} {axis}={b}".replace("  ", " ")
    case "d":
      distance = max(relations.offsets(s, o))
      return f"{_between(subject, 'to', other)} d={distance} {_sign(distance, NEAR_DISTANCE)} d={NEAR_DISTANCE}"
    case "gap":
      return f"{_between(subject, 'to', other)} gap={max(relations.gaps(s, o))}"
    case "overhang":
      return f"{_between(subject, 'in', other)} overhang={max(relations.overhangs(s, o))}"
    case "axis":
      return f"{subject} {_extents(s)}, {other} {_extents(o)}"
  raise ValueError(f"no comparison for measure {relation.measure!r} of {relation.name!r}")


def _between(subject: str, word: str, other: str) -> str:
  return f"{subject} {word} {other}" if subject else ""


def _extents(box: Box) -> str:
  width, height = relations.size(box)
  return f"w={width} {_sign(width, height)} h={height}"


def _span(name: str, box: Box, axis: str) -> str:
  i = "xy".index(axis)
  return (
    f"{name} spans {axis}={box[i]} to {axis}={box[i + 2]}, centre {axis}={relations.center(box)[i]}"
  )


def _spans(box: Box) -> str:
  x1, y1, x2, y2 = box
  return f"x={x1} to x={x2}, y={y1} to y={y2}"


def _pair(values: tuple[int, int]) -> str:
  return f"x={values[0]}, y={values[1]}"


def _point(box: Box) -> str:
  return _pair(relations.center(box))


def _sign(a: int, b: int) -> str:
  return "<" if a < b else ">" if a > b else "="


def _requests(scene: Scene) -> list[tuple[str, str]]:
  """Returns all questions and answers about the objects; `what` only if no other object covers the centre.

  Answers repeat the names, because a chain of thought copies words and numbers from earlier text. Some name an object
  by its colour alone: a name's colour stands further from its box than its shape, and alone it is learnt sooner.
  """
  boxes, colors = scene.boxes, _boxes_of_colors(scene)
  turns = [request(b, n) for b in (boxes, colors) for request in (where, point, extent) for n in b]
  turns += [reach(boxes, name, axis) for name in boxes for axis in "xy"]
  turns += [where(boxes, a, b) for a, b in itertools.permutations(boxes, 2)]
  for index, item in enumerate(scene.objects):
    x, y = relations.center(item.box)
    front = (other.box for other in scene.objects[index + 1 :])
    if not any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in front):
      turns.append(what(boxes, item.name))
  return turns


def _boxes_of_colors(scene: Scene) -> dict[str, Box]:
  """Returns colour → box of the only object of that colour."""
  counts = collections.Counter(item.color for item in scene.objects)
  return {item.color: item.box for item in scene.objects if counts[item.color] == 1}
