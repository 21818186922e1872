"""Videos as patches: frames sampled, resized, normalised and flattened as in Hugging Face's video processor.

Values equal `Qwen3VLVideoProcessor` (transformers 5.23) on a CPU bit for bit. Sizes and times follow from a `VideoInfo`
alone, so that planning decodes nothing. Frames are decoded and resized one at a time.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from spatial_vlm.huggingface.folder import reading
from spatial_vlm.model.config import check_sizes
from spatial_vlm.processor.bicubic import resize
from spatial_vlm.processor.image import (
  MAX_ASPECT_RATIO,
  Grid,
  ImageSettings,
  Patches,
  UnreadableImage,
  common_settings,
  cut,
  read_settings,
)


class UnreadableVideo(UnreadableImage):
  """A file that is not a video, is damaged or cannot be sampled; readers skip it like an unreadable image."""


class VideoInfo(NamedTuple):
  """Facts about a video before its frames are decoded; it replaces the video when only the size is needed."""

  frames: int
  fps: float
  height: int
  width: int


@runtime_checkable
class Video(Protocol):
  """A video before decoding: a `Clip`, or a result of `open_video`."""

  @property
  def info(self) -> VideoInfo:
    """Number, rate and size of the frames."""
    ...

  def read(self, numbers: Sequence[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yields the frames of these ascending numbers, from 0; UnreadableImage for a frame that cannot be decoded."""
    ...


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video in memory."""

  pixels: UInt8[np.ndarray, "F H W 3"]
  fps: float

  def __post_init__(self):
    if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[3] != 3:
      raise ValueError(
        f"a video array is {self.pixels.dtype} {self.pixels.shape}; give uint8 [F, H, W, 3] (RGB)"
      )
    check_rate(self.fps)

  @property
  def info(self) -> VideoInfo:
    frames, height, width, _ = self.pixels.shape
    return VideoInfo(frames, self.fps, height, width)

  def read(self, numbers: Sequence[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    return (self.pixels[number] for number in numbers)


def check_rate(fps: float) -> None:
  """Raises ValueError unless the rate is positive and finite."""
  if not 0 < fps < math.inf:
    raise ValueError(f"fps is {fps}; frames a second must be a positive number")


@dataclasses.dataclass(frozen=True)
class VideoSettings(ImageSettings):
  """Settings of `video_preprocessor_config.json`; `min_pixels` and `max_pixels` count all frames together."""

  fps: float
  """Frames sampled per second."""
  min_frames: int
  max_frames: int

  def __post_init__(self):
    super().__post_init__()
    check_rate(self.fps)
    check_sizes(self, {"min_frames": 2**24, "max_frames": 2**24})

  @classmethod
  def from_folder(cls, folder: epath.PathLike) -> "VideoSettings":
    """Reads `video_preprocessor_config.json` of a Hugging Face folder, or the `processor_config.json` of newer ones.

    Raises:
      FileNotFoundError: neither file exists.
      ValueError: a setting is missing, or asks for an unsupported step.
    """
    path, config = read_settings(folder, "video_preprocessor_config.json", "video_processor")
    with reading(path):
      for name, allowed in _SUPPORTED.items():
        if config.get(name, allowed[0]) not in allowed:
          raise ValueError(f"{path}: {name} is {config[name]!r}; only {allowed[0]!r} is supported")
      sampling = {name: config.get(name, value) for name, value in _SAMPLING.items()}
      return cls(**common_settings(path, config), **sampling)


_SUPPORTED = {
  "do_sample_frames": (True,),
  "num_frames": (None,),
  "cap_pixels_per_frame": (None, False),
}
_SAMPLING = {"fps": 2, "min_frames": 4, "max_frames": 768}
"""Defaults of Hugging Face's class; published files omit these settings."""


def frame_numbers(info: VideoInfo, settings: VideoSettings) -> list[int]:
  """Returns the numbers of the sampled frames, evenly spaced from the first to the last."""
  count = int(info.frames / info.fps * settings.fps)
  count = min(max(count, settings.min_frames), settings.max_frames, info.frames)
  return np.linspace(0, info.frames - 1, count).round().astype(int).tolist()


