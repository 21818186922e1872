"""Messages with the sizes of images and videos in their place; only the headers of the files are read."""

import io

from spatial_vlm.data import messages
from spatial_vlm.data.conversations import Conversation, ConversationSource
from spatial_vlm.processor.chat import ImageSize
from spatial_vlm.processor.image import UnreadableImage, open_header, orientation
from spatial_vlm.processor.video import VideoInfo
from spatial_vlm.processor.video_files import open_video


class SizedSource:
  """Source of the same messages, with an `ImageSize` for each image and a `VideoInfo` for each video.

  A file whose header cannot be read raises UnreadableImage. Damage after the header is not detected here.
  """

  def __init__(self, source: ConversationSource):
    self.source = source
    self._known: dict[tuple[str, str], ImageSize | VideoInfo] = {}

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> messages.Messages:
    conversation = self.source.conversation(index)
    key = conversation.kind, conversation.image
    if key not in self._known:  # VSR has several statements about an image
      self._known[key] = self._size(conversation)
    return conversation.messages(self._known[key])

  def _size(self, conversation: Conversation) -> ImageSize | VideoInfo:
    data = self.source.image_files.read(conversation.image)
    if conversation.kind == "video":
      return open_video(data, name=conversation.image).info
    return image_size(data, conversation.image)

  def origin(self, index: int) -> tuple[str, int]:
    return self.source.origin(index)


def image_size(data: bytes, name: str) -> ImageSize:
  """Returns the size of the image that `open_image` reads from a file: upright, after EXIF's orientation."""
  try:
    with open_header(io.BytesIO(data)) as image:
      turned = orientation(image) in _QUARTER_TURNS
      return ImageSize(*image.size) if turned else ImageSize(image.height, image.width)
  except Exception as error:  # decoders of damaged files raise anything
    raise UnreadableImage(f"cannot read image {name}: {error}") from error


_QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
