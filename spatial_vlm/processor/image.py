"""Images as patches: opened, resized and flattened as in Hugging Face's PIL processor of Qwen3-VL.

Values equal `Qwen2VLImageProcessorPil` (transformers 5.23) bit for bit. Everything that depends on the sizes of images
(coordinates, interpolation of the position embedding, segments) is computed here, on the host, so that the model
compiles once.
"""

import base64
import dataclasses
import functools
import io
import math
import os
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy as np
import PIL.ExifTags
import PIL.Image
from etils import epath
from jaxtyping import Float, Int, UInt8

from spatial_vlm.huggingface.folder import reading
from spatial_vlm.jsonl import read_object
from spatial_vlm.model.config import VisionConfig, check_sizes
from spatial_vlm.remote import is_remote
from spatial_vlm.types import Vision

MAX_ASPECT_RATIO = 200

Grid = tuple[int, int, int]
"""Frames, rows and columns of patches."""
Patches = tuple[Float[np.ndarray, "_ _"], Grid]
"""Patches of one image (each image has another number of them) and their grid."""


class UnreadableImage(ValueError):
  """A file that is not an image, is damaged or is too large to open safely; the message names it."""


@dataclasses.dataclass(frozen=True)
class ImageSettings:
  """Settings of `preprocessor_config.json`: sizes in pixels, `mean` and `std` of values in 0–1 per channel."""

  patch_size: int
  temporal_patch_size: int
  merge_size: int
  min_pixels: int
  max_pixels: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]

  def __post_init__(self):
    counts = ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels")
    check_sizes(self, dict.fromkeys(counts, 2**40))
    if self.min_pixels > self.max_pixels:
      raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
    for name, least in (("mean", -_MOST_NORMALISED), ("std", 1 / _MOST_NORMALISED)):
      values = getattr(self, name)
      if len(values) != 3 or not all(_is_number(v, least) for v in values):
        raise ValueError(
          f"image_{name} is {values}; give three numbers from {least:g} to {_MOST_NORMALISED:g}"
        )

  @classmethod
  def from_folder(cls, folder: epath.PathLike) -> "ImageSettings":
    """Reads `preprocessor_config.json` of a Hugging Face folder, or the `processor_config.json` of newer ones.

    Raises:
      FileNotFoundError: neither file exists.
      ValueError: a setting is missing, or asks for an unsupported step.
    """
    path, config = read_settings(folder, "preprocessor_config.json", "image_processor")
    with reading(path):
      size = dict(config.get("size") or _DEFAULT_SIZE)
      for name, edge in _OLDER_BOUNDS.items():
        if config.get(name) is not None:
          size[edge] = config[name]
      return cls(**common_settings(path, {**config, "size": size}))


def read_settings(
  folder: epath.PathLike, own: str, section: str
) -> tuple[epath.Path, dict[str, Any]]:
  """Returns a file's path and its settings: the file `own`, or a section of the newer `processor_config.json`."""
  files = [epath.Path(folder) / name for name in (own, "processor_config.json")]
  path = next((path for path in files if path.is_file()), files[0])
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} is missing; give the folder of a Hugging Face Qwen3-VL checkpoint"
    )
  with reading(path):
    config = read_object(path)
    if not isinstance(settings := config.get(section, config), dict):
      raise ValueError(f"{section} is {settings!r}; it must be an object")
  return path, settings


