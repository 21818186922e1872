"""Opens videos of three kinds.

  a folder of frames    in natural order of their names (9 before 10); its rate must be given
  an animated image     GIF, WebP or PNG, at its mean rate
  a container           MP4, WebM, AVI and others, decoded by PyAV (the extra `video`), upright

Arrays in memory are a `Clip`. A file is opened for each read, so that no file stays open.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
from etils import epath
from jaxtyping import UInt8

from spatial_vlm import extras
from spatial_vlm.processor.image import check_pixels, open_header, open_image, to_rgb
from spatial_vlm.processor.video import UnreadableVideo, Video, VideoInfo, check_rate

_DEMUXERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
"""FFmpeg's names, without playlists and similar formats, which open other files and addresses."""


MAX_ANIMATION_FRAMES = 2**16
MAX_ANIMATION_PIXELS = 2**31
"""Bounds of animated images, which have to be decoded to know how long they last: 2 kB can hold frames for minutes."""
MAX_FRAMES = 2**20
"""Of a container; ten hours at 29 frames a second."""


def open_video(
  source: str | Path | bytes, fps: float | None = None, name: str | None = None
) -> Video:
  """Opens a folder of frames, or a file by its path (local or remote) or its bytes.

  Args:
    source: path of the folder or file, or the bytes of the file.
    fps: frames a second. Required for a folder of frames; otherwise it replaces the file's own rate.
    name: name in errors; by default the path.

  Raises:
    UnreadableVideo: the video is missing, damaged, a still image, or has no rate; the message names the file.
    ImportError: the video is a container and the extra `video` is not installed.
  """
  if fps is not None:
    check_rate(fps)
  file = source if isinstance(source, bytes) else epath.Path(source)
  name = name or (f"<{len(file)} bytes>" if isinstance(file, bytes) else str(file))
  try:
    if isinstance(file, epath.Path) and file.is_dir():
      return FrameFolder(file, fps)
    try:
      return Animation(file, name, fps)
    except PIL.UnidentifiedImageError:
      return Container(file, name, fps)
  except (UnreadableVideo, ImportError):
    raise
  except Exception as error:  # decoders of damaged files raise anything
    raise _unreadable(name, error) from error


class FrameFolder:
  """A folder of images of one size; other files in it are ignored."""

  def __init__(self, folder: epath.Path, fps: float | None):
    suffixes = PIL.Image.registered_extensions()
    files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    if not files:
      raise UnreadableVideo(f"cannot read video {folder}: the folder holds no image")
    if fps is None:
      raise UnreadableVideo(f"cannot read video {folder}: a folder of frames has no rate; give fps")
    self.files = sorted(files, key=_natural_order)
    width, height = open_image(self.files[0]).size
    self.info = VideoInfo(len(files), fps, height, width)

  def read(self, numbers: Sequence[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    return (np.asarray(open_image(self.files[number])) for number in numbers)


class Animation:
  """An animated image; frames of different durations get the mean rate."""

  def __init__(self, file: epath.Path | bytes, name: str, fps: float | None):
    self.file, self.name = file, name
    with _stream(file) as stream, open_header(stream) as image:
      check_pixels(image.width, image.height)
      frames, seconds = _count_frames(image)
      if frames == 1:
        raise UnreadableVideo(f"cannot read video {name}: it is a still image; give it as an image")
      rate = fps or (frames / seconds if seconds else 0)
      if not rate:
        raise UnreadableVideo(
          f"cannot read video {name}: it does not state how long frames last; give fps"
        )
      self.info = VideoInfo(frames, rate, image.height, image.width)

  def read(self, numbers: Sequence[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    with _stream(self.file) as stream, open_header(stream) as image:
      for number in numbers:
        try:
          image.seek(number)
          frame = np.asarray(to_rgb(image))
        except Exception as error:  # decoders of damaged files raise anything
          raise _unreadable(f"{self.name}, frame {number}", error) from error
        yield frame


class Container:
  """A file of compressed video; its first video stream is read."""

  def __init__(self, file: epath.Path | bytes, name: str, fps: float | None):
    self.file, self.name = file, name
    with self._opened() as container:
      stream = _video_stream(container, name)
      check_pixels(stream.width, stream.height)
      rate = fps or float(stream.average_rate or 0)
      if not rate:
        raise UnreadableVideo(f"cannot read video {name}: it states no rate; give fps")
      first = next(container.decode(stream))
      height, width, _ = _upright(first).shape
      frames = stream.frames or self._counted()
      if frames > MAX_FRAMES:
        raise UnreadableVideo(
          f"cannot read video {name}: it has {frames} frames, more than {MAX_FRAMES}; cut it into parts"
        )
      self.info = VideoInfo(frames, rate, height, width)

  def read(self, numbers: Sequence[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    wanted = set(numbers)
    with self._opened() as container:
      frames = enumerate(container.decode(_video_stream(container, self.name)))
      while wanted:
        try:
          number, frame = next(frames)
        except StopIteration:
          raise UnreadableVideo(
            f"cannot read video {self.name}: it ends before frame {min(wanted)} of {self.info.frames}"
          ) from None
        except Exception as error:  # damaged streams raise anything
          raise _unreadable(self.name, error) from error
        if number in wanted:
          wanted.remove(number)
          yield _upright(frame)

  @contextlib.contextmanager
  def _opened(self) -> Iterator[Any]:
    av = _import_av(self.name)
    options = {"format_whitelist": _DEMUXERS}
    with _stream(self.file) as stream, av.open(stream, options=options) as container:
      yield container

  def _counted(self) -> int:
    """Counts packets without decoding them, for headers that do not state the number of frames (WebM)."""
    with self._opened() as container:
      stream = _video_stream(container, self.name)
      return sum(packet.size > 0 for packet in container.demux(stream))


def _video_stream(container: Any, name: str) -> Any:
  if not container.streams.video:
    raise UnreadableVideo(f"cannot read video {name}: it has no video stream, only sound")
  return container.streams.video[0]


def _upright(frame: Any) -> UInt8[np.ndarray, "H W 3"]:
  """Returns the frame rotated by the container's display matrix, in quarter turns."""
  return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _stream(file: epath.Path | bytes) -> IO[bytes]:
  return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")


def _count_frames(image: PIL.Image.Image) -> tuple[int, float]:
  """Returns the number of frames of an animated image and their duration in seconds, 0 if it is not given.

  Raises:
    ValueError: there are more than MAX_ANIMATION_FRAMES, or they have more than MAX_ANIMATION_PIXELS together.
  """
  most = min(MAX_ANIMATION_FRAMES, MAX_ANIMATION_PIXELS // (image.width * image.height))
  milliseconds, number = 0.0, 0
  with contextlib.suppress(EOFError):  # after the last frame
    while True:
      image.seek(number)
      if number == most:
        raise ValueError(
          f"it has more than {most} frames of {image.width}×{image.height} pixels; shorten it, or save it as MP4"
        )
      image.load()  # WebP sets the duration only then
      milliseconds += image.info.get("duration") or 0
      number += 1
  return number, milliseconds / 1000


def _natural_order(path: epath.Path) -> list[tuple[int, str]]:
  """Returns a sort key that puts frame_9.png before frame_10.png."""
  pieces = re.split(r"(\d+)", path.name)
  return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _unreadable(name: str, error: BaseException) -> UnreadableVideo:
  return UnreadableVideo(f"cannot read video {name}: {str(error) or type(error).__name__}")


def _import_av(name: str) -> Any:
  try:
    import av
  except ImportError as error:
    raise ImportError(extras.need("video", f"reading video {name}")) from error
  return av
