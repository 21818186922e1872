"""One question of a benchmark, as it is put to a model and scored."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class BenchmarkRecord:
  """A question of a benchmark; `records.Record` is its counterpart for VSR's statements."""

  image: str
  """Name of the first image, for reports and pairs."""
  caption: str
  """The question with its hint and options, without an instruction on the form of the answer."""
  label: int
  """The right verdict: number of the option, 1 yes and 0 no, 0 for the right short answer (any other is 1)."""
  relation: str
  """The benchmark's own finest category, by which accuracies are listed; several are separated by commas."""
  options: tuple[str, ...] = ()
  """Texts of the options A, B, …; "" for a letter without an option; () for other questions."""
  right: str = ""
  """The right answer of a question that asks for a word or a number."""
  strata: Mapping[str, str] = dataclasses.field(default_factory=dict)
  """Name of a stratum → value, such as {"source": "COCO"}."""
  group: str = ""
  """Questions with the same group count only together (rotated options of circular evaluation); "": counts alone."""
