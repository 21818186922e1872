"""Statements that occur in two sets."""

import json
from pathlib import Path

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.data.split_guard import (
  asked_pairs,
  read_pairs,
  refuse_shared_pairs,
  refuse_shared_records,
  shared_pairs,
)
from spatial_vlm.tasks.statements import question

VSR = Path(__file__).parents[2].parent / "shared" / "vsr"

TRAINING = [("a.jpg", "The cat is left of the mug."), ("b.jpg", "The dog is in the car.")]
RECORD = {
  **{"image": "b.jpg", "image_link": "", "caption": TRAINING[1][1], "label": 1, "relation": "in"},
  **{"annotator_id": 0, "vote_true_validator_id": "[]", "vote_false_validator_id": "[]"},
}


@pytest.mark.parametrize(
  ("image", "caption", "shared"),
  [
    ("a.jpg", "The cat is left of the mug.", True),
    ("train2017/a.jpg", "the  Cat is left of\tthe mug", True),
    ("b.jpg", "The cat is left of the mug.", False),
    ("a.jpg", "The cat is right of the mug.", False),
    ("a.jpg", "The dog is in the car.", False),
  ],
)
def test_a_pair_is_recognised_in_any_spelling(image, caption, shared):
  pair = (image, caption)
  assert shared_pairs(TRAINING, [pair]) == ([pair] if shared else [])
  assert shared_pairs([pair], TRAINING) == ([TRAINING[0]] if shared else [])


@pytest.mark.parametrize(
  ("text", "asked"),
  [
    (question("The cat is left of the mug.", "chain"), True),
    (question("the Cat is  left of the mug", "direct"), True),
    (question("The cat is left of the mug.", "short"), True),
    ('Is it true that "the cat is left of the mug"?', True),
    (question("The cat is left of the mug rack.", "chain"), True),  # refused rather than missed
    (question("The cat is left of the mugs.", "chain"), False),
    ("Lathe cat is left of the mug. True?", False),
    ("List the objects.", False),
  ],
)
def test_a_pair_is_found_in_a_question_in_any_wording(text, asked):
  pair = ("train2017/a.jpg", "The cat is left of the mug.")
  assert asked_pairs([("a.jpg", text)], [pair]) == ([pair] if asked else [])
  assert not asked_pairs([("b.jpg", text)], [pair])


@pytest.mark.parametrize("suffix", [".tsv", ".json"])
def test_a_benchmarks_table_guards_nothing_and_is_refused(suffix):
  with pytest.raises(
    UsageError, match="no pair would match: for VSR-zeroshot give VSR's splits/ze"
  ):
    read_pairs(f"benchmark{suffix}")


def test_shared_pairs_are_refused_and_the_first_is_named():
  with pytest.raises(
    UsageError, match=r"(?s)^2 of the 4 evaluation pairs .* in e.jsonl.*: leave them out\..*"
  ):
    refuse_shared_pairs(TRAINING, 4, "e.jsonl", "leave them out")
  with pytest.raises(UsageError, match=r"\n  a\.jpg: The cat is left of the mug\.\n  b\.jpg: "):
    refuse_shared_pairs(TRAINING, 4, "e.jsonl", "leave them out")
  refuse_shared_pairs([], 4, "e.jsonl", "leave them out")


def test_every_evaluation_file_is_compared_with_the_training_set(tmp_path):
  files = [str(tmp_path / "other.jsonl"), str(tmp_path / "same.jsonl")]
  Path(files[0]).write_text(json.dumps(RECORD | {"image": "c.jpg"}))
  Path(files[1]).write_text(json.dumps(RECORD))
  refuse_shared_records(TRAINING, ["", files[0]], "remove them")
  with pytest.raises(UsageError, match=f"1 of the 1 evaluation pairs .* in {files[1]} .*remove"):
    refuse_shared_records(TRAINING, ["", *files], "remove them")
  questions = [(image, question(caption, "chain")) for image, caption in TRAINING]
  refuse_shared_records(questions, files, "remove them")
  with pytest.raises(UsageError, match="1 of the 1 evaluation pairs"):
    refuse_shared_records(questions, files, "remove them", asked_pairs)


def test_a_file_without_any_record_guards_nothing_and_is_refused(tmp_path):
  (tmp_path / "chains.jsonl").write_text('{"image": "a.jpg", "question": "?", "answer": "Yes."}')
  with pytest.raises(
    UsageError, match="chains.jsonl holds no record to guard against.*unknown fields"
  ):
    read_pairs(tmp_path / "chains.jsonl")


def test_a_guard_with_unreadable_lines_is_refused(tmp_path):
  """A statement on a line that cannot be read would not be kept out."""
  file = tmp_path / "test.jsonl"
  file.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD)[:-5] + "\n")
  with pytest.raises(UsageError, match=r"1 lines of .*test\.jsonl.* repair them: .*:2: "):
    read_pairs(file)
  file.write_bytes(b"\xef\xbb\xbf" + json.dumps(RECORD).encode())
  assert read_pairs(file) == [(RECORD["image"], RECORD["caption"])]


@pytest.mark.skipif(not VSR.is_dir(), reason=f"the annotations of VSR are not in {VSR}")
def test_the_splits_of_vsr_overlap():
  random_train, random_dev, zeroshot_train, zeroshot_dev = (
    read_pairs(VSR / kind / f"{split}.jsonl")
    for kind in ("random", "zeroshot")
    for split in ("train", "dev")
  )
  assert len(shared_pairs(random_train, zeroshot_dev)) == 236
  assert not shared_pairs(random_train, random_dev)
  assert not shared_pairs(zeroshot_train, zeroshot_dev)
  asked = [(image, question(caption, "chain")) for image, caption in random_train]
  assert len(asked_pairs(asked, zeroshot_dev)) == 236
  assert not asked_pairs(asked, random_dev)