def timestamps(info: VideoInfo, settings: VideoSettings) -> list[float]:
  """Returns the time in seconds of each group of frames that is merged: the mean of its first and last frame's."""
  T = settings.temporal_patch_size
  numbers = frame_numbers(info, settings)
  numbers += numbers[-1:] * (-len(numbers) % T)
  seconds = [number / info.fps for number in numbers]
  return [(seconds[i] + seconds[i + T - 1]) / 2 for i in range(0, len(seconds), T)]


def video_grid(info: VideoInfo, settings: VideoSettings) -> Grid:
  """Returns groups of frames, rows and columns of the patches of `patchify_video`."""
  count = len(frame_numbers(info, settings))
  height, width = smart_resize_video(count, info.height, info.width, settings)
  p = settings.patch_size
  return math.ceil(count / settings.temporal_patch_size), height // p, width // p


def smart_resize_video(
  frames: int, height: int, width: int, settings: VideoSettings
) -> tuple[int, int]:
  """Returns a size in pixels near (height, width): multiples of patch·merge, a volume within the settings' bounds.

  As `smart_resize` of Qwen3-VL's video processor, with halves rounded to even. Raises UnreadableVideo for a single
  frame and beyond an aspect ratio of 200.
  """
  T = settings.temporal_patch_size
  if frames < T:
    raise UnreadableVideo(
      f"a video of {frames} frame is too short: at least {T} are needed; give an image"
    )
  factor = settings.patch_size * settings.merge_size
  given = f"{width}×{height}"
  if min(height, width) < factor:
    grow = max(factor / height, factor / width)
    height, width = int(height * grow), int(width * grow)
  if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
    raise UnreadableVideo(
      f"a video of {given} pixels is too elongated: the longer side may be at most "
      f"{MAX_ASPECT_RATIO} times the shorter; crop it"
    )
  h, w = round(height / factor) * factor, round(width / factor) * factor
  volume = round(frames / T) * T * h * w
  if volume > settings.max_pixels:
    shrink = math.sqrt((frames * height * width) / settings.max_pixels)
    h = max(factor, math.floor(height / shrink / factor) * factor)
    w = max(factor, math.floor(width / shrink / factor) * factor)
  elif volume < settings.min_pixels:
    grow = math.sqrt(settings.min_pixels / (frames * height * width))
    h = math.ceil(height * grow / factor) * factor
    w = math.ceil(width * grow / factor) * factor
  return h, w


def patchify_video(video: Video, settings: VideoSettings) -> Patches:
  """Samples, resizes (bicubic), normalises and cuts a video into patches, frame pair by frame pair.

  An odd last frame is repeated.

  Returns:
    Patches [M, 3·temporal·patch²] and their grid (t, rows, columns).

  Raises:
    UnreadableVideo: the video is too short, too elongated, or has frames of several sizes.
    UnreadableImage: a frame cannot be decoded.
  """
  info = video.info
  t, rows, columns = video_grid(info, settings)
  T, p = settings.temporal_patch_size, settings.patch_size
  numbers = frame_numbers(info, settings)
  frames = np.empty((t * T, rows * p, columns * p, 3), np.uint8)
  for n, frame in enumerate(video.read(numbers)):
    if frame.shape[:2] != (info.height, info.width):
      raise UnreadableVideo(
        f"frame {numbers[n]} of a video has {frame.shape[1]}×{frame.shape[0]} pixels, others "
        f"{info.width}×{info.height}; all must have one size"
      )
    frames[n] = resize(frame, *frames.shape[1:3])
  frames[len(numbers) :] = frames[len(numbers) - 1]
  return cut(_normalised(settings.mean, settings.std)[np.arange(3), frames], settings)


@functools.lru_cache(maxsize=8)
def _normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Float[np.ndarray, "3 256"]:
  """Returns the value of each byte in each channel: rescaled and normalised in one float32 step, unlike images."""
  whole = np.float32(1.0 / (1 / 255))
  shift, scale = (
    np.array(mean, np.float32)[:, None] * whole,
    np.array(std, np.float32)[:, None] * whole,
  )
  table = (np.arange(256, dtype=np.float32) - shift) / scale
  table.flags.writeable = False  # shared by all callers
  return table
