"""What a task owns: how its records are read, asked about, parsed and scored."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from spatial_vlm.answers import Grammar
from spatial_vlm.data.image_files import ImageLocations
from spatial_vlm.data.records import ExampleSource
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.scores import Scores


@dataclasses.dataclass(frozen=True)
class Task:
  """One kind of question about images; training and evaluation use the same one."""

  read: Callable[[epath.PathLike, ImageLocations, epath.PathLike | None, float], ExampleSource]
  """(records, images, boxes or None, max_bad_share) → source of examples."""
  question: Callable[[str, str], str]
  """(caption, form of the answer) → the question in words."""
  behavior_prompt: Callable[[str], str]
  """Line of a recalled behavior → the system turn that stands before the image and the question."""
  grammar: Grammar
  """Grammar of the answers; the parser and the automaton on the device are both made from it."""
  first_words: Mapping[int, str]
  """Verdict → first word of a direct answer, one token; a zero-shot verdict is the likeliest of them."""
  score: Callable[[Sequence[Prediction]], Scores]
  """Stored answers → scores."""
