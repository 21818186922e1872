"""Tasks: their names, and that one with four choices needs no change to answers, rewards or scores."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_vlm.answers import STATEMENT, Grammar
from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmark_record import BenchmarkRecord
from spatial_vlm.evaluation.predictions import Prediction, majority_predictions
from spatial_vlm.evaluation.results import result_row, results_table
from spatial_vlm.evaluation.scores import score
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.rewards.accuracy import accuracy_reward
from spatial_vlm.rewards.verdict_automaton import compile_automaton, verdicts
from spatial_vlm.tasks import TASKS, find_task, find_training_task
from spatial_vlm.tasks.task import Task

LETTERS = "ABCD"
STEPS = r"Reasoning: (?P<reasoning>[^ \n][^\n]*)\nAnswer: "
CHOICES = Grammar(
  forms={"chain": STEPS, "direct": ""},
  verdicts={i: rf"{letter}\." for i, letter in enumerate(LETTERS)},
)


def question(caption, form):
  return f"{caption} {'Think first.' if form == 'chain' else 'Answer with one letter.'}"


CHOICE_TASK = Task(
  read=lambda records, images, boxes, max_bad_share: [],
  question=question,
  behavior_prompt="Use {}".format,
  grammar=CHOICES,
  first_words=dict(enumerate(LETTERS)),
  score=functools.partial(score, grammar=CHOICES),
)

PIECES = [bytes([b]) for b in range(256)] + [
  *(
    b"A.",
    b"B",
    b"C.",
    b"D",
    b".",
    b"Reasoning: ",
    b"Reason",
    b"ing: ",
    b"\nAnswer: ",
    b"Answer: D.",
  ),
  *("é".encode(), "左".encode()[:2], b"x=20 < x=40", b"\n", b" "),
]
EOS = len(PIECES)
AUTOMATON = compile_automaton(CHOICES, [*PIECES, b""], EOS)
T = 80
run = jax.jit(verdicts)


def on_device(tokens):
  row = np.full(T, EOS)
  row[: len(tokens)] = tokens
  return int(run(AUTOMATON, row, np.arange(T) <= len(tokens)))


def by_parsing(tokens):
  text = b"".join(PIECES[token] for token in tokens).decode(errors="replace")
  answer = CHOICES.parse(text)
  return -1 if answer is None else answer.verdict


pieces = st.lists(st.integers(0, len(PIECES) - 1), max_size=8)
bodies = st.lists(st.sampled_from([*b"xyz =<", *range(256, len(PIECES))]), min_size=1, max_size=8)


@st.composite
def answers(draw):
  """An answer, with up to two places where tokens are inserted or removed."""
  ending = [*draw(st.sampled_from([b"A.", b"B.", b"C.", b"D.", b"E.", b"A", b"Yes."]))]
  chain = [*b"Reasoning: ", *draw(bodies), *b"\nAnswer: "]
  tokens = draw(st.sampled_from([chain, []])) + ending
  for _ in range(draw(st.integers(0, 2))):
    at = draw(st.integers(0, len(tokens)))
    tokens = tokens[:at] + draw(pieces)[:2] + tokens[at + draw(st.integers(0, 2)) :]
  return tokens[: T - 1]


@settings(max_examples=300)
@given(answers())
def test_parser_and_automaton_agree_on_four_choices(tokens):
  assert on_device(tokens) == by_parsing(tokens)


@settings(max_examples=200)
@given(pieces)
def test_parser_and_automaton_agree_on_random_tokens(tokens):
  assert on_device(tokens) == by_parsing(tokens)


@pytest.mark.parametrize(("letter", "verdict"), [(letter, i) for i, letter in enumerate(LETTERS)])
@pytest.mark.parametrize("prefix", ["", "Reasoning: x=20 < x=40\nAnswer: "])
def test_the_verdict_is_the_index_of_the_choice(letter, verdict, prefix):
  text = f"{prefix}{letter}."
  assert CHOICES.parse(text).verdict == on_device([*text.encode()]) == verdict
  for other in (f"{text} ", f"{prefix}E.", f"{prefix}{letter}", f"{prefix}A.B."):
    assert CHOICES.parse(other) is None and on_device([*other.encode()]) == -1


def test_rewards_compare_the_choice_with_its_label():
  verdict = np.array([0, 1, 2, 3, 3, -1])
  label = np.array([0, 1, 2, 3, 0, 0])
  assert accuracy_reward(verdict, label).tolist() == [1, 1, 1, 1, -1, -1]


def predictions():
  """Eight answers, of which the first five are right, one does not parse and one is cut off."""
  words = ["A.", "B.", "Reasoning: x\nAnswer: C.", "D.", "A.", "B.", "Beta", "C."]
  labels = [0, 1, 2, 3, 0, 2, 1, 2]
  verdicts = [0, 1, 2, 3, 0, 1, -1, -1]
  return [
    Prediction(
      id=i,
      caption="Which object is left of the mug? A. cat B. dog C. hat D. bus",
      relation="left of",
      label=labels[i],
      verdict=verdicts[i],
      text=words[i],
      boxes_true={},
      generated_tokens=2,
      prompt_tokens=30,
      truncated=i == 7,
    )
    for i in range(8)
  ]


def test_scores_are_accuracy_with_wilsons_interval_and_nothing_of_yes_and_no():
  scores = CHOICE_TASK.score(predictions())
  assert (scores["n"], scores["right"], scores["accuracy"]) == (8, 5, 5 / 8)
  z, n, p = 1.959964, 8, 5 / 8  # Wilson 1927
  centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  expected = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
  np.testing.assert_allclose((scores["ci_low"], scores["ci_high"]), expected, atol=1e-6)
  assert scores["parse_rate"] == 6 / 8
  assert not {"f1", "yes_rate", "balanced_accuracy", "pairs", "box_iou", "by_category"} & {*scores}
  assert "62.5 %" in results_table([result_row("direct", scores)])


def test_the_majority_is_the_most_frequent_choice():
  train = [("left of", 2), ("left of", 2), ("left of", 3), ("near", 1), ("near", 0)]
  example = dataclasses.make_dataclass("Example", ["id", "record", "boxes"])
  names = ["left of", "near", "never trained"]
  examples = [example(i, BenchmarkRecord("", "", 0, name), {}) for i, name in enumerate(names)]
  found = majority_predictions(train, examples)
  assert [p.verdict for p in found] == [2, 1, 2]  # the larger of a tie; the most frequent of all


def test_a_task_words_its_own_questions():
  built = QuestionBuilder(CHOICE_TASK, "direct")("Which? A. cat B. dog C. hat D. bus")
  assert built.text == "Which? A. cat B. dog C. hat D. bus Answer with one letter."


def test_tasks_have_names():
  assert find_task("vsr").grammar is find_task("scenes").grammar is STATEMENT
  assert {*TASKS} >= {"vsr", "scenes", "mmbench", "cvbench"}
  with pytest.raises(UsageError, match="task is 'vrs'; choose one of vsr, scenes, vsr-zeroshot"):
    find_task("vrs")


def test_benchmarks_are_not_trained_on():
  assert find_training_task("vsr") is find_task("vsr")
  with pytest.raises(UsageError, match="task is 'pope', a benchmark, .* train on one of vsr, scen"):
    find_training_task("pope")


@pytest.mark.parametrize(
  ("forms", "verdicts", "message"),
  [
    ({}, {0: "A"}, "needs a form"),
    ({"direct": ""}, {}, "needs a form"),
    ({"direct": ""}, {-1: "A"}, "at least 0"),
    ({"direct": "é"}, {0: "A"}, "not ASCII"),
  ],
)
def test_grammars_that_cannot_be_compiled_are_refused(forms, verdicts, message):
  with pytest.raises(ValueError, match=message):
    Grammar(forms, verdicts)


def test_a_task_without_explanations_refuses_to_explain():
  with pytest.raises(UsageError, match="the task explains no form; choose 'plain'"):
    CHOICE_TASK.explained()
