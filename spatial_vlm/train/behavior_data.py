"""Training examples from a policy's own verified answers: short answers that cite a recalled behavior."""

import collections
import dataclasses
from collections.abc import Sequence

from spatial_vlm.data.conversations import Conversation
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.reuse.chains.chain_check import UNDECIDED, WRONG, read_chain
from spatial_vlm.reuse.chains.restatement import comparison_templates, restated
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.extraction.patterns import short_answer, short_from_chain

RECALLS_NOTHING = "question recalls no behavior"
STAYS_FULL = "in the share of full chains"


@dataclasses.dataclass
class TrainingExamples:
  """Rows of a fine-tuning set, and what was made of every answer."""

  rows: list[Conversation] = dataclasses.field(default_factory=list)
  full: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """Why an answer stays a full chain → answers."""
  restated: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """Why the comparison of a short answer comes from the boxes of its chain → answers."""
  left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """Why nothing is learned from an answer → answers."""

  def report(self) -> list[str]:
    """Returns lines: the counts of short answers, full chains and answers left out, with the reasons."""
    short = len(self.rows) - self.full.total()
    lines = [f"{short} short answers"]
    for title, reasons in (
      ("of them written from the boxes of their chains", self.restated),
      ("full chains", self.full),
      ("answers left out", self.left_out),
    ):
      why = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())
      lines.append(f"{reasons.total()} {title}{f' ({why})' if why else ''}")
    return lines


def training_examples(
  questions: QuestionBuilder,
  solutions: Sequence[Solution],
  images: Sequence[str],
  full_share: float,
) -> TrainingExamples:
  """Returns answers as training data, most of them in the short form.

  A short answer states a comparison that `read_chain` accepted: true, with the numbers of its objects, in line with the
  verdict. Where a chain has none, its boxes give one of the relation's most frequent kind (see `restated`). Every
  1/full_share-th answer stays a full chain, and so does each whose question recalls nothing or that gives no
  comparison. Answers that are wrong are left out.
  """
  examples, templates = TrainingExamples(), comparison_templates(solutions)
  prepared = questions.build_all([s.caption for s in solutions])
  for solution, image, question in zip(solutions, images, prepared, strict=True):
    reading, rows, behavior = read_chain(solution), examples.rows, question.behavior
    is_full = int((len(rows) + 1) * full_share) > int(len(rows) * full_share)
    short = None
    if behavior and not is_full:
      short = short_from_chain(behavior, solution)
      template = templates.get(behavior.relation)
      if short is None and template and (comparison := restated(solution, template)):
        short = short_answer(behavior, comparison, solution)
        examples.restated[reading.reason or UNDECIDED] += 1
    if short:
      rows.append(Conversation(image, question.text, short, system=question.system))
    elif reading.answer is None or reading.reason in WRONG:
      examples.left_out[reading.reason] += 1
    else:
      reason = reading.reason or UNDECIDED
      reason = RECALLS_NOTHING if behavior is None else STAYS_FULL if is_full else reason
      examples.full[reason] += 1
      text = questions.without_behavior(solution.caption).text
      rows.append(Conversation(image, text, solution.text))
  return examples
