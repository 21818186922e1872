"""What supervised fine-tuning learns from: files of conversations, one JSON object a line.

  {"image": "000000296471.png", "question": "…", "answer": "…"}
  {"video": "clip.mp4", "question": "…", "answer": "…"}

A video is a container (the extra `video`) or an animated picture, among the images.
Every writer of training data uses this form: the scene teacher, other teachers, a policy's own verified answers.
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
from spatial_vlm.processor.video import Video
from spatial_vlm.processor.video_files import open_video


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One question about one image or video, and its answer."""

  image: str
  """Name of the file."""
  question: str
  answer: str
  kind: Literal["image", "video"] = "image"

  def to_json(self) -> dict[str, str]:
    return {self.kind: self.image, "question": self.question, "answer": self.answer}


class ConversationSource:
  """Random-access source of the messages of a file's usable conversations (see `records.read_lines`).

  An image that turns out unreadable raises BadRecordError from `source[i]`, and so does a video of which nothing
  can be read; one that is damaged further on raises UnreadableImage where its frames are decoded.
  """

  def __init__(self, jsonl: epath.PathLike, images: ImageLocations, max_bad_share: float):
    self.jsonl, self.image_files = epath.Path(jsonl), ImageFiles(images)
    self._numbered, self.bad = records.read_lines(jsonl, self.image_files, parse, max_bad_share)

  def __len__(self) -> int:
    return len(self._numbered)

  def __getitem__(self, index: int) -> messages.Messages:
    line, conversation = self._numbered[index]
    visual = records.open_listed(self.jsonl, line, self.visual, conversation)
    return messages.messages(visual, conversation.question, conversation.answer)

  def visual(self, conversation: Conversation) -> PIL.Image.Image | Video:
    """The image, or the video to be decoded; raises UnreadableImage that names it."""
    name = conversation.image
    if conversation.kind == "video":
      return open_video(self.image_files.read(name), name=name)
    return self.image_files.open(name)

  @property
  def questions(self) -> list[tuple[str, str]]:
    """Image and question of each."""
    return [(conversation.image, conversation.question) for _, conversation in self._numbered]

  def place(self, index: int) -> tuple[str, int]:
    """File and line."""
    return os.fspath(self.jsonl), self._numbered[index][0]


def parse(line: bytes) -> Conversation:
  """Reads one line; raises ValueError with the reason for what is no conversation."""
  fields = json.loads(line.decode())
  kind = "video" if isinstance(fields, dict) and "video" in fields else "image"
  names = [kind, "question", "answer"]
  if not isinstance(fields, dict) or sorted(fields) != sorted(names):
    raise ValueError(f"a conversation is a JSON object with the fields {', '.join(names)}")
  if bad := [name for name in names if not isinstance(fields[name], str) or not fields[name]]:
    raise ValueError(f"{', '.join(bad)} must be text that is not empty")
  return Conversation(fields[kind], fields["question"], fields["answer"], kind)


def write(path: epath.Path, conversations: Iterable[Conversation]) -> None:
  """Writes a file of conversations as a whole."""
  path.write_text("".join(json.dumps(item.to_json()) + "\n" for item in conversations))
