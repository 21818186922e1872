"""A record, a draft about it that passes every check, changed versions of both, and random drafts."""

import dataclasses

import hypothesis.strategies as st

from spatial_vlm.data.records import Record
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.synthesis.draft import Draft
from spatial_vlm.synthesis.verify.check_settings import CheckSettings

SETTINGS = CheckSettings(
  min_words=15,
  max_words=120,
  min_box_share=0.0005,
  max_box_share=0.95,
  number_tolerance=2,
  geometry_margin=80,
  decisive=("left of", "right of", "at the left side of", "at the right side of"),
  necessary=("above", "over", "below", "under", "beneath"),
)
EXACT = dataclasses.replace(
  SETTINGS, number_tolerance=0, geometry_margin=60, decisive=(*RELATIONS,)
)

CAT, MUG = (100, 201, 301, 600), (700, 400, 800, 500)
RECORD = Record(
  *("1.jpg", "", "The cat is at the left side of the mug.", 1, "at the left side of", 0),
  *("[1, 2]", "[]"),
)
DRAFT = Draft(
  summary="Is the cat at the left side of the mug?",
  caption="A cat sits on a table next to a white mug that has a label.",
  objects=(("cat", CAT), ("mug", MUG)),
  reasoning="The cat spans x=100 to x=301 with its centre at x=200, and the mug's centre is at x=750. "
  "Since x=200 < x=750, the cat is left of the mug.",
  verdict=1,
)


def change(**fields):
  """Returns the draft with other fields."""
  return dataclasses.replace(DRAFT, **fields)


def about(relation, label, **fields):
  """Returns the record with another relation and label."""
  caption = f"The cat is {relation} the mug."
  return dataclasses.replace(RECORD, caption=caption, relation=relation, label=label, **fields)


_NUMBER = st.integers(0, 1000)
_WORD = st.text("abcdefghij", min_size=1, max_size=8)
_SENTENCE = st.lists(_WORD, min_size=1, max_size=6).map(lambda words: " ".join(words) + ".")
DRAFTS = st.builds(
  Draft,
  _SENTENCE,
  st.just("") | _SENTENCE,
  st.lists(
    st.tuples(_WORD, st.tuples(_NUMBER, _NUMBER, _NUMBER, _NUMBER)),
    min_size=1,
    max_size=4,
    unique_by=lambda item: item[0],
  ).map(tuple),
  _SENTENCE,
  st.integers(0, 1),
)
"""Random drafts; their boxes may be empty."""
