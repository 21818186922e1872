"""Stored answers, and the answers of the majority baseline."""

import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, get_origin

from etils import epath

from spatial_vlm.answer_extraction import extract_word
from spatial_vlm.answers import Box
from spatial_vlm.data.records import Example
from spatial_vlm.jsonl import parse_json
from spatial_vlm.text import short_line

CANNOT_TELL = 1_000_000
"""Verdict of an answer that says "Cannot tell."; no label has it, so that such an answer is never right."""


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One stored answer: a line of JSON in a file from which an interrupted evaluation resumes."""

  id: int
  """Number of the example in its source; pairs the answers of two methods."""
  caption: str
  relation: str
  """Of the record; several are separated by commas, as in POPE's TSV (see `relations`)."""
  label: int
  """The right verdict; for statements 1 true, 0 false."""
  verdict: int
  """The strict verdict (for statements 1 yes, 0 no); −1 when the answer does not parse or was cut off.

  CANNOT_TELL where the question offered that option and the answer took it.
  """
  text: str
  """The generated answer without its end-of-turn token.

  It decides the parse rate, also where the verdict came from log-probabilities.
  """
  boxes_true: dict[str, Box]
  generated_tokens: int
  prompt_tokens: int
  """Number of tokens (text, image and retrieved behavior) that the model reads before it answers."""
  truncated: bool
  retrieved: str | None = None
  """Name of the behavior in the prompt; None where none is similar enough or the method retrieves none."""
  seconds: float | None = None
  """Wall-clock time of this answer alone, retrieval included; None when it was answered in a batch."""
  extracted: int = -1
  """The verdict that the text states in whatever form (`answer_extraction`); −1 where it states none."""
  image: str = ""
  """Name of the record's image, under a control too; records of one image make contrastive pairs."""
  strata: dict[str, str] = dataclasses.field(default_factory=dict)
  """Name of a stratum → its value for the record, such as {"votes": "unanimous"}."""
  group: str = ""
  """Answers with the same group count only together (circular evaluation); "": the answer counts alone."""

  is_short: bool = False
  """Whether the answer is a word or a number: label 0 is then the right one, whatever it is."""

  @classmethod
  def about(cls, example: Example, **answer: Any) -> "Prediction":
    """Returns the answer to an example; `answer` has the fields that the example does not determine."""
    record = example.record
    return cls(
      id=example.id,
      caption=record.caption,
      relation=record.relation,
      label=record.label,
      boxes_true=example.boxes,
      image=record.image,
      strata=dict(record.strata),
      group=record.group,
      is_short=bool(record.right),
      **answer,
    )

  @property
  def relations(self) -> list[str]:
    """The relations under which the answer is counted."""
    return [name.strip() for name in self.relation.split(",")]

  @property
  def right(self) -> bool:
    """Whether the strict verdict is the label."""
    return self.verdict == self.label

  @property
  def right_extracted(self) -> bool:
    """Whether the extracted verdict is the label."""
    return self.extracted == self.label

  def to_json(self) -> str:
    """Returns one line, without a line break."""
    return json.dumps(dataclasses.asdict(self))

  @classmethod
  def from_json(cls, line: str | bytes) -> "Prediction":
    """Reads a line of `to_json`; raises ValueError for anything else, such as a line cut off by a kill.

    Lines of earlier versions, which only answered statements, lack `extracted`: it is read from their text, and is the
    verdict where no text was generated.
    """
    try:
      fields = parse_json(line.encode() if isinstance(line, str) else line)
      if "extracted" not in fields:
        generated = fields["generated_tokens"] > 0
        fields["extracted"] = extract_word(fields["text"]) if generated else fields["verdict"]
      boxes = {
        name: (int(a), int(b), int(c), int(d))
        for name, (a, b, c, d) in fields["boxes_true"].items()
      }
      prediction = cls(**fields | {"boxes_true": boxes})
      for field in dataclasses.fields(cls):
        _check_type(field.name, getattr(prediction, field.name), field.type)
      return prediction
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
      raise ValueError(
        f"not a stored prediction ({short_line(repr(error))}): {line[:80]!r}"
      ) from error


def read_predictions(workdir: epath.Path) -> list[Prediction]:
  """Returns the predictions of a finished evaluation.

  Raises:
    OSError: the workdir has none, or they cannot be read.
    ValueError: a line is none of `Prediction.to_json`.
  """
  lines = (workdir / "predictions.jsonl").read_bytes().splitlines()
  return [Prediction.from_json(line) for line in lines]


def _check_type(name: str, value: Any, kind: Any) -> None:
  """Raises ValueError unless the value has the type of a field and is finite."""
  kind = dict if get_origin(kind) is dict else kind
  is_of_kind = isinstance(value, kind) and (kind is bool or type(value) is not bool)
  if not is_of_kind or (isinstance(value, float) and not math.isfinite(value)):
    raise ValueError(f"{name} is {value!r}")


def majority_predictions(
  train: Iterable[tuple[str, int]], test: Iterable[Example]
) -> list[Prediction]:
  """Answers every test example with the most frequent label of its relation in the training split.

  `train` holds (relation, label). A question that asks for a word or a number is not answered. The larger label wins a
  tie, so that a tied statement is called true; a relation without training records takes the label that is most
  frequent over all. Nothing is generated: there is neither text nor tokens.
  """
  counts: dict[str, Counter[int]] = defaultdict(Counter)
  for relation, label in train:
    counts[relation][label] += 1
  overall = sum(counts.values(), Counter())

  def verdict(example: Example) -> int:
    if example.record.right:
      return -1
    seen = counts.get(example.record.relation, overall)
    return max(seen, key=lambda label: (seen[label], label), default=-1)

  nothing = {"text": "", "generated_tokens": 0, "prompt_tokens": 0, "truncated": False}
  return [
    Prediction.about(example, verdict=said, extracted=said, **nothing)
    for example in test
    for said in [verdict(example)]
  ]
