"""Questions from the fields of rows: options, right answers, wording."""

import pytest

from spatial_vlm.data.benchmarks.fields import (
  choice,
  choice_record,
  short_record,
  shuffled_record,
  yes_no,
  yes_no_record,
)

OPTIONS = ("the cat", "the dog", "", "none")


@pytest.mark.parametrize(
  ("answer", "number"),
  [
    *(("B", 1), ("(B)", 1), ("b", 1), ("B.", 1), (" [B] ", 1), ("the dog", 1), ("The dog.", 1)),
    *(("None", 3), (3, 3), ("3", 3), ("D", 3), (0, 0)),
  ],
)
def test_right_options_are_letters_texts_and_numbers(answer, number):
  assert choice(answer, OPTIONS) == number


@pytest.mark.parametrize(
  "answer", ["C", 2, "E", -1, 4, None, "hidden", "", True, 1.0, "the", "A, B", "?", "\n"]
)
def test_what_names_no_option_is_a_fault(answer):
  with pytest.raises(ValueError, match="names none of the options"):
    choice(answer, OPTIONS)


def test_options_may_go_beyond_d_and_skip_a_letter():
  row = {
    "question": "Who?",
    "answer": "G",
    "hint": None,
    **{letter: f"no {letter}" for letter in "ABDEFG"},
  }
  record = choice_record(row)
  assert (
    record.options == ("no A", "no B", "", "no D", "no E", "no F", "no G") and record.label == 6
  )
  listed = "\n".join(f"{letter}. no {letter}" for letter in "ABDEFG")
  assert record.caption == f"Question: Who?\nOptions:\n{listed}"
  with pytest.raises(ValueError, match="names none"):
    choice_record({**row, "answer": "C"})
  whole = {letter: letter.lower() * 2 for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
  assert choice_record({"question": "Who?", "answer": "Z", **whole}).label == 25


def test_hints_come_first_and_strata_are_those_of_the_row():
  row = {"question": "Who?", "A": "x", "B": "y", "answer": "B", "hint": "Look.", "source": "COCO"}
  record = choice_record(row, relation=("task", "category"), strata=("source", "type"))
  assert record.caption.startswith("Hint: Look.\nQuestion: Who?\nOptions:\nA. x\n")
  assert (record.relation, record.strata) == ("all", {"source": "COCO"})


@pytest.mark.parametrize(
  ("listed", "options"),
  [
    (["left", "right"], ("left", "right")),
    (["(A) left", "(B) right"], ("left", "right")),
    (["A. left", "B. right"], ("left", "right")),
    (["A is closer", "B is closer"], ("A is closer", "B is closer")),
    ("['left', \"it's right\"]", ("left", "it's right")),
    ([2, 3], ("2", "3")),
  ],
)
def test_lists_of_options_lose_their_own_letters(listed, options):
  row = {"question": "Which?", "choices": listed, "answer": "(B)"}
  assert choice_record(row).options == options


@pytest.mark.parametrize(
  "options", [None, [], ["one"], "left, right", ["x"] * 27, {"a": 1}, ["", "b"]]
)
def test_rows_without_options_are_bad(options):
  with pytest.raises(ValueError, match="options"):
    choice_record({"question": "Which?", "choices": options, "answer": "A"})


@pytest.mark.parametrize("question", [None, "", " ", 3])
def test_rows_without_a_question_are_bad(question):
  with pytest.raises(ValueError, match="question is"):
    choice_record({"question": question, "A": "x", "B": "y", "answer": "A"})


@pytest.mark.parametrize(
  "wording",
  [
    *("", " Please answer yes or no.", "\nPlease answer yes or no", " Answer with Yes or No."),
    " Please answer yes or no. Please answer strictly Yes or No.",
    ' Answer the question with "yes" or "no".',
  ],
)
def test_the_files_instruction_is_no_part_of_the_question(wording):
  row = {"question": f"The cat is left of the mug.{wording}", "answer": "Yes"}
  record = yes_no_record(row)
  assert (record.caption, record.label) == ("The cat is left of the mug.", 1)


def test_a_question_about_yes_and_no_stays():
  question = "Does the sign say yes or no to dogs?"
  assert yes_no_record({"question": question, "answer": "no"}).caption == question


@pytest.mark.parametrize(
  ("answer", "label"),
  [("yes", 1), ("No", 0), ("NO.", 0), (1, 1), ("0", 0), (True, 1), ("False", 0)],
)
def test_yes_and_no_have_several_dresses(answer, label):
  assert yes_no(answer) == label


@pytest.mark.parametrize("answer", [None, "", "maybe", 2, "yes no", "A"])
def test_other_answers_are_no_yes_and_no_no(answer):
  with pytest.raises(ValueError, match="must be yes or no"):
    yes_no(answer)


def test_short_answers_are_letters_words_or_numbers():
  """RealWorldQA: options stand in the question, and what to answer with."""
  end = "Please answer directly with only the letter of the correct option and nothing else."
  lettered = short_record(
    {"question": f"How wide?\n\nA. one\nB. two\nC. three\n{end}", "answer": "C"}
  )
  assert (lettered.options, lettered.label, lettered.right) == (("one", "two", "three"), 2, "")
  end = "Please answer directly with a single word or number."
  number = short_record({"question": f"How many?\n{end}", "answer": "4"})
  assert (number.options, number.label, number.right) == ((), 0, "4")
  assert number.caption.endswith(end)
  letter = short_record({"question": f"Which letter is on the sign? {end}", "answer": "A"})
  assert (letter.options, letter.right) == ((), "A")
  tsv = short_record({"question": "How wide?", "A": "one", "B": "two", "answer": "B"})
  assert (tsv.options, tsv.label) == (("one", "two"), 1)


def test_shuffled_options_are_the_same_in_every_run_and_the_first_is_not_always_right():
  captions = ["on", "under", "left of", "right of"]
  records = [shuffled_record(f"{n}.jpg", "Which?", captions, "on", {}) for n in range(40)]
  assert records == [shuffled_record(f"{n}.jpg", "Which?", captions, "on", {}) for n in range(40)]
  assert all(r.options[r.label] == "on" and sorted(r.options) == sorted(captions) for r in records)
  assert {r.label for r in records} == {0, 1, 2, 3}
