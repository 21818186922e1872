"""Files of conversations, the training data of supervised fine-tuning: one JSON object a line.

  {"image": "000000296471.png", "question": "…", "answer": "…"}
  {"video": "clip.mp4", "question": "…", "answer": "…"}
  {"image": "000000296471.png", "question": "…", "answer": "…", "system": "Use behavior_…"}

The optional field `system` is a system turn, which stands before the image or the video.
A video is a container (needs the extra `video`) or an animated image, in the same locations as the images.
The scene teacher, other teachers and the extraction of a policy's own verified answers write this format.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from typing import Literal

import PIL.Image
from etils import epath

from spatial_vlm.data import messages, records
from spatial_vlm.data.image_files import ImageFiles, ImageLocations
from spatial_vlm.jsonl import parse_json
from spatial_vlm.processor.video import Video
from spatial_vlm.processor.video_files import open_video
from spatial_vlm.remote import write_whole


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One question about one image or video, and its answer."""

  image: str
  """Name of the file."""
  question: str
  answer: str
  kind: Literal["image", "video"] = "image"
  system: str = ""
  """Text of the system turn; empty: there is none."""

  def to_json(self) -> dict[str, str]:
    fields = {self.kind: self.image, "question": self.question, "answer": self.answer}
    return fields | ({"system": self.system} if self.system else {})

  def messages(self, visual: messages.Visual) -> messages.Messages:
    """Returns the turns about the image or video, or about what replaces it."""
    return messages.messages(visual, self.question, self.answer, self.system)


class ConversationSource:
  """Random-access source of the messages of a file's usable conversations (see `records.read_lines`).

  `source[i]` raises BadRecordError for an unreadable image, and for a video that cannot be opened. A video that is
  damaged after its start raises UnreadableImage when its frames are decoded. Without `system_turns`, conversations lose
  theirs.
  """

  def __init__(
    self,
    jsonl: epath.PathLike,
    images: ImageLocations,
    max_bad_share: float,
    system_turns: bool = True,
  ):
    self._system_turns = system_turns
    self.jsonl, self.image_files = epath.Path(jsonl), ImageFiles(images)
    self._numbered, self.bad = records.read_lines(jsonl, self.image_files, parse, max_bad_share)

  def __len__(self) -> int:
    return len(self._numbered)

  def __getitem__(self, index: int) -> messages.Messages:
    conversation = self.conversation(index)
    visual = records.open_listed(self.origin(index), self.visual, conversation)
    return conversation.messages(visual)

  def conversation(self, index: int) -> Conversation:
    """Returns a conversation without opening its image or video."""
    conversation = self._numbered[index][1]
    return conversation if self._system_turns else dataclasses.replace(conversation, system="")

  def visual(self, conversation: Conversation) -> PIL.Image.Image | Video:
    """Returns the image, or the video before decoding; the UnreadableImage that it raises names the file."""
    name = conversation.image
    if conversation.kind == "video":
      return open_video(self.image_files.read(name), name=name)
    return self.image_files.open(name)

  @property
  def questions(self) -> list[tuple[str, str]]:
    """Image and question of each conversation."""
    return [(conversation.image, conversation.question) for _, conversation in self._numbered]

  def origin(self, index: int) -> tuple[str, int]:
    """Returns file and line."""
    return os.fspath(self.jsonl), self._numbered[index][0]


def parse(line: bytes) -> Conversation:
  """Returns the conversation of one line; the ValueError that it raises gives the reason."""
  fields = parse_json(line)
  kind = "video" if isinstance(fields, dict) and "video" in fields else "image"
  names = [kind, "question", "answer"]
  if not isinstance(fields, dict) or sorted({*fields} - {"system"}) != sorted(names):
    raise ValueError(
      f"a conversation is a JSON object with the fields {', '.join(names)} and, if it has one, system"
    )
  given = [*names, "system"] if "system" in fields else names
  if bad := [name for name in given if not isinstance(fields[name], str) or not fields[name]]:
    raise ValueError(f"{', '.join(bad)} must be non-empty text")
  system = fields.get("system", "")
  return Conversation(fields[kind], fields["question"], fields["answer"], kind, system)


def write(path: epath.Path, conversations: Iterable[Conversation]) -> None:
  """Writes a file of conversations."""
  write_whole(path, "".join(json.dumps(item.to_json()) + "\n" for item in conversations))
