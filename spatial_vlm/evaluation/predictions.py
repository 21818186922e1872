"""Stored answers, and those of the majority baseline."""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable

from spatial_vlm.answers import Box
from spatial_vlm.data.records import Example


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One stored answer; a line of JSON each way, so that an interrupted evaluation goes on from
  its file."""

  id: int
  """Number of the example in its source; pairs the answers of two methods."""
  caption: str
  relation: str
  label: int
  """1 true, 0 false."""
  verdict: int
  """1 yes, 0 no, −1 when the answer does not parse or was cut off."""
  text: str
  """The generated answer, without its end-of-turn token. Where the verdict came from
  log-probabilities this is still what the model wrote, and decides the parse rate."""
  boxes_true: dict[str, Box]
  generated_tokens: int
  prompt_tokens: int
  """Text, image and retrieved tokens that the model reads before it answers."""
  truncated: bool
  retrieved: str | None = None
  """Name of the behavior in the prompt; None where none was near enough or the method retrieves
  nothing."""
  seconds: float | None = None
  """Wall-clock time of this answer by itself, retrieval included; None when it was answered in a
  batch."""

  @property
  def right(self) -> bool:
    return self.verdict == self.label

  def to_json(self) -> str:
    """One line, without a line break."""
    return json.dumps(dataclasses.asdict(self))

  @classmethod
  def from_json(cls, line: str) -> "Prediction":
    """Reads a line of `to_json`. Raises ValueError for anything else (a line cut off by a kill
    among them)."""
    try:
      fields = json.loads(line)
      boxes = {
        name: (int(a), int(b), int(c), int(d))
        for name, (a, b, c, d) in fields["boxes_true"].items()
      }
      return cls(**fields | {"boxes_true": boxes})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise ValueError(
        f"not a stored prediction ({error!r}): {line[:80]!r}; delete the line to answer it again"
      ) from error


def majority_predictions(
  train: Iterable[tuple[str, int]], test: Iterable[Example]
) -> list[Prediction]:
  """The likelier label of each relation in the training split, given as the answer to every test
  example.

  `train` holds (relation, label). A tie is called true; a relation never trained on takes the label
  that is likelier over all. Nothing is generated, so there is neither text nor tokens.
  """
  counts: dict[str, Counter[int]] = defaultdict(Counter)
  for relation, label in train:
    counts[relation][label] += 1
  overall = sum(counts.values(), Counter())

  def verdict(relation: str) -> int:
    seen = counts.get(relation, overall)
    return int(seen[1] >= seen[0])

  return [
    Prediction(
      id=example.id,
      caption=example.record.caption,
      relation=example.record.relation,
      label=example.record.label,
      verdict=verdict(example.record.relation),
      text="",
      boxes_true=example.boxes,
      generated_tokens=0,
      prompt_tokens=0,
      truncated=False,
    )
    for example in test
  ]
