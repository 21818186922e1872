"""Training examples from a policy's own verified answers: short answers that cite a recalled behavior."""

import collections
import dataclasses
from collections.abc import Sequence

from spatial_vlm.data.conversations import Conversation
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.reuse.chains.chain_check import UNDECIDED, WRONG, read_chain
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.extraction.patterns import short_from_chain

RECALLS_NOTHING = "question recalls no behavior"
STAYS_FULL = "in the share of full chains"


@dataclasses.dataclass
class TrainingExamples:
  """Rows of a fine-tuning set, and what was made of every answer."""

  rows: list[Conversation] = dataclasses.field(default_factory=list)
  full: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """Why an answer stays a full chain → answers."""
  left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """Why nothing is learned from an answer → answers."""

  def report(self) -> list[str]:
    """Returns lines: the counts of short answers, full chains and answers left out, with the reasons."""
    short = len(self.rows) - self.full.total()
    lines = [f"{short} short answers"]
    for title, reasons in (("full chains", self.full), ("answers left out", self.left_out)):
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
  verdict. Every 1/full_share-th answer stays a full chain, and so does each whose question recalls nothing or whose
  comparison cannot be read. Answers that are wrong are left out.
  """
  examples = TrainingExamples()
  prepared = questions.build_all([s.caption for s in solutions])
  for solution, image, question in zip(solutions, images, prepared, strict=True):
    reading = read_chain(solution)
    if reading.answer is None or reading.reason in WRONG:
      examples.left_out[reading.reason] += 1
      continue
    rows = examples.rows
    is_full = int((len(rows) + 1) * full_share) > int(len(rows) * full_share)
    short = None
    if question.behavior is None or is_full:
      examples.full[STAYS_FULL if question.behavior else RECALLS_NOTHING] += 1
    else:
      short = short_from_chain(question.behavior, reading)
      examples.full.update([] if short else [reading.reason or UNDECIDED])
    if short:
      rows.append(Conversation(image, question.text, short, system=question.system))
    else:
      text = questions.without_behavior(solution.caption).text
      rows.append(Conversation(image, text, solution.text))
  return examples
