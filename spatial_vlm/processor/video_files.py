"""Where videos come from:

  a folder of frames    in the order of their names, numbers in them counting as numbers; its rate has to be given
  an animated picture   GIF, WebP or PNG, at its mean rate
  a container           MP4, WebM, AVI and others, decoded by PyAV (the extra `video`), upright

Arrays in memory are a `Clip`. Files are opened anew for each reading, so that none is held open.
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

from spatial_vlm.processor.image import check_pixels, open_image, to_rgb
from spatial_vlm.processor.video import UnreadableVideo, Video, VideoInfo, check_rate

_DEMUXERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
"""FFmpeg's names. Playlists and the like are not among them: they would open other files and addresses."""


def open_video(
  source: str | Path | bytes, fps: float | None = None, name: str | None = None
) -> Video:
  """Opens a folder of frames, or a file by its path (local or remote) or its bytes.

  Args:
    fps: frames a second. A folder of frames needs it; elsewhere it replaces what the file says.
    name: what errors call it, if not by its path.

  Raises:
    UnreadableVideo: missing, damaged, a still picture, or without a rate; the message names the file.
    ImportError: a container, without the extra `video`.
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
  """Pictures of one size; other files in the folder are not looked at."""

  def __init__(self, folder: epath.Path, fps: float | None):
    suffixes = PIL.Image.registered_extensions()
    files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    if not files:
      raise UnreadableVideo(f"cannot read video {folder}: the folder holds no picture")
    if fps is None:
      raise UnreadableVideo(f"cannot read video {folder}: a folder of frames has no rate; give fps")
    self.files = sorted(files, key=_natural_order)
    width, height = open_image(self.files[0]).size
    self.info = VideoInfo(len(files), fps, height, width)

  def read(self, numbers: Sequence[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    return (np.asarray(open_image(self.files[number])) for number in numbers)


class Animation:
  """An animated picture. Where its frames last differently long, the mean counts."""

  def __init__(self, file: epath.Path | bytes, name: str, fps: float | None):
    self.file, self.name = file, name
    with _stream(file) as stream, PIL.Image.open(stream) as image:
      check_pixels(image.width, image.height)
      frames = getattr(image, "n_frames", 1)
      if frames == 1:
        raise UnreadableVideo(
          f"cannot read video {name}: it is a still picture; give it as an image"
        )
      rate = fps or _mean_rate(image, frames)
      if not rate:
        raise UnreadableVideo(
          f"cannot read video {name}: it does not say how long frames last; give fps"
        )
      self.info = VideoInfo(frames, rate, image.height, image.width)

  def read(self, numbers: Sequence[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    with _stream(self.file) as stream, PIL.Image.open(stream) as image:
      for number in numbers:
        try:
          image.seek(number)
          frame = np.asarray(to_rgb(image))
        except Exception as error:  # decoders of damaged files raise anything
          raise _unreadable(f"{self.name}, frame {number}", error) from error
        yield frame


class Container:
  """A file of compressed video; its first picture stream counts."""

  def __init__(self, file: epath.Path | bytes, name: str, fps: float | None):
    self.file, self.name = file, name
    with self._opened() as container:
      stream = _picture_stream(container, name)
      check_pixels(stream.width, stream.height)
      rate = fps or float(stream.average_rate or 0)
      if not rate:
        raise UnreadableVideo(f"cannot read video {name}: it states no rate; give fps")
      first = next(container.decode(stream))
      height, width, _ = _upright(first).shape
      self.info = VideoInfo(stream.frames or self._counted(), rate, height, width)

  def read(self, numbers: Sequence[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    wanted = set(numbers)
    with self._opened() as container:
      frames = enumerate(container.decode(_picture_stream(container, self.name)))
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
    """Where the header does not say (WebM), packets are counted; none is decoded."""
    with self._opened() as container:
      stream = _picture_stream(container, self.name)
      return sum(packet.size > 0 for packet in container.demux(stream))


def _picture_stream(container: Any, name: str) -> Any:
  if not container.streams.video:
    raise UnreadableVideo(f"cannot read video {name}: it has no pictures, only sound")
  return container.streams.video[0]


def _upright(frame: Any) -> UInt8[np.ndarray, "H W 3"]:
  """Turned as the camera was held (a container's display matrix, in quarter turns)."""
  return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _stream(file: epath.Path | bytes) -> IO[bytes]:
  return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")


def _mean_rate(image: PIL.Image.Image, frames: int) -> float:
  """Frames a second; 0 where their durations are not given."""
  milliseconds = 0.0
  for number in range(frames):
    image.seek(number)
    image.load()  # WebP says it only then
    milliseconds += image.info.get("duration") or 0
  return 1000 * frames / milliseconds if milliseconds else 0.0


def _natural_order(path: epath.Path) -> list[tuple[int, str]]:
  """frame_9.png before frame_10.png."""
  pieces = re.split(r"(\d+)", path.name)
  return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _unreadable(name: str, error: BaseException) -> UnreadableVideo:
  return UnreadableVideo(f"cannot read video {name}: {str(error) or type(error).__name__}")


def _import_av(name: str) -> Any:
  try:
    import av
  except ImportError as error:
    raise ImportError(f"reading video {name} needs PyAV; install spatial-vlm[video]") from error
  return av
