"""Chains of drafts: what they contain is parsed back."""

from hypothesis import given
from synthesis_drafts import DRAFT, DRAFTS

from spatial_vlm import answers
from spatial_vlm.synthesis.draft import Draft, chain
from spatial_vlm.synthesis.formats import CHAIN


@given(DRAFTS)
def test_chains_return_text_and_valid_boxes(draft):
  boxes = {name: box for name, box in draft.objects if box[0] < box[2] and box[1] < box[3]}
  answer = answers.STATEMENT.parse(chain(draft))
  assert answer is not None and answer.verdict == draft.verdict
  assert list(answer.boxes.items()) == list(boxes.items())
  if len(boxes) == len(draft.objects):
    assert CHAIN.parse(CHAIN.render(draft)) == draft


def test_a_caption_without_a_full_stop_gets_one():
  caption = "A cat and a mug"
  boxes = answers.STATEMENT.parse(chain(Draft("a", caption, DRAFT.objects, "b", 0))).boxes
  assert list(boxes.items()) == list(DRAFT.objects)
