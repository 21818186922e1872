"""Chains that exist already: files of `synthesize` become solutions."""

import json

import pytest

from spatial_vlm import answers
from spatial_vlm.data import conversations
from spatial_vlm.data.conversations import Conversation
from spatial_vlm.data.records import Record, TooManyBadRecords
from spatial_vlm.reuse.chains.solutions import source_record
from spatial_vlm.synthesis import formats
from spatial_vlm.synthesis.chain_file import read_chains
from spatial_vlm.synthesis.draft import Draft, chain
from spatial_vlm.synthesis.formats import CHAIN_QUESTION

CAPTION = "The cat is left of the mug."
DRAFT = Draft("s", "A cat.", (("cat", (0, 0, 9, 9)), ("mug", (20, 0, 40, 9))), "x=4 < x=30", 0)


def conversation(**changes):
  fields = {"image": "a.jpg", "question": CHAIN_QUESTION(CAPTION).text, "answer": chain(DRAFT)}
  return Conversation(**fields | changes)


def accepted(response_format):
  record = Record("b.jpg", "", CAPTION, 0, "left of", 1, "[]", "[]", "cat", "mug")
  text = response_format.render(DRAFT)
  return record.to_json() | {"key": "k", "attempt": 0, "rejections": [], "text": text}


def read(path, max_bad_share=0.0):
  return read_chains(path, "train", CHAIN_QUESTION, max_bad_share)


def test_conversations_give_caption_label_and_line(tmp_path):
  path = tmp_path / "chains.jsonl"
  conversations.write(path, [conversation(), conversation(image="c.jpg")])
  file = read(path)
  assert [s.record for s in file.solutions] == [
    source_record("train", 1, ("a.jpg", CAPTION)),
    source_record("train", 2, ("c.jpg", CAPTION)),
  ]
  solution = file.solutions[1]
  assert (solution.caption, solution.label, solution.relation) == (CAPTION, 0, "left of")
  assert solution.text == chain(DRAFT) and solution.names == ("cat", "mug")
  assert file.images == ["a.jpg", "c.jpg"] and file.pairs[0] == ("a.jpg", CAPTION)


@pytest.mark.parametrize("response_format", [formats.GEMINI, formats.QWEN, formats.CHAIN])
def test_accepted_answers_of_every_teacher_give_the_same(tmp_path, response_format):
  path = tmp_path / "accepted.jsonl"
  path.write_text(json.dumps(accepted(response_format)) + "\n")
  (solution,) = read(path).solutions
  assert (solution.caption, solution.label, solution.subj) == (CAPTION, 0, "cat")
  assert answers.STATEMENT.parse(solution.text).boxes == dict(DRAFT.objects)


@pytest.mark.parametrize(
  ("line", "reason"),
  [
    ("{", "Expecting property name"),
    ('{"image": "a"}', "a conversation is a JSON object"),
    (json.dumps(conversation(question="Where is the cat?").to_json()), "no question for a full"),
    (json.dumps(conversation(answer="Yes.").to_json()), "no question for a full chain"),
    (json.dumps(accepted(formats.GEMINI) | {"text": "{}"}), "no chain in the format of a teacher"),
    (json.dumps(accepted(formats.GEMINI) | {"label": "yes"}), "label 0 or 1"),
    (json.dumps(accepted(formats.GEMINI) | {"text": None}), "must be text"),
    (json.dumps(accepted(formats.GEMINI) | {"subj": 3}), "subj and obj must be text or null"),
    (json.dumps(accepted(formats.GEMINI) | {"obj": ["mug"]}), "subj and obj must be text or null"),
  ],
)
def test_bad_lines_are_counted_with_their_reason(tmp_path, line, reason):
  path = tmp_path / "chains.jsonl"
  path.write_text(f"{json.dumps(conversation().to_json())}\n{line}\n")
  with pytest.raises(TooManyBadRecords, match=reason):
    read(path)
  file = read(path, max_bad_share=0.5)
  assert len(file.solutions) == 1 and [bad.line for bad in file.bad] == [2]


def test_an_empty_file_is_refused(tmp_path):
  (tmp_path / "chains.jsonl").write_text("\n")
  with pytest.raises(ValueError, match="chains.jsonl holds no record"):
    read(tmp_path / "chains.jsonl")
