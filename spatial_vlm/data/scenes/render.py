"""Scenes of coloured shapes and their pictures."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Bool, Float, UInt8

from spatial_vlm.answers import Box

COLORS: dict[str, tuple[int, int, int]] = {
  "red": (222, 48, 48),
  "green": (52, 186, 72),
  "blue": (56, 104, 236),
  "yellow": (244, 208, 44),
  "purple": (168, 64, 206),
  "white": (238, 238, 238),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "bar")
TEXTURES = ("flat", "gradient", "stripes", "noise")

_SUPERSAMPLING = 4
_TEXTURE_CONTRAST = 12.0


@dataclasses.dataclass(frozen=True)
class SceneObject:
  """A coloured shape and the box that it fills."""

  color: str
  shape: str
  box: Box
  """In 0–1000 of the image; the shape fills it."""
  tint: tuple[int, int, int] = (0, 0, 0)
  """Added to the RGB values of the colour."""

  @property
  def name(self) -> str:
    return f"{self.color} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Background:
  """What the objects lie on."""

  texture: str
  color: tuple[int, int, int]
  angle: float
  """Direction of a gradient or of stripes, in radians."""
  period: float
  """Of stripes, in units of the image (0–1000)."""
  seed: int
  """Of the noise."""


@dataclasses.dataclass(frozen=True)
class Scene:
  """All that a picture shows; the objects are drawn in their order, later ones over earlier."""

  objects: tuple[SceneObject, ...]
  """From back to front."""
  background: Background
  brightness: float = 1.0

  @property
  def boxes(self) -> dict[str, Box]:
    """Named boxes in scan order: from left to right, then from top to bottom."""
    ordered = sorted(self.objects, key=lambda o: (o.box[0], o.box[1], o.name))
    return {o.name: o.box for o in ordered}


def covers(
  shape: str, u: Float[np.ndarray, "*#points"], v: Float[np.ndarray, "*#points"]
) -> Bool[np.ndarray, "*points"] | np.bool_:
  """Whether the shape covers a point; u (right) and v (down) run from −1 to 1 over its box."""
  u, v = np.abs(u), np.asarray(v)
  if shape == "triangle":
    return (2 * u <= v + 1) & (v <= 1)
  v = np.abs(v)
  match shape:
    case "circle":
      return u**2 + v**2 <= 1
    case "diamond":
      return u + v <= 1
    case "cross":
      return ((u <= 1 / 3) & (v <= 1)) | ((v <= 1 / 3) & (u <= 1))
    case "square" | "bar":
      return (u <= 1) & (v <= 1)
  raise ValueError(f"shape is {shape!r}; allowed are {SHAPES}")


def render(scene: Scene, image_size: int = 64) -> UInt8[np.ndarray, "H W 3"]:
  """Draws a square picture of `image_size` pixels, anti-aliased."""
  image = _background(scene.background, image_size)
  for item in scene.objects:
    rows, columns, alpha = _coverage(item, image_size)
    rgb = np.asarray(COLORS[item.color], np.float32) + np.asarray(item.tint, np.float32)
    patch = image[rows, columns]
    patch += alpha[..., None] * (rgb - patch)
  image *= scene.brightness
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _coverage(item: SceneObject, image_size: int) -> tuple[slice, slice, Float[np.ndarray, "h w"]]:
  """Rows and columns that the object reaches, and the share of each pixel that it covers."""
  x1, y1, x2, y2 = item.box
  columns, u = _subpixels(x1, x2, image_size)
  rows, v = _subpixels(y1, y2, image_size)
  inside = covers(item.shape, u[None, :], v[:, None]).astype(np.float32)
  s = _SUPERSAMPLING
  alpha = inside.reshape(len(v) // s, s, len(u) // s, s).mean((1, 3))
  return rows, columns, alpha


def _subpixels(low: int, high: int, image_size: int) -> tuple[slice, Float[np.ndarray, "n"]]:
  """Pixels from `low` to `high` (0–1000), and their sub-pixels in coordinates −1 … 1 of that span."""
  start, stop = low * image_size // 1000, -(-high * image_size // 1000)
  n = (stop - start) * _SUPERSAMPLING
  points = (start + (np.arange(n, dtype=np.float32) + 0.5) / _SUPERSAMPLING) * (1000 / image_size)
  return slice(start, stop), (2 * points - (low + high)) / (high - low)


def _background(background: Background, image_size: int) -> Float[np.ndarray, "H W 3"]:
  texture = _texture(background, image_size)
  color = np.asarray(background.color, np.float32)
  return color + _TEXTURE_CONTRAST * texture[..., None]


def _texture(background: Background, image_size: int) -> Float[np.ndarray, "H W"]:
  match background.texture:
    case "flat":
      return np.zeros((image_size, image_size), np.float32)
    case "noise":
      rng = np.random.default_rng(background.seed)
      return 2 * rng.random((image_size, image_size), dtype=np.float32) - 1
    case "gradient":
      return _ramp(background.angle, image_size)
    case "stripes":
      return np.sin(
        _ramp(background.angle, image_size) * np.float32(1000 * math.pi / background.period)
      )
  raise ValueError(f"texture is {background.texture!r}; allowed are {TEXTURES}")


def _ramp(angle: float, image_size: int) -> Float[np.ndarray, "H W"]:
  """Rises from about −1 to 1 across the image in the direction of `angle`."""
  axis = _axis(image_size)
  return axis[None, :] * np.float32(math.cos(angle)) + axis[:, None] * np.float32(math.sin(angle))


@functools.cache
def _axis(image_size: int) -> Float[np.ndarray, "n"]:
  return np.linspace(-1, 1, image_size, dtype=np.float32)
