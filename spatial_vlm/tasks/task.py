"""What a task owns: how its records are read, asked about, parsed and scored."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from spatial_vlm.answer_extraction import extract_word
from spatial_vlm.answers import Grammar
from spatial_vlm.data.image_files import ImageLocations
from spatial_vlm.data.records import ExampleSource, Record
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.scores import Scores


def extract_yes_no(text: str, record: Record) -> int:
  """Returns the verdict of exactly one of the words yes and no; −1 for none or both."""
  return extract_word(text)


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
  extract: Callable[[str, Record], int] = extract_yes_no
  """(text, record) → the verdict that the text states in whatever form; −1 for none (see `answer_extraction`)."""
