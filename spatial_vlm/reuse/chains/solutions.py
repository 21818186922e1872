"""Answers to labelled training records, from which behaviors are extracted."""

import dataclasses

from spatial_vlm.data.split_guard import Pair, pair_digest
from spatial_vlm.data.statement import read_statement
from spatial_vlm.reuse.statements.masking import mask_objects, object_names
from spatial_vlm.reuse.statements.relation_keys import relation_key


def source_record(split: str, number: int, pair: Pair) -> str:
  """Returns how a behavior names the record that it was extracted from (see `Behavior.provenance`)."""
  return f"{split}:{number}:{pair_digest(pair)}:{pair_digest(('', pair[1]))}"


@dataclasses.dataclass(frozen=True)
class Solution:
  """An answer of the policy to a labelled training record."""

  record: str
  """From `source_record`."""
  caption: str
  relation: str
  """Of the record; where that has none, it is read from the caption, "" if it cannot be read."""
  subj: str | None
  obj: str | None
  """Names of the objects; None where the record has none: they are then read from the caption."""
  text: str
  label: int

  def __post_init__(self):
    if not self.relation:
      object.__setattr__(self, "relation", _read_relation(self.caption))

  @property
  def names(self) -> tuple[str, str]:
    subj, obj = object_names(self.caption)
    return self.subj or subj, self.obj or obj

  @property
  def question(self) -> str:
    """The object-masked caption."""
    return mask_objects(self.caption, *self.names)


def _read_relation(caption: str) -> str:
  """Returns the key of the relation; for a relation that has no key, its words in a caption of VSR's grammar."""
  if key := relation_key(caption):
    return key
  _, words, _ = read_statement(caption) or ("", "", "")
  return words.removeprefix("is ").removeprefix("are ")
