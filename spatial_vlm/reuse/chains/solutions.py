"""Answers to labelled training records, from which behaviors are extracted."""

import dataclasses

from spatial_vlm.data.statement import read_statement
from spatial_vlm.reuse.statements.masking import mask_objects


@dataclasses.dataclass(frozen=True)
class Solution:
  """An answer of the policy to a labelled training record."""

  record: str
  """`SPLIT:ID`."""
  caption: str
  relation: str
  subj: str | None
  obj: str | None
  """Names of the objects; None where the record has none: they are then read from the caption."""
  text: str
  label: int

  @property
  def names(self) -> tuple[str, str]:
    subj, _, obj = read_statement(self.caption) or ("", "", "")
    return self.subj or subj, self.obj or obj

  @property
  def question(self) -> str:
    """The object-masked caption."""
    return mask_objects(self.caption, *self.names)
