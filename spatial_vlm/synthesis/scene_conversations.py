"""Conversations about rendered scenes for supervised fine-tuning, with the scene teacher's answers."""

from spatial_vlm import answers
from spatial_vlm.data.conversations import Conversation
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.progress import track
from spatial_vlm.synthesis import scene_teacher
from spatial_vlm.synthesis.draft import chain
from spatial_vlm.tasks import statements


def scene_conversations(source: SceneSource, count: int) -> dict[str, list[Conversation]]:
  """Returns conversations about the first `count` examples: `chain` has four steps, `direct` the verdict alone."""
  found: dict[str, list[Conversation]] = {"chain": [], "direct": []}
  for index in track(range(count), "chains", count):
    record, scene = source.describe(index)
    texts = {
      "chain": chain(scene_teacher.draft(record, scene.boxes)),
      "direct": answers.render_direct(record.label),
    }
    for form, answer in texts.items():
      question = QuestionBuilder(statements.TASK, form)(record.caption)
      found[form].append(Conversation(record.image, question.text, answer))
  return found
