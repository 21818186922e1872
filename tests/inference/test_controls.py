"""Controls: what is shown in place of an image, and the option to say that it cannot be told."""

import dataclasses

import numpy as np
import pytest

from spatial_vlm.answers import STATEMENT
from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmark_record import BenchmarkRecord
from spatial_vlm.data.records import JsonlSource, Record
from spatial_vlm.evaluation.predictions import CANNOT_TELL
from spatial_vlm.inference.controls import (
  CONTROLS,
  ControlledSource,
  find_control,
  other_records,
  with_cannot_tell,
)
from spatial_vlm.inference.policy import encode_question
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.tasks import TASKS


@pytest.fixture(scope="module")
def boxed(scenes_folder):
  return JsonlSource(
    scenes_folder / "validation.jsonl",
    scenes_folder / "images",
    scenes_folder / "validation.boxes.jsonl",
  )


def records(images, labels):
  return [
    Record(image, "", f"The cat is near mug {i}.", label, "near", 0, "[]", "[]")
    for i, (image, label) in enumerate(zip(images, labels, strict=True))
  ]


def choices(images, labels):
  chosen = other_records(records(images, labels), images)
  assert sorted(chosen) == list(range(len(images)))  # every record's image is shown once
  assert all(images[j] != images[i] for i, j in enumerate(chosen))
  return chosen


@pytest.mark.parametrize("name", CONTROLS)
def test_only_the_image_and_its_boxes_change(boxed, name):
  controlled = ControlledSource(boxed, CONTROLS[name])
  assert len(controlled) == len(boxed) and controlled.pairs == boxed.pairs
  for i in (0, 5, len(boxed) - 1):
    shown, plain = controlled[i], boxed[i]
    assert plain.boxes and not shown.boxes and not controlled.describe(i)[1]
    assert shown == dataclasses.replace(plain, image=shown.image, boxes={})
    assert shown.image is None or not np.array_equal(shown.image, plain.image)
    assert controlled.image_name(i) == plain.record.image
    assert controlled.origin(i) == boxed.origin(i)


def test_blank_is_white_and_cannot_tell_is_grey(boxed):
  for name, value in (("blank", 255), ("cannot_tell", 128)):
    image = ControlledSource(boxed, CONTROLS[name])[0].image
    assert image.dtype == np.uint8 and image.shape == boxed[0].image.shape
    assert (image == value).all()


def test_text_only_has_no_image_in_the_prompt(boxed, policy):
  example = ControlledSource(boxed, CONTROLS["text_only"])[0]
  question = QuestionBuilder(TASKS["scenes"], "direct")(example.record.caption).text
  row = encode_question(policy.processor, example.image, question)
  assert row.images == [] and row.patches == 0
  special = policy.processor.special
  assert not {special.image, special.vision_start, special.vision_end} & {*row.tokens.tolist()}
  assert question in policy.processor.decode(row.tokens.tolist())


def test_another_image_is_that_of_another_record_with_another_label(boxed):
  controlled = ControlledSource(boxed, CONTROLS["other_image"])
  by_image = {boxed[i].image.tobytes(): i for i in range(len(boxed))}
  shown = [by_image[controlled[i].image.tobytes()] for i in range(len(boxed))]
  assert sorted(shown) == list(range(len(boxed)))
  labels = [boxed.describe(i)[0].label for i in range(len(boxed))]
  assert sum(labels) * 2 == len(labels)
  assert all(labels[j] != labels[i] for i, j in enumerate(shown))


def test_the_same_records_give_the_same_choice_and_others_another():
  images, labels = [f"{i}.png" for i in range(40)], [i % 2 for i in range(40)]
  first = choices(images, labels)
  assert first == choices(images, labels)
  assert first != choices([f"x{image}" for image in images], labels)
  assert first != [i ^ 1 for i in range(40)]  # digests, not neighbours of the file


@pytest.mark.parametrize("seed", range(20))
def test_no_record_gets_its_own_image_with_few_images_and_unequal_labels(seed):
  """As few as possible get a record of their own label: 2m − n, where m of n records have the most frequent one."""
  rng = np.random.default_rng(seed)
  n = int(rng.integers(2, 40))
  images = [f"{i // 2}.png" for i in range(n)] if n > 3 else [f"{i}.png" for i in range(n)]
  labels = rng.integers(0, 2, n).tolist()
  chosen = choices(images, labels)
  same = sum(labels[j] == labels[i] for i, j in enumerate(chosen))
  assert same <= max(0, 2 * max(sum(labels), n - sum(labels)) - n) + 2 * (n > 3)


def test_half_of_the_records_on_one_image_are_swapped_with_the_others():
  images = ["a.png"] * 6 + [f"{i}.png" for i in range(6)]
  choices(images, [0, 1] * 6)
  choices(["a.png", "b.png"], [1, 1])


def test_more_than_half_on_one_image_are_refused():
  images = ["a.png"] * 4 + [f"{i}.png" for i in range(3)]
  with pytest.raises(UsageError, match=r"4 of 7 records have the image 'a.png'"):
    other_records(records(images, [0] * 7), images)


def test_an_unknown_control_is_refused_with_the_known_ones():
  with pytest.raises(UsageError, match="control is 'black'; choose one of blank, cannot_tell"):
    find_control("black")


def test_cannot_tell_is_offered_and_read_in_every_form():
  task = with_cannot_tell(TASKS["scenes"])
  caption = "The cat is left of the mug."
  plain, offered = (t.question(caption, "direct") for t in (TASKS["scenes"], task))
  assert offered.startswith(plain) and offered != plain and "Cannot tell." in offered
  chain = "Summary: a\nCaption: b\nReasoning: c\nConclusion: Cannot tell."
  for text in ("Cannot tell.", chain):
    assert task.grammar.parse(text).verdict == CANNOT_TELL
    assert STATEMENT.parse(text) is None
  assert task.grammar.parse("Yes.").verdict == 1
  assert task.grammar.parse("Cannot tell. Yes.") is None


@pytest.mark.parametrize(
  ("text", "verdict"),
  [
    ("I can't tell.", CANNOT_TELL),
    ("Reasoning: it is not left.\nConclusion: **Cannot tell**", CANNOT_TELL),
    ("Cannot tell at first. Conclusion: Yes.", 1),
    ("no", 0),
    ("I cannot tell. My answer is based on the image.", CANNOT_TELL),
    ("perhaps", -1),
  ],
)
def test_cannot_tell_is_extracted_from_any_wording(boxed, text, verdict):
  record = boxed.describe(0)[0]
  assert with_cannot_tell(TASKS["scenes"]).extract(text, record) == verdict


@pytest.mark.parametrize("name", ["mmbench", "realworldqa", "pope", "vsr"])
def test_every_task_reads_cannot_tell_strictly(name):
  """Also a task whose answers may be any words; of them, only this one is no answer."""
  task = with_cannot_tell(TASKS[name])
  record = BenchmarkRecord("a.png", "How many?", 0, "all", ("1", "2"))
  chain = "Summary: a\nCaption: b\nReasoning: c\nConclusion: Cannot tell."
  for text in ("Cannot tell.", chain):
    assert task.strict(task.grammar, text, record) == CANNOT_TELL
  assert task.strict(task.grammar, "Cannot tell. Or can I?", record) != CANNOT_TELL
