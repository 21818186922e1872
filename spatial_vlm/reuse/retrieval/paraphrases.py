"""Paraphrases of VSR's relations (`assets/paraphrases.json`), and statements that are easily confused with them.

Every relation has sentences for training an encoder, for calibrating its least similarity, and for reports
("held_out"). The last two are never trained on.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from spatial_vlm.reuse.statements.captions import caption_template

FILE = Path(__file__).parents[2] / "assets" / "paraphrases.json"
SPLITS = ("train", "calibration", "held_out")

_VIEWPOINT_RELATIONS = (
  *("left of", "right of", "at the left side of", "at the right side of"),
  *("in front of", "behind"),
)
"""Relations whose truth depends on who looks."""
_SIDES = {"left of": "on its left", "right of": "on its right"}
_REVERSIBLE = (
  *(
    "behind",
    "in front of",
    "above",
    "below",
    "under",
    "beneath",
    "on top of",
    "on",
    "in",
    "inside",
  ),
  *("beside", "next to", "near", "close to", "over", "around"),
)


@dataclasses.dataclass(frozen=True)
class Sentence:
  """A sentence about {X} and {Y}."""

  template: str
  meaning: str
  """Equal for sentences that state the same: a relation, a relation with its qualifier, or any other statement."""
  relation: str | None
  """The relation that it states of X and Y without qualification, else None."""


@dataclasses.dataclass(frozen=True)
class Paraphrases:
  """The contents of FILE."""

  relations: Mapping[str, Mapping[str, Sequence[str]]]
  """Relation → split → templates with {X} and {Y}."""
  other_statements: Mapping[str, Sequence[str]]
  """Split → templates that state no relation of VSR."""
  synonyms: Sequence[Sequence[str]]
  """Groups of relations that few pictures tell apart ("under", "beneath", "below")."""

  def same(self, relation: str) -> frozenset[str]:
    """Returns the relation and its synonyms."""
    return frozenset({relation}.union(*(group for group in self.synonyms if relation in group)))

  def sentences(self, relation: str, split: str) -> list[Sentence]:
    """Returns the paraphrases of a relation."""
    return [Sentence(text, relation, relation) for text in self.relations[relation][split]]

  def confusables(self, relation: str, split: str) -> list[Sentence]:
    """Returns statements in the words of a relation that mean something else.

    Negations of its caption in VSR's grammar and of each paraphrase, statements from Y's viewpoint, and statements with
    exchanged roles. Those of the split "train" are worded differently from all others.
    """
    own = split == "train"
    plain = [caption_template(relation), *self.relations[relation][split]]
    found = [
      Sentence(negated(t, variant), f"not {relation}", None)
      for number, t in enumerate(plain)
      for variant in ([number % 2, 2] if own else [3 + number % 2])
    ]
    if relation in _VIEWPOINT_RELATIONS:
      views = _VIEWS[split]
      meaning = f"{relation} from a viewpoint"
      found += [
        Sentence(views[i % len(views)].format(t.rstrip("."), t[0].lower() + t[1:]), meaning, None)
        for i, t in enumerate(plain)
      ]
    phrase = _SIDES.get(relation) or (f"{relation} it" if relation in _REVERSIBLE else "")
    if phrase:
      texts = _REVERSED[split]
      found += [Sentence(t.format(phrase), f"reversed {relation}", None) for t in texts]
    return found

  def others(self, split: str) -> list[Sentence]:
    """Returns statements of no relation of VSR, each with a meaning of its own."""
    return [Sentence(text, text, None) for text in self.other_statements[split]]


_VIEWS = {
  "train": (
    "{0} from the {{Y}}'s point of view.",
    "From the perspective of the {{Y}}, {1}",
    "{0}, as seen from the {{Y}}.",
  ),
  "calibration": ("{0} from the {{Y}}'s perspective.", "From where the {{Y}} stands, {1}"),
  "held_out": ("{0} from the viewpoint of the {{Y}}.", "From the {{Y}}'s view, {1}"),
}
_REVERSED = {
  "train": ("The {{Y}} has the {{X}} {}.", "There is a {{Y}} that has a {{X}} {}."),
  "calibration": ("The {{Y}} has a {{X}} {}.",),
  "held_out": ("The {{Y}} with the {{X}} {}.", "You can see a {{Y}} with a {{X}} {}."),
}


@functools.cache
def read_paraphrases() -> Paraphrases:
  """Reads FILE."""
  return Paraphrases(**json.loads(FILE.read_text()))


def negated(template: str, variant: int) -> str:
  """Returns the negation of a sentence in one of five wordings.

  >>> [negated("The {X} is by the {Y}.", variant) for variant in (1, 3)]
  ['The {X} is not by the {Y}.', "The {X} isn't by the {Y}."]
  """
  clause = template[0].lower() + template[1:]
  prefix = ("It is not true that", "", "It is wrong that", "", "It is false that")[variant]
  if not prefix:
    verb, negation = (" is ", {1: " is not ", 3: " isn't "}[variant])
    if verb in template:
      return template.replace(verb, negation, 1)
    prefix = "It is not the case that"
  return f"{prefix} {clause}"
