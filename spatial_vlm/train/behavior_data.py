"""Training examples from a policy's own verified answers: short answers that cite a recalled behavior."""

from collections.abc import Sequence

from spatial_vlm.data.conversations import Conversation
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.reuse.extraction import short_from_chain, verified_chain
from spatial_vlm.reuse.solutions import Solution


def training_examples(
  questions: QuestionBuilder,
  solutions: Sequence[Solution],
  images: Sequence[str],
  full_share: float,
) -> list[Conversation]:
  """Returns verified answers as training data, most of them in the short form.

  Every 1/full_share-th stays a full chain, and so does each whose question recalls nothing.
  """
  rows: list[Conversation] = []
  prepared = questions.build_all([s.caption for s in solutions])
  for solution, image, question in zip(solutions, images, prepared, strict=True):
    answer = verified_chain(solution)
    if answer is None:
      continue
    is_full = int((len(rows) + 1) * full_share) > int(len(rows) * full_share)
    if question.behavior is None or is_full:
      text = questions.without_behavior(solution.caption).text
      rows.append(Conversation(image, text, solution.text))
    else:
      short = short_from_chain(question.behavior, answer, solution.names)
      rows.append(Conversation(image, question.text, short, system=question.system))
  return rows
