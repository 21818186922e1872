"""The grammar of statements: rendered answers are parsed back, and all other text is rejected."""

import doctest
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatial_vlm import answers

CHAIN = "Summary: a\nCaption: cat [0, 0, 20, 20]\nReasoning: b\nConclusion: Yes."

# Words of the grammar itself, so that a step may contain text like another step.
words = st.sampled_from(
  [
    "Summary:",
    "Caption:",
    "Conclusion: Yes.",
    "Yes.",
    "No.",
    "cat",
    "[1, 2, 3, 4]",
    "'x'",
    "é",
    "猫",
  ]
)
lines = st.lists(words | st.text(string.ascii_letters + string.digits, min_size=1), min_size=1)
steps = lines.map(" ".join)
verdicts = st.sampled_from([0, 1])
names = st.from_regex(r"[a-z][a-z _-]{0,8}[a-z]", fullmatch=True).filter(
  lambda name: "  " not in name
)
edges = (
  st.tuples(st.integers(0, 1000), st.integers(0, 1000))
  .filter(lambda ab: ab[0] != ab[1])
  .map(sorted)
)
boxes = st.tuples(edges, edges).map(lambda xy: (xy[0][0], xy[1][0], xy[0][1], xy[1][1]))


def test_docstrings():
  result = doctest.testmod(answers)
  assert result.attempted and not result.failed


@given(steps, steps, steps, verdicts)
def test_chain_round_trip(summary, caption, reasoning, verdict):
  text = answers.render_chain(summary, caption, reasoning, verdict)
  expected = {"summary": summary, "caption": caption, "reasoning": reasoning}
  assert answers.STATEMENT.parse(text) == answers.Answer("chain", verdict, expected)
  assert len(text.split("\n")) == 4


@given(st.from_regex(r"behavior_[a-z0-9_]+", fullmatch=True), steps, verdicts)
def test_short_round_trip(behavior, comparison, verdict):
  text = answers.render_short(behavior, comparison, verdict)
  expected = {"behavior": behavior, "comparison": comparison}
  assert answers.STATEMENT.parse(text) == answers.Answer("short", verdict, expected)


@pytest.mark.parametrize("verdict", [0, 1])
def test_direct_round_trip(verdict):
  assert answers.STATEMENT.parse(answers.render_direct(verdict)) == answers.Answer(
    "direct", verdict, {}
  )


def test_steps_are_folded_onto_one_line():
  text = answers.render_chain(" one\n\ntwo ", "a\tb", "c\r\nConclusion: No.", 1)
  assert answers.STATEMENT.parse(text).steps == {
    "summary": "one two",
    "caption": "a b",
    "reasoning": "c Conclusion: No.",
  }


@pytest.mark.parametrize("blank", ["", "   ", "\n", "\t \n"])
def test_empty_steps_are_refused(blank):
  with pytest.raises(ValueError, match="'Caption' of an answer is empty"):
    answers.render_chain("a", blank, "c", 1)
  with pytest.raises(ValueError, match="'comparison'"):
    answers.render_short("behavior_x", blank, 1)


@given(
  st.sampled_from([CHAIN, "Applying 'behavior_x': 1 < 2\nConclusion: No.", "No."]),
  st.integers(0, 200),
  st.sampled_from([" ", "\n", ".", "\x00", "Yes.", "Conclusion: No.", "\nConclusion: No.", "x\n"]),
)
def test_insertions_never_change_the_verdict(text, at, inserted):
  """Text inserted anywhere leaves the same verdict or none."""
  at = min(at, len(text))
  changed = answers.STATEMENT.parse(text[:at] + inserted + text[at:])
  assert changed is None or changed.verdict == answers.STATEMENT.parse(text).verdict
  if at in (0, len(text)):
    assert changed is None


@given(st.permutations(CHAIN.split("\n")))
def test_steps_out_of_order_are_no_answer(order):
  assert (answers.STATEMENT.parse("\n".join(order)) is not None) == (order == CHAIN.split("\n"))


@pytest.mark.parametrize(
  "text",
  [
    "",
    "yes.",
    "Yes",
    "Yes.\n",
    "\nYes.",
    "Yes. No.",
    "Maybe.",
    CHAIN.replace("Summary: a\n", ""),
    CHAIN.replace("Reasoning: b\n", ""),
    CHAIN.replace("Reasoning: b", "Reasoning: b\nReasoning: b"),
    CHAIN.replace("Summary: a", "Summary: "),
    CHAIN.replace("Summary: a", "Summary:a"),
    CHAIN.replace("Summary: a", "summary: a"),
    CHAIN.replace("\n", "\n\n"),
    CHAIN + "\nConclusion: Yes.",
    CHAIN.replace("Yes.", "Yes, no."),
    "Applying 'behavior_': x\nConclusion: Yes.",
    "Applying 'behavior_Left': x\nConclusion: Yes.",
    "Applying 'left_of': x\nConclusion: Yes.",
    "Applying behavior_x: x\nConclusion: Yes.",
    "Applying 'behavior_x': x\ny\nConclusion: Yes.",
    "Applying 'behavior_x': \nConclusion: Yes.",
  ],
)
def test_near_misses_are_no_answer(text):
  assert answers.STATEMENT.parse(text) is None


@given(st.dictionaries(names, boxes, min_size=1, max_size=4))
def test_boxes_round_trip(named):
  assert answers.parse_boxes(answers.render_boxes(named.items())) == named


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("cat [0, 0, 1001, 5]", {}),
    ("cat [5, 0, 5, 9]", {}),
    ("cat [9, 0, 5, 9]", {}),
    ("cat [-5, 0, 5, 9]", {}),
    ("cat [0, 0, 5]", {}),
    ("[0, 0, 5, 9]", {}),
    ("cat [1, 2, 3, 4], cat [5, 6, 7, 8]", {"cat": (1, 2, 3, 4)}),
    ("cat [9, 2, 3, 4], cat [5, 6, 7, 8]", {"cat": (5, 6, 7, 8)}),
    ("The red mug [1, 2, 3, 4] and", {"The red mug": (1, 2, 3, 4)}),
    ("- man's hat [1, 2, 3, 4]", {"man's hat": (1, 2, 3, 4)}),
    ("It shows: café table [1, 2, 3, 4]", {"café table": (1, 2, 3, 4)}),
    ("cafe\u0301 [1, 2, 3, 4].", {"cafe\u0301": (1, 2, 3, 4)}),
    ("a mug, 2 cats [1, 2, 3, 4]", {"2 cats": (1, 2, 3, 4)}),
    ("2 [1, 2, 3, 4]", {}),
    ("cat [1, 2, 3, " + "9" * 5000 + "]", {}),
  ],
)
def test_boxes_outside_the_image_do_not_count(text, expected):
  assert answers.parse_boxes(text) == expected


def test_the_time_to_read_boxes_grows_with_the_text():
  """A pattern that begins anew at each word takes 9 seconds for this."""
  start = time.process_time()
  assert answers.parse_boxes("a " * 16_000 + "[1, 2, 3") == {}
  assert time.process_time() - start < 1


def test_only_a_chain_has_boxes():
  assert answers.STATEMENT.parse(CHAIN).boxes == {"cat": (0, 0, 20, 20)}
  short = "Applying 'behavior_x': cat [0, 0, 20, 20]\nConclusion: Yes."
  assert answers.STATEMENT.parse(short).boxes == {}
