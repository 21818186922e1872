"""The only builder of questions: from a caption to the words that a policy is asked, with or without a behavior."""

import contextlib
import dataclasses
from collections.abc import Sequence

from etils import epath

from spatial_vlm.reuse.handbook.handbook import Behavior
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.reuse.index.index_folder import load_index
from spatial_vlm.reuse.retrieval.choosers import Chooser
from spatial_vlm.reuse.retrieval.recall import recall
from spatial_vlm.reuse.statements.relation_keys import forget_readings, read_relation
from spatial_vlm.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class PreparedQuestion:
  """A question as it is asked."""

  form: str
  """Form of the answer that it asks for: "short" with a behavior, else "chain" or "direct"."""
  text: str
  system: str = ""
  """The recalled behavior, as the system turn before the image; empty without one."""
  behavior: Behavior | None = None
  similarity: float = 0.0
  """Of the behavior's question to the one asked; 0 without a behavior."""


@dataclasses.dataclass(frozen=True)
class Recall:
  """How behaviors are recalled."""

  index: BehaviorIndex
  behavior_tokens: int
  """Limit on the tokens of one recalled behavior."""
  choose: Chooser = recall
  """Chooses the behavior of each caption from the index."""


@dataclasses.dataclass(frozen=True)
class QuestionBuilder:
  """Builds the questions of a task: in one form, or in the short form wherever a behavior is recalled."""

  task: Task
  form: str
  """Form of an answer without a recalled behavior."""
  recall: Recall | None = None

  def __call__(self, caption: str) -> PreparedQuestion:
    """Builds the question about one caption."""
    (question,) = self.build_all([caption])
    return question

  def build_all(self, captions: Sequence[str]) -> list[PreparedQuestion]:
    """Builds the questions about several captions, with one search of the index (by default see `retrieval.recall`).

    A behavior of more than `behavior_tokens` tokens is not recalled, and no other in its place.
    """
    if self.recall is None:
      return [self.without_behavior(caption) for caption in captions]
    questions = []
    found = self.recall.choose(self.recall.index, captions)
    for caption, match in zip(captions, found, strict=True):
      if match is None or match[0].tokens > self.recall.behavior_tokens:
        questions.append(self.without_behavior(caption))
        continue
      behavior, similarity = match
      text, system = self.task.question(caption, "short"), self.task.behavior_prompt(behavior.line)
      questions.append(PreparedQuestion("short", text, system, behavior, similarity))
    return questions

  def forget_captions(self) -> None:
    """Drops what caches hold of earlier captions, so that each costs what a new one does; the handbook stays read."""
    forget_readings()
    if self.recall:
      self.recall.index.forget_questions()
      for behavior in self.recall.index.handbook.behaviors:
        for question in behavior.questions:
          read_relation(question)

  @property
  def systems(self) -> list[str]:
    """The system turns that questions may have."""
    if self.recall is None:
      return []
    limit, handbook = self.recall.behavior_tokens, self.recall.index.handbook
    return [self.task.behavior_prompt(b.line) for b in handbook.behaviors if b.tokens <= limit]

  def without_behavior(self, caption: str) -> PreparedQuestion:
    """Builds the question about one caption in the builder's own form."""
    return PreparedQuestion(self.form, self.task.question(caption, self.form))


def question_words(task: Task) -> dict[str, tuple[str, str]]:
  """Returns form of the answer → the words before and after a caption, for the forms that the task asks for.

  >>> from spatial_vlm.tasks import find_task
  >>> question_words(find_task("vsr"))["direct"]
  ('', ' True? Answer Yes or No.')
  """
  caption, words = "\x00", {}
  for form in task.grammar.forms:
    with contextlib.suppress(ValueError):
      before, _, after = task.question(caption, form).partition(caption)
      words[form] = (before, after)
  return words


def load_recall(folder: epath.PathLike, behavior_tokens: int) -> Recall:
  """Loads the index that `behaviors` wrote; raises HandbookError for a damaged one."""
  return Recall(load_index(folder), behavior_tokens)
