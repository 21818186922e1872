"""What a task owns: how its records are read, asked about, parsed and scored."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from spatial_vlm.answer_extraction import extract_word
from spatial_vlm.answers import Grammar
from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmark_record import BenchmarkRecord
from spatial_vlm.data.image_files import ImageLocations
from spatial_vlm.data.records import ExampleSource, Record
from spatial_vlm.data.split_guard import is_held_out
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.scores import Scores

Question = Record | BenchmarkRecord
"""A record as it is asked about."""


def parsed_verdict(grammar: Grammar, text: str, record: Question) -> int:
  """Returns the verdict of an answer that has the form of the grammar; −1 for any other text."""
  parsed = grammar.parse(text)
  return -1 if parsed is None else parsed.verdict


def extract_yes_no(text: str, record: Question) -> int:
  """Returns the verdict of exactly one of the words yes and no; −1 for none or both."""
  return extract_word(text)


@dataclasses.dataclass(frozen=True)
class Template:
  """Another wording of a task's questions, with the words of its answers."""

  question: Callable[[str, str], str]
  """(caption, form of the answer) → the question in words."""
  grammar: Grammar
  first_words: Mapping[int, str]
  score: Callable[[Sequence[Prediction]], Scores]
  extract: Callable[[str, Question], int]
  explanations: Mapping[str, str]


def wording(template: Template) -> dict[str, Any]:
  """Returns the fields that a task has from a template."""
  return {field.name: getattr(template, field.name) for field in dataclasses.fields(template)}


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
  """Verdict → first word of a direct answer, one token; a zero-shot verdict is the likeliest of them.

  Empty where answers have no such words; the method `zero-shot` is refused then.
  """
  score: Callable[[Sequence[Prediction]], Scores]
  """Stored answers → scores."""
  extract: Callable[[str, Question], int] = extract_yes_no
  """(text, record) → the verdict that the text states in whatever form; −1 for none (see `answer_extraction`)."""
  strict: Callable[[Grammar, str, Question], int] = parsed_verdict
  """(grammar, text, record) → the verdict of an answer in the form that was asked for; −1 for any other text."""
  held_out: bool = False
  """Whether all its records are there to measure on, whatever their file is called; see `is_measured`."""
  templates: Mapping[str, Template] = dataclasses.field(default_factory=dict)
  """Name → another wording. "project" is the task's own and stands in no table."""
  explanations: Mapping[str, str] = dataclasses.field(default_factory=dict)
  """Form of the answer → its explanation with an example, for a model that was not tuned on it."""

  def is_measured(self, split: str) -> bool:
    """Whether the records of a split are ones to measure on: by the task, or by the name of the split."""
    return self.held_out or is_held_out(split)

  def with_template(self, name: str) -> "Task":
    """Returns the task in another wording; UsageError, with the known names, for one that it has not."""
    if name == "project":
      return self
    if name not in self.templates:
      raise UsageError(
        f"template is {name!r}; choose one of {', '.join(['project', *self.templates])}"
      )
    return dataclasses.replace(self, **wording(self.templates[name]))

  def explained(self) -> "Task":
    """Returns the task whose questions explain the form of the answer; UsageError if it has no explanations."""
    if not self.explanations:
      raise UsageError("prompt is 'explained' and the task explains no form; choose 'plain'")
    plain, explanations = self.question, self.explanations
    return dataclasses.replace(
      self, question=lambda caption, form: f"{plain(caption, form)}\n\n{explanations[form]}"
    )
