"""Conversations about rendered scenes for supervised fine-tuning, with the scene teacher's answers."""

from typing import NamedTuple

from spatial_vlm import answers
from spatial_vlm.data.conversations import Conversation
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.progress import track
from spatial_vlm.synthesis import scene_teacher
from spatial_vlm.synthesis.draft import chain
from spatial_vlm.tasks import statements


class SceneConversations(NamedTuple):
  """Conversations about the training scenes."""

  chains: list[Conversation]
  """In four steps, about the first scenes."""
  direct: list[Conversation]
  """The verdict alone, about all scenes: labels need no teacher."""


def scene_conversations(source: SceneSource, chains: int) -> SceneConversations:
  """Returns conversations about all examples, the first `chains` of them with a chain too."""
  found = SceneConversations([], [])
  ask_chain, ask_direct = (QuestionBuilder(statements.TASK, form) for form in ("chain", "direct"))
  for index in track(range(len(source)), "conversations", len(source)):
    record, scene = source.describe(index)
    verdict = answers.render_direct(record.label)
    found.direct.append(Conversation(record.image, ask_direct(record.caption).text, verdict))
    if index < chains:
      text = chain(scene_teacher.draft(record, scene.boxes))
      found.chains.append(Conversation(record.image, ask_chain(record.caption).text, text))
  return found
