"""Reads chains that exist already, as `synthesize` writes them, as solutions from which behaviors are extracted.

A line of chains.jsonl is a conversation (image, question, answer): the caption is read from the question, and the
verdict of the answer is the label, because only such chains are written. A line of accepted.jsonl is a record with the
teacher's own text.
"""

import functools
from typing import Any, NamedTuple

from etils import epath

from spatial_vlm import answers
from spatial_vlm.data import conversations
from spatial_vlm.data.records import BadRecord, read_lines
from spatial_vlm.data.split_guard import Pair
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.jsonl import parse_json
from spatial_vlm.reuse.chains.solutions import Solution, source_record
from spatial_vlm.synthesis.draft import chain
from spatial_vlm.synthesis.errors import UnusableDraftError
from spatial_vlm.synthesis.formats import CHAIN, GEMINI, QWEN

_REMEDY = "give chains.jsonl or accepted.jsonl of `synthesize`"


class ChainFile(NamedTuple):
  """Chains of a file, in its order."""

  solutions: list[Solution]
  """The number of their records is the line of the file, counted from 1."""
  images: list[str]
  """Names of the images."""
  bad: list[BadRecord]

  @property
  def pairs(self) -> list[Pair]:
    """Image and caption of each chain."""
    return [(image, s.caption) for image, s in zip(self.images, self.solutions, strict=True)]


class _Line(NamedTuple):
  """An image, then the fields of a Solution after `record`."""

  image: str
  caption: str
  relation: str
  subj: str | None
  obj: str | None
  text: str
  label: int


def read_chains(
  path: epath.PathLike, split: str, questions: QuestionBuilder, max_bad_share: float
) -> ChainFile:
  """Reads chains.jsonl or accepted.jsonl; no image is looked up.

  Args:
    path: the file.
    split: name of the records' split.
    questions: builds the questions for full chains, from which captions are read.
    max_bad_share: share of the lines that may be bad.

  Raises:
    TooManyBadRecords: more lines are bad.
    ValueError: the file holds no line.
  """
  instruction = questions("").text
  numbered, bad = read_lines(path, None, functools.partial(_parse, instruction), max_bad_share)
  solutions = [
    Solution(source_record(split, number, (line.image, line.caption)), *line[1:])
    for number, line in numbered
  ]
  return ChainFile(solutions, [line.image for _, line in numbered], bad)


def _parse(instruction: str, line: bytes) -> _Line:
  fields = parse_json(line)
  if isinstance(fields, dict) and {"caption", "text"} <= fields.keys():
    return _accepted(fields)
  try:
    conversation = conversations.parse(line)
  except ValueError as error:
    raise ValueError(f"{error}; {_REMEDY}") from error
  caption = conversation.question.removesuffix(instruction)
  answer = answers.STATEMENT.parse(conversation.answer)
  if caption == conversation.question or answer is None or answer.form != "chain":
    raise ValueError(
      f"no question for a full chain ('CAPTION{instruction}') with its answer; {_REMEDY}"
    )
  return _Line(conversation.image, caption, "", None, None, conversation.answer, answer.verdict)


def _accepted(fields: dict[str, Any]) -> _Line:
  """Returns a line of accepted.jsonl, whose text has the format of its teacher."""
  label, text = fields.get("label"), fields["text"]
  subj, obj = fields.get("subj"), fields.get("obj")
  texts = (fields.get("image"), fields["caption"], fields.get("relation"), text)
  if not all(isinstance(value, str) for value in texts) or label not in (0, 1):
    raise ValueError("image, caption, relation and text must be text, and label 0 or 1")
  if not all(name is None or isinstance(name, str) for name in (subj, obj)):
    raise ValueError("subj and obj must be text or null")
  reasons = []
  for response_format in (GEMINI, QWEN, CHAIN):
    try:
      written = chain(response_format.parse(text))
      return _Line(
        fields["image"], fields["caption"], fields["relation"], subj, obj, written, label
      )
    except (UnusableDraftError, ValueError) as error:
      reasons.append(str(error))
  raise ValueError(f"text is no chain in the format of a teacher ({reasons[0]})")