def common_settings(path: epath.Path, config: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of `ImageSettings`; ValueError for an unsupported step or a missing setting."""
  for name, (done, allowed) in _SUPPORTED.items():
    if config.get(name, done) not in allowed:
      raise ValueError(f"{path}: {name} is {config[name]!r}; only {done!r} is supported")
  try:
    return {
      "patch_size": config["patch_size"],
      "temporal_patch_size": config["temporal_patch_size"],
      "merge_size": config["merge_size"],
      "min_pixels": config["size"]["shortest_edge"],
      "max_pixels": config["size"]["longest_edge"],
      "mean": tuple(config["image_mean"]),
      "std": tuple(config["image_std"]),
    }
  except KeyError as error:
    raise ValueError(f"{path} lacks {error}, a setting of Qwen3-VL's processor") from error


def _is_number(value: Any, least: float) -> bool:
  return type(value) in (int, float) and least <= value <= _MOST_NORMALISED


_MOST_NORMALISED = 1e6
"""Of means and deviations: within it, normalised values are finite in float32."""
_DEFAULT_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
_OLDER_BOUNDS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
"""Names that transformers 4.57 writes beside `size`, and which replace its bounds."""
_SUPPORTED = {
  "do_resize": (True, (True,)),
  "do_rescale": (True, (True,)),
  "do_normalize": (True, (True,)),
  "do_convert_rgb": (True, (True,)),
  "rescale_factor": (1 / 255, (1 / 255,)),
  "resample": (3, (3,)),  # PIL's number of bicubic
}
"""Settings of the steps: (default, supported values)."""


def png(image: PIL.Image.Image, compress_level: int = -1) -> bytes:
  """Returns the image as the bytes of a PNG file; `compress_level` is zlib's, −1 its default."""
  buffer = io.BytesIO()
  image.save(buffer, "PNG", compress_level=compress_level)
  return buffer.getvalue()


def data_url(file: bytes, mime_type: str = "image/png") -> str:
  """Returns the bytes of an image file as a data URL, as requests in OpenAI's format hold it."""
  return f"data:{mime_type};base64,{base64.b64encode(file).decode()}"


def open_image(source: epath.PathLike | bytes) -> PIL.Image.Image:
  """Opens an image (a path, local or remote, or the bytes of a file) upright and as RGB.

  EXIF's orientation is applied, unless the metadata are broken; transparent parts become white; grey values of 16 bits
  are scaled to 8.

  Raises:
    UnreadableImage: the file is missing, not of FORMATS, truncated, has more pixels than PIL considers safe, or grey
      values of 32 bits, whose white is unknown.
  """
  name = f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)
  try:
    data = source if isinstance(source, bytes) else _read(epath.Path(source))
    image = open_header(io.BytesIO(data))
    check_pixels(image.width, image.height)
    image.load()
    return to_rgb(_in_8_bits(_upright(image)))
  except Exception as error:  # decoders of damaged files raise anything, even struct.error
    reason = str(error) or type(error).__name__
    raise UnreadableImage(f"cannot read image {name}: {reason}") from error


def _read(path: epath.Path) -> bytes:
  # A pipe would never end; epath's is_file is true for it.
  if not is_remote(path) and os.path.exists(path) and not os.path.isfile(path):
    raise OSError("it is a folder or a device, not a file")
  return path.read_bytes()


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that PIL may try, whatever a file is named: for PostScript it would start another program."""


def open_header(file: IO[bytes]) -> PIL.Image.Image:
  """Opens a file of FORMATS without decoding it; raises what PIL raises."""
  try:
    return PIL.Image.open(file, formats=FORMATS)
  except PIL.UnidentifiedImageError as error:  # its message holds an address in memory
    text = f"cannot identify its format; readable are {', '.join(FORMATS)}"
    raise PIL.UnidentifiedImageError(text) from error


def orientation(image: PIL.Image.Image) -> int:
  """Returns EXIF's orientation, 1 to 8; 1, which is upright, without one or with broken metadata."""
  try:
    return image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
  except Exception:  # parsers of broken metadata raise anything, even SyntaxError
    return 1


_TO_UPRIGHT = {
  2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
  3: PIL.Image.Transpose.ROTATE_180,
  4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
  5: PIL.Image.Transpose.TRANSPOSE,
  6: PIL.Image.Transpose.ROTATE_270,
  7: PIL.Image.Transpose.TRANSVERSE,
  8: PIL.Image.Transpose.ROTATE_90,
}
"""EXIF's orientation → what makes the image upright."""


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
  turn = _TO_UPRIGHT.get(orientation(image))
  return image if turn is None else image.transpose(turn)


def _in_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
  """Scales 16 bits to 8, which PIL's `convert` would clip to white; raises ValueError for 32 bits."""
  if image.mode in ("I", "F"):
    raise ValueError(
      f"grey values of 32 bits (mode {image.mode}); save the image with 8 or 16 bits"
    )
  if image.mode.startswith("I;16"):
    return PIL.Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
  return image


