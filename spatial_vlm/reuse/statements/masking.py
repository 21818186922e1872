"""Object-masked questions: statements whose objects are replaced by X and Y."""

import re
from collections.abc import Iterable, Mapping

from spatial_vlm.data.relation_wordings import WORDINGS
from spatial_vlm.data.statement import read_statement
from spatial_vlm.reuse.statements.relation_keys import is_name, read_relation

_COCO_OBJECTS = (
  "person, people, man, men, woman, women, boy, girl, child, bicycle, bike, car, motorcycle, airplane, plane, bus"
  ", train, truck, boat, traffic light, fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep"
  ", cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard"
  ", sports ball, kite, baseball bat"
  ", baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife"
  ", spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, sofa"
  ", potted plant, bed, dining table, table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven"
  ", toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
).split(", ")
"""COCO's categories, VSR's objects among them, and other words for people, bicycles, airplanes, couches and tables."""


def mask_objects(caption: str, subj: str = "", obj: str = "") -> str:
  """Returns the caption with its objects replaced by X and Y.

  A statement in VSR's grammar ("The SUBJ is RELATION the OBJ.") is read by this grammar, since VSR misspells some of
  its `subj` and `obj` fields. In any other caption the given `subj` becomes X and `obj` Y; without them the objects
  that the caption's relation is about, or else the first two objects that COCO knows, in the order of their mention.

  >>> mask_objects("The potted plant is at the right side of the dining table.")
  'The X is at the right side of the Y.'
  >>> mask_objects("To the left of the dog you can see a cat.")
  'To the left of the Y you can see a X.'
  >>> mask_objects("A cat snuggles up to a dog.")
  'A X snuggles up to a Y.'
  >>> mask_objects("A lamp sits on my mug", "lamp", "mug")
  'A X sits on my Y'
  """
  reading = read_relation(caption)
  read = reading and (reading.subject, reading.other)
  if (statement := read_statement(caption)) and _is_masked_by_grammar(statement, read):
    return f"The X {statement[1]} the Y."
  if subj or obj:
    return _replaced(caption, {obj: "Y"} | {subj: "X"})
  if read:
    return _replaced(caption, dict(zip(read, "XY", strict=True)))
  mentioned = dict.fromkeys(name.casefold() for name in _OBJECTS.findall(caption))
  return _replaced(caption, dict(zip(mentioned, "XY", strict=False)))


def object_names(caption: str) -> tuple[str, str]:
  """Returns the names of the objects that the caption's relation is about; ("", "") if they cannot be read.

  >>> object_names("The cat is left of the dog from the dog's point of view.")
  ('cat', 'dog')
  >>> object_names("To the left of the dog you can see a cat.")
  ('cat', 'dog')
  """
  reading = read_relation(caption)
  read = reading and (reading.subject, reading.other)
  statement = read_statement(caption)
  if statement and (not read or _is_masked_by_grammar(statement, read)):
    return statement[0], statement[2]
  return read or ("", "")


def _is_masked_by_grammar(statement: tuple[str, str, str], read: tuple[str, str] | None) -> bool:
  """Whether subject and object of the statement are two names: "dog from the cat" is none."""
  subj, relation, obj = statement
  if read:
    return read == (subj.casefold(), obj.casefold())
  phrase = relation.removeprefix("is ").removeprefix("are ")
  return is_name(obj) and (is_name(subj) or bool(_PHRASE.fullmatch(phrase)))


def _replaced(caption: str, letters: Mapping[str, str]) -> str:
  letters = {name.casefold(): letter for name, letter in letters.items() if name}
  if not letters:
    return caption
  names = re.compile(rf"\b{_alternatives(letters)}\b", re.IGNORECASE)
  return names.sub(lambda match: letters[match[0].casefold()], caption)


def _alternatives(names: Iterable[str]) -> str:
  return f"(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})"


_OBJECTS = re.compile(rf"\b{_alternatives(_COCO_OBJECTS)}(?:s|es)?\b", re.IGNORECASE)
_PHRASE = re.compile("|".join(WORDINGS.values()))
