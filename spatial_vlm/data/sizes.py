"""Sizes of conversations in tokens and patches; of their pictures only the headers are read."""

import io

import PIL.ExifTags
import PIL.Image

from spatial_vlm.data import messages
from spatial_vlm.data.conversations import Conversation, ConversationSource
from spatial_vlm.processor.chat import ImageSize
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.processor.video import VideoInfo
from spatial_vlm.processor.video_files import open_video


class SizedSource:
  """The messages of a source of conversations, with an `ImageSize` for each image and a `VideoInfo` for
  each video.

  One whose header cannot be read raises UnreadableImage. One that is torn further on is not noticed here.
  """

  def __init__(self, source: ConversationSource):
    self.source = source
    self._known: dict[tuple[str, str], ImageSize | VideoInfo] = {}

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> messages.Messages:
    _, conversation = self.source._numbered[index]
    key = conversation.kind, conversation.image
    if key not in self._known:  # VSR has several statements on a picture
      self._known[key] = self._size(conversation)
    return messages.messages(self._known[key], conversation.question, conversation.answer)

  def _size(self, conversation: Conversation) -> ImageSize | VideoInfo:
    data = self.source.image_files.read(conversation.image)
    if conversation.kind == "video":
      return open_video(data, name=conversation.image).info
    return extent(data, conversation.image)

  def place(self, index: int) -> tuple[str, int]:
    return self.source.place(index)


def extent(data: bytes, name: str) -> ImageSize:
  """Size of the picture that `open_image` makes of a file: upright, after EXIF's orientation."""
  try:
    with PIL.Image.open(io.BytesIO(data)) as image:
      turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) in _ON_THEIR_SIDE
      return ImageSize(*image.size) if turned else ImageSize(image.height, image.width)
  except Exception as error:  # decoders of damaged files raise anything
    raise UnreadableImage(f"cannot read image {name}: {error}") from error


_ON_THEIR_SIDE = (5, 6, 7, 8)
