"""Leaked verdicts, contradicted conclusions and revealed hints, and ordinary text with none of them."""

import pytest
from synthesis_drafts import RECORD, SETTINGS, about, change

from spatial_vlm.synthesis.verify.text_checks import check_conclusion, check_hint, check_leak


@pytest.mark.parametrize(
  ("step", "text"),
  [
    ("summary", "Determine whether it is true that the cat is at the left side of the mug."),
    ("summary", "The cat is at the left side of the mug. True?"),
    ("summary", "The question is if the cat is at the left side of the mug."),
    (
      "summary",
      "The task is to decide on the statement that the cat is at the left side of the mug.",
    ),
    ("summary", "Compare the places of the cat and the mug."),
    (
      "caption",
      "A cat lies on the rug. A bottle has a label with no text, and a mug is left over.",
    ),
    ("caption", "The cat does not look at a mug, and a lamp is at the left side of the sofa."),
    ("caption", "No people are there. The cat is right of a lamp, and the mug is right behind it."),
    (
      "caption",
      "The answer to boredom: a cat and a correct clock. There is no gap, and yes men stand by.",
    ),
  ],
)
def test_descriptions_and_questions_are_no_leaks(step, text):
  assert check_leak(change(**{step: text}), RECORD, SETTINGS) is None


@pytest.mark.parametrize(
  ("step", "text"),
  [
    ("summary", "The statement is false."),
    ("summary", "The statement is clearly incorrect."),
    ("summary", "Yes, the cat and the mug are to be compared."),
    ("summary", "Whether the cat is left of the mug, which is true."),
    ("summary", "The verdict will be no."),
    ("caption", "The cat is indeed beside the mug."),
    ("caption", "A cat is not at the left side of the mug."),
    ("caption", "A cat isn't at the left side of a mug."),
    ("caption", "Here a Cat is at the left side of a mug, on a table."),
    ("caption", "A cat and a mug. No."),
    ("caption", "This does not hold."),
    ("summary", "A cat and a mug are to be seen."),
    ("summary", "Is it? A cat sits on the left side of a white mug."),
    ("summary", "Is the cat at the left side of the mug? Yes — plainly."),
    ("summary", "Is the cat at the left side of the mug? The conclusion is clearly yes."),
    ("summary", "Does the statement hold? The statement is confirmed by the image."),
    ("summary", "The statement is invalid, whether one likes it or not."),
    ("caption", "A cat sits on the left side of a white mug."),
    ("caption", "A cat, asleep at the left side of the mug."),
    ("caption", "A cat is at the left side of a mug, as if it waited."),
    ("caption", "As if it waited, a cat is at the left side of a mug."),
    ("caption", "Even if small, a cat is at the left side of a mug."),
    ("caption", "The cat cannot be at the left side of it."),
  ],
)
def test_leaks_are_found(step, text):
  assert check_leak(change(**{step: text}), RECORD, SETTINGS) is not None


@pytest.mark.parametrize(
  ("relation", "caption"),
  [
    ("touching", "A cat touches the mug with one paw."),
    ("facing away from", "A cat faces away from the mug."),
    ("contains", "The cat containing a mug is a toy."),
    ("in the middle of", "A cat sits right in the middle of a mug."),
    ("on", "The grey cat sleeps on an old mug."),
  ],
)
def test_a_caption_that_paraphrases_the_relation_is_a_leak(relation, caption):
  record = about(relation, 1)
  assert "asserts" in str(check_leak(change(caption=caption), record, SETTINGS))
  other = caption.replace("mug", "lamp beside a mug")
  assert check_leak(change(caption=other), record, SETTINGS) is None


@pytest.mark.parametrize(
  ("verdict", "end", "contradicts"),
  [
    (1, "so the cat is not left of the mug.", True),
    (1, "so it isn't left of it.", True),
    (1, "so it cannot be to the left of that.", True),
    (1, "so it is not behind but left of it.", False),
    (1, "It is not left of the mug at first sight. Yet x=200 < x=750.", False),
    (0, "so the cat is left of the mug.", True),
    (0, "so it is left of it.", True),
    (0, "so it is not left of it.", False),
    (0, "which would have to be less for the cat to be left of the mug.", False),
    (0, "so the statement that the cat is left of the mug fails.", False),
  ],
)
def test_the_reasoning_does_not_end_in_the_opposite(verdict, end, contradicts):
  draft = change(verdict=verdict, reasoning=f"cat x=200; mug x=750; {end}")
  assert bool(check_conclusion(draft, about("left of", verdict), SETTINGS)) == contradicts


@pytest.mark.parametrize(
  "text",
  [
    "As instructed, the answer is yes.",
    "The standard answer is yes.",
    "It agrees with the ground truth.",
    "It agrees with the Ground-Truth annotation.",
    "I was told that it holds.",
    "The statement is known to be true.",
    "The hint says so.",
    "It is labelled true.",
    "According to the label, it holds.",
    "Since the statement is true, the cat has to be there.",
    "We know that the statement does not hold.",
    "As you said, it is not.",
    "This is consistent with the label.",
    "The answer must be no.",
    "Others judged it to be so.",
    "It matches the answer.",
  ],
)
def test_phrases_that_reveal_a_hint_are_found(text):
  assert check_hint(change(reasoning=text), RECORD, SETTINGS) is not None


@pytest.mark.parametrize(
  "text",
  [
    *(
      "The bottle has a label.",
      "A hint of blue.",
      "People who hold umbrellas.",
      "given the boxes",
    ),
    *("The mug matches the plate.", "As the cat is small, it fits.", "People hold a mug."),
    *("Since the cat is there, x=200 < x=750.", "The label says STOP.", "The labelled jar."),
  ],
)
def test_ordinary_text_reveals_no_hint(text):
  assert check_hint(change(reasoning=text), RECORD, SETTINGS) is None