def check_pixels(width: int, height: int) -> None:
  """Raises ValueError for more pixels than PIL considers safe: a few crafted kilobytes can decode to any size."""
  limit = PIL.Image.MAX_IMAGE_PIXELS
  if limit is not None and width * height > limit:
    raise ValueError(f"{width}×{height} pixels are more than {limit}")


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
  """Converts to RGB; transparent parts become white."""
  if "A" in image.getbands() or image.info.get("transparency") is not None:
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = PIL.Image.alpha_composite(white, image)
  return image.convert("RGB")


def smart_resize(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
  """Returns a size in pixels near (height, width): multiples of patch·merge, an area within the settings' bounds.

  As `smart_resize` of Qwen2-VL, with halves rounded to even. Raises UnreadableImage beyond an aspect ratio of 200.
  """
  if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
    raise UnreadableImage(
      f"an image of {width}×{height} pixels is too elongated: the longer side may be at most "
      f"{MAX_ASPECT_RATIO} times the shorter; crop it"
    )
  factor = settings.patch_size * settings.merge_size
  h, w = round(height / factor) * factor, round(width / factor) * factor
  if h * w > settings.max_pixels:
    shrink = math.sqrt((height * width) / settings.max_pixels)
    h = max(factor, math.floor(height / shrink / factor) * factor)
    w = max(factor, math.floor(width / shrink / factor) * factor)
  elif h * w < settings.min_pixels:
    grow = math.sqrt(settings.min_pixels / (height * width))
    h = math.ceil(height * grow / factor) * factor
    w = math.ceil(width * grow / factor) * factor
  return h, w


def patchify(image: PIL.Image.Image | np.ndarray, settings: ImageSettings) -> Patches:
  """Resizes (bicubic), normalises and cuts an image into patches in 2×2 merge-block order.

  Args:
    image: any PIL image (transparent parts become white; EXIF is applied by `open_image`), or RGB bytes [H, W, 3].
    settings: of the processor.

  Returns:
    Patches [M, 3·temporal·patch²] and their grid (1, rows, columns), M = rows·columns.
  """
  values = _normalised(settings.mean, settings.std)[np.arange(3), _pixels(image, settings)]
  frames = np.broadcast_to(values, (settings.temporal_patch_size, *values.shape))
  return cut(frames, settings)


def cut(frames: Float[np.ndarray, "F H W 3"], settings: ImageSettings) -> Patches:
  """Returns patches of groups of `temporal_patch_size` frames, each group in 2×2 merge-block order."""
  count, height, width, _ = frames.shape
  p, m, T = settings.patch_size, settings.merge_size, settings.temporal_patch_size
  t, rows, columns = count // T, height // p, width // p
  blocks = frames.reshape(t, T, rows // m, m, p, columns // m, m, p, 3)
  blocks = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # [t h w m m 3 T p p]
  return blocks.reshape(t * rows * columns, -1), (t, rows, columns)


def vision_rows(
  rows: Sequence[Sequence[Patches]], config: VisionConfig, patch_bucket: int
) -> Vision | None:
  """Concatenates the images of each row and pads all rows to one length.

  M is the smallest multiple of `patch_bucket` that holds every row, at least one bucket. Returns None if there is no
  image.
  """
  if patch_bucket <= 0 or patch_bucket % config.merge_unit:
    raise ValueError(
      f"patch_bucket is {patch_bucket}; it must be a positive multiple of {config.merge_unit}"
    )
  if not any(rows):
    return None
  M = padded_length((sum(len(p) for p, _ in row) for row in rows), patch_bucket)
  return padded_vision(rows, config, M)


def padded_vision(rows: Sequence[Sequence[Patches]], config: VisionConfig, patches: int) -> Vision:
  """Concatenates the images of each row and pads all rows to M = `patches`.

  Raises ValueError if M is not a multiple of the merge block.
  """
  if patches % config.merge_unit:
    raise ValueError(
      f"rows have {patches} patches; the number must be a multiple of {config.merge_unit}"
    )
  B, M = len(rows), patches
  vision: dict[str, Any] = {
    "patches": np.zeros((B, M, config.patch_dim), np.float32),
    "segments": np.zeros((B, M), np.int32),
    "coords": np.zeros((B, M, 2), np.int32),
    "pos_index": np.zeros((B, M, 4), np.int32),
    "pos_weight": np.zeros((B, M, 4), np.float32),
  }
  for b, row in enumerate(rows):
    for name, values in _packed(row, config).items() if row else ():
      vision[name][b, : len(values)] = values
  return Vision(**vision)


def _packed(row: Sequence[Patches], config: VisionConfig) -> dict[str, np.ndarray]:
  """Returns the fields of `Vision` for the images of one row, unpadded."""
  side = math.isqrt(config.num_position_embeddings)
  frames = [
    frame_geometry(h, w, side, config.spatial_merge_size) for _, (t, h, w) in row for _ in range(t)
  ]
  coords, index, weight = (np.concatenate(arrays) for arrays in zip(*frames, strict=True))
  return {
    "patches": np.concatenate([patches for patches, _ in row]),
    "segments": np.repeat(np.arange(1, len(frames) + 1), [len(coords) for coords, _, _ in frames]),
    "coords": coords,
    "pos_index": index,
    "pos_weight": weight,
  }


def padded_length(lengths: Iterable[int], bucket: int) -> int:
  """Returns the smallest positive multiple of `bucket` that holds the longest."""
  return max(1, math.ceil(max(lengths) / bucket)) * bucket


@functools.lru_cache(maxsize=1024)
def frame_geometry(
  rows: int, columns: int, side: int, merge: int
) -> tuple[Int[np.ndarray, "M 2"], Int[np.ndarray, "M 4"], Float[np.ndarray, "M 4"]]:
  """Returns row and column of each patch of a frame, and its neighbours in the learnt position grid with weights.

  Patches are in merge-block order. The learnt `side`×`side` grid is interpolated bilinearly with aligned corners in
  float32, operation for operation as in `vision_utils` of transformers 5.23. The four neighbours are in the order (top
  left, top right, bottom left, bottom right). The arrays are read-only.
  """
  raster = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
  blocks = raster.reshape(rows // merge, merge, columns // merge, merge, 2)
  coords = blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)
  (top, top_weight), (left, left_weight) = (
    _two_neighbours(coords[:, axis], size, side) for axis, size in enumerate((rows, columns))
  )
  index = (top[:, :, None] * side + left[:, None, :]).reshape(-1, 4)
  weight = (top_weight[:, :, None] * left_weight[:, None, :]).reshape(-1, 4)
  for array in (coords, index, weight):
    array.flags.writeable = False
  return coords, index, weight


def _two_neighbours(position, size: int, side: int):
  source = position.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
  floor = np.floor(source)
  neighbours = floor.astype(np.int32)[:, None] + np.arange(2, dtype=np.int32)
  distance = np.abs((source - floor)[:, None] - np.arange(2, dtype=np.float32))
  return np.clip(neighbours, 0, side - 1), np.maximum(1 - distance, 0)


def _pixels(image, settings: ImageSettings) -> UInt8[np.ndarray, "H W 3"]:
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise ValueError(f"an image array is {image.dtype} {image.shape}; give uint8 [H, W, 3] (RGB)")
    image = PIL.Image.fromarray(image)
  elif not isinstance(image, PIL.Image.Image):
    raise ValueError(
      f"an image is a {type(image).__name__}; give a PIL image, as from open_image, or uint8 [H, W, 3]"
    )
  height, width = smart_resize(image.height, image.width, settings)
  return np.asarray(to_rgb(image).resize((width, height), PIL.Image.Resampling.BICUBIC))


@functools.lru_cache(maxsize=8)
def _normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Float[np.ndarray, "3 256"]:
  """Returns the value of each byte in each channel: rescaled in float64, normalised in float32, as in Hugging Face."""
  rescaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
  table = (rescaled - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
  table.flags.writeable = False  # shared by all callers
  return table
