"""What texts state, in forms that nobody asked for."""

import json

import pytest

from spatial_vlm.answer_extraction import (
  TRUE_FALSE,
  conclusion,
  extract_option,
  extract_short,
  extract_word,
)
from spatial_vlm.answers import STATEMENT
from spatial_vlm.evaluation.predictions import Prediction

CHAIN = "Summary: a\nCaption: b\nReasoning: there is no gap, so they touch\nConclusion: "


@pytest.mark.parametrize(
  ("text", "verdict"),
  [
    *(("Yes", 1), ("**Yes**", 1), ("yes.", 1), ("Conclusion: Yes.", 1), ("No, it is not.", 0)),
    *(("YES!", 1), ("`No`", 0), ('"No."', 0), ("The answer is: **No**", 0), ("Answer:\nyes", 1)),
    *((f"{CHAIN}Yes.", 1), (f"{CHAIN}No.", 0), (f"**{CHAIN[:-2]}:** Yes", 1)),
    ("<think>No gap, so yes? No.</think>\n\nYes", 1),
    ("<think>Yes, yes", -1),  # the thought was cut off
    (CHAIN.removesuffix("\nConclusion: "), -1),  # the steps were cut off
    *(("Yes or no?", -1), ("", -1), ("Not at all.", -1), ("Nobody knows.", -1), ("True.", -1)),
    ("There is no doubt: yes", -1),  # both words, as in VLMEvalKit
    (r"\boxed{No}", 0),
    *(("Yes, the answer is clear.", 1), ("No. My answer is based on the image.", 0)),
    *(
      ("Reasoning: it touches. Yes.", 1),
      ("Reasoning: it touches. Yes", -1),
      ("No gap. Answer:", -1),
    ),
  ],
)
def test_exactly_one_of_yes_and_no_counts(text, verdict):
  assert extract_word(text) == verdict


@pytest.mark.parametrize("text", ["Yes", "**Yes**", "yes.", "Conclusion: Yes."])
def test_answers_that_do_not_parse_are_extracted(text):
  assert STATEMENT.parse(text) is None and extract_word(text) == 1


def test_a_template_has_its_own_words():
  assert extract_word("**False**", TRUE_FALSE) == 0 and extract_word("False") == -1


OPTIONS = ("the cat", "a dog", "the dog house", "none", "E5", "both")


@pytest.mark.parametrize(
  ("text", "choice"),
  [
    *(("B", 1), ("B.", 1), ("(B)", 1), ("**B**", 1), ("**(B)**", 1), ("Answer: B", 1), ("b", -1)),
    *(("B. a dog", 1), ("B) a dog", 1), ("(F) both", 5), ("**F.** both", 5), ("F: both", 5)),
    *(("The correct answer is (C).", 2), ("**Final Answer:** **C**", 2), (r"\boxed{C}", 2)),
    *(("I choose option F here today", 5), ("Reasoning: A and B\nConclusion: F.", 5)),
    *(("<think>A? B?</think>(B)", 1), ("A dog is nearer to the wall", 1), ("A", 0)),
    *(("A.\nThe dog is far.", 0), ("A or B", -1), ("G", -1), ("Z", -1), ("", -1)),
    *(("neither of them", -1), ("The answer is C because A is wrong", -1)),
    *(("the cat", 0), ("It is the dog house.", 2), ("the cat and a dog", -1), ("None.", 3)),
    ("the catalogue", -1),
    *(("Answer: B\n\nThe answer is based on the image", 1), ("B. A dog is there.", 1)),
    ("The answer is (B), so my answer is final", 1),
    *(("A. or B.", -1), ("(A) or (B)", -1), ("A) and B)", -1), ("A. because B is wrong", -1)),
    ("the cat " * 20, -1),  # far longer than the options
  ],
)
def test_a_letter_in_its_usual_dresses_or_the_text_of_one_option_counts(text, choice):
  assert extract_option(text, OPTIONS) == choice


def test_letters_reach_as_far_as_the_options():
  options = [f"object {number}" for number in range(26)]
  assert [extract_option(f"({chr(65 + n)})", options) for n in range(26)] == [*range(26)]


@pytest.mark.parametrize(
  ("text", "right", "state"),
  [
    *(("3", "3", 0), ("Three.", "3", 0), ("There are 3 cars.", "3", 0), ("4", "3", 1)),
    *(("1,200", "1200", 0), ("3 of 5", "3", 1), ("-3", "3", 1), ("3.0", "3", 0), ("30", "3", 1)),
    *(("Left.", "left", 0), ("The left lane", "Left lane", 0), ("right", "Left", 1)),
    *(("Yes, it is.", "Yes", 0), ("no", "Yes", 1), ("perhaps", "Yes", -1), ("", "Left", -1)),
    *(("3. My answer is based on the image.", "3", 0), ("Yes, the answer is clear.", "Yes", 0)),
    *(("<think>left", "left", -1), ("Answer: **left**", "left", 0)),
  ],
)
def test_words_and_numbers_are_compared_with_the_right_answer(text, right, state):
  assert extract_short(text, right) == state


def test_the_last_conclusion_counts():
  assert conclusion("Answer: no\nwait\nAnswer: yes") == "yes"


def prediction(**fields):
  numbers = dict(id=0, label=1, generated_tokens=3, prompt_tokens=9)
  texts = dict(caption="c", relation="r", text="**Yes**", boxes_true={})
  return Prediction(**numbers | texts | dict(truncated=False, verdict=-1) | fields)


def test_predictions_of_earlier_versions_are_extracted_from_their_text():
  stored = prediction(extracted=1)
  assert Prediction.from_json(stored.to_json()) == stored
  assert not stored.right and stored.right_extracted
  for fields, extracted in (({}, 1), ({"text": "", "generated_tokens": 0, "verdict": 0}, 0)):
    old = json.loads(prediction(**fields).to_json())
    del old["extracted"]
    assert Prediction.from_json(json.dumps(old)).extracted == extracted
