"""What supervised fine-tuning learns from: files of conversations, one JSON object a line.

  {"image": "000000296471.png", "question": "…", "answer": "…"}

Every writer of training data uses this form: the scene teacher, other teachers, a policy's own verified answers.
"""

import dataclasses
import json
import os
from collections.abc import Iterable

from etils import epath

from spatial_vlm.data import prompts, records
from spatial_vlm.data.images import Pictures, Places


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One question about one image, and its answer."""

  image: str
  question: str
  answer: str


class ConversationSource:
  """Random-access source of the messages of a file's usable conversations (see `records.read_lines`).

  An image that turns out unreadable raises BadRecordError from `source[i]`.
  """

  def __init__(self, jsonl: epath.PathLike, images: Places, max_bad_share: float):
    self.jsonl, self.pictures = epath.Path(jsonl), Pictures(images)
    self._numbered, self.bad = records.read_lines(jsonl, self.pictures, parse, max_bad_share)

  def __len__(self) -> int:
    return len(self._numbered)

  def __getitem__(self, index: int) -> prompts.Messages:
    line, conversation = self._numbered[index]
    image = records.open_listed_image(self.jsonl, line, self.pictures, conversation.image)
    return prompts.messages(image, conversation.question, conversation.answer)

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
  names = [field.name for field in dataclasses.fields(Conversation)]
  if not isinstance(fields, dict) or sorted(fields) != sorted(names):
    raise ValueError(f"a conversation is a JSON object with the fields {', '.join(names)}")
  if bad := [name for name in names if not isinstance(fields[name], str) or not fields[name]]:
    raise ValueError(f"{', '.join(bad)} must be text that is not empty")
  return Conversation(**fields)


def write(path: epath.Path, conversations: Iterable[Conversation]) -> None:
  """Writes a file of conversations as a whole."""
  path.write_text("".join(json.dumps(dataclasses.asdict(item)) + "\n" for item in conversations))
