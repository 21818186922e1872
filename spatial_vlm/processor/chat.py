"""Conversations as arrays: Qwen3-VL's chat format, the loss mask and M-RoPE positions, then batches of them.

The format is rendered here, without a template engine, since it runs for every training sample. Tests compare it
with `apply_chat_template` and `get_rope_index` of transformers 5.23.

  <|im_start|>user\\n<|vision_start|><|image_pad|>…<|vision_end|>Question<|im_end|>\\n
  <|im_start|>assistant\\nAnswer<|im_end|>\\n

A video is a sequence of merged pairs of sampled frames, each after its time, between brackets:

  <|vision_start|><0.2 seconds><|vision_start|><|video_pad|>…<|vision_end|><1.2 seconds>…<|vision_end|>
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath
from jaxtyping import Bool, DTypeLike, Int
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from spatial_vlm.huggingface.folder import read_model_config, reading
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.processor.image import (
  Grid,
  ImageSettings,
  Patches,
  padded_length,
  padded_vision,
  patchify,
  smart_resize,
  vision_rows,
)
from spatial_vlm.processor.tokenizer import SpecialIds, load_tokenizer
from spatial_vlm.processor.video import (
  Video,
  VideoInfo,
  VideoSettings,
  patchify_video,
  timestamps,
  video_grid,
)
from spatial_vlm.types import Batch, Prompts

Message = dict[str, Any]
Settings = TypeVar("Settings", bound=ImageSettings)
ROLES = ("system", "user", "assistant")


class Size(NamedTuple):
  """Size of a conversation, or of a row for some."""

  tokens: int
  patches: int

  def holds(self, other: "Size") -> bool:
    return self.tokens >= other.tokens and self.patches >= other.patches


def total_size(sizes: Iterable[Size]) -> Size:
  """Returns the size of concatenated conversations."""
  sizes = list(sizes)
  return Size(sum(size.tokens for size in sizes), sum(size.patches for size in sizes))


class ImageSize(NamedTuple):
  """Replaces an image when only its size in pixels is needed; a `VideoInfo` replaces a video."""

  height: int
  width: int


@dataclasses.dataclass(frozen=True)
class Encoded:
  """One conversation, unpadded."""

  tokens: Int[np.ndarray, "T"]
  targets: Bool[np.ndarray, "T"]
  """True on the assistant's text and the <|im_end|> that ends it."""
  positions: Int[np.ndarray, "T 3"]
  """M-RoPE: time, height, width."""
  images: list[Patches]
  """Images and videos, in the order of the text."""
  prefix: int = 0
  """Tokens before those of the first image, where a system turn comes first: equal in all questions that share it."""

  @property
  def patches(self) -> int:
    """Number of patches of all images and videos."""
    return sum(len(patches) for patches, _ in self.images)

  @property
  def size(self) -> Size:
    return Size(len(self.tokens), self.patches)


class Processor:
  """Tokenizer, image and video settings of one checkpoint."""

  def __init__(
    self,
    tokenizer: PreTrainedTokenizerFast,
    image_settings: ImageSettings,
    video_settings: VideoSettings,
    model_config: ModelConfig,
  ):
    _check_patches(image_settings, model_config, "preprocessor_config.json")
    _check_patches(video_settings, model_config, "video_preprocessor_config.json")
    self.tokenizer = tokenizer
    self.image_settings = image_settings
    self.video_settings = video_settings
    self.model_config = model_config
    self.special = SpecialIds.of(tokenizer, model_config)
    # A user's text must never become special ids. The copy is needed because transformers changes this flag itself.
    self._text = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    self._text.encode_special_tokens = True
    self._text.no_padding()
    self._text.no_truncation()
    self._newline = self.encode_text("\n")
    self._assistant = self.encode_text("assistant\n")

  def __reduce__(self):
    # Workers of the input pipeline get copies; pickling would lose the flag above.
    return Processor, (
      self.tokenizer,
      self.image_settings,
      self.video_settings,
      self.model_config,
    )

  @classmethod
  def from_folder(cls, folder: epath.PathLike) -> "Processor":
    """Reads tokenizer, `config.json` and the settings for images and videos of a Hugging Face folder."""
    model_config = read_model_config(folder)  # first: transformers reads it too, with worse errors
    tokenizer = load_tokenizer(folder)
    images, videos = ImageSettings.from_folder(folder), VideoSettings.from_folder(folder)
    with reading(epath.Path(folder)):
      return cls(tokenizer, images, videos, model_config)

  def limited_to(self, patches: int) -> "Processor":
    """Returns a processor that scales down images and videos of more patches: attention costs their square."""
    images = _limited(self.image_settings, patches * self.image_settings.patch_size**2)
    settings = self.video_settings
    videos = _limited(settings, patches * settings.patch_size**2 * settings.temporal_patch_size)
    return Processor(self.tokenizer, images, videos, self.model_config)

  def encode_text(self, text: str) -> list[int]:
    """Returns the ids of plain text; strings that look like special tokens stay text."""
    return self._text.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of generated ids without special tokens, with every space unchanged."""
    return self._text.decode(list(ids), skip_special_tokens=True)


def _check_patches(settings: ImageSettings, model_config: ModelConfig, file: str) -> None:
  for ours, theirs in (
    ("patch_size", "patch_size"),
    ("temporal_patch_size", "temporal_patch_size"),
    ("merge_size", "spatial_merge_size"),
  ):
    given, needed = getattr(settings, ours), getattr(model_config.vision, theirs)
    if given != needed:
      raise ValueError(
        f"{ours} is {given} in {file} but {theirs} is {needed} in config.json; use the files of one checkpoint"
      )


def _limited(settings: Settings, pixels: int) -> Settings:
  return dataclasses.replace(
    settings,
    max_pixels=min(pixels, settings.max_pixels),
    min_pixels=min(pixels, settings.min_pixels),
  )


def encode(
  processor: Processor, messages: Sequence[Message], generation_prompt: bool = False
) -> Encoded:
  """Encodes a conversation in Hugging Face's message format.

  Args:
    processor: of the checkpoint.
    messages: `{"role", "content"}`, content a string or parts `{"type": "text", "text": str}` and, for users,
      `{"type": "image", "image": PIL image | uint8 [H, W, 3]}` and `{"type": "video", "video": Video}`, see `Clip`
      and `open_video`. A system turn may only come first.
    generation_prompt: whether to open the assistant's turn at the end.

  Raises:
    ValueError: the format cannot express the conversation; the message names the turn and the reason.
  """
  return _built(processor, messages, generation_prompt, _DECODED)


def measure(processor: Processor, messages: Sequence[Message]) -> Size:
  """Returns the size of an encoded conversation without reading a pixel.

  Images may be given as `ImageSize`, videos as `VideoInfo`.
  """
  return _built(processor, messages, False, _MEASURED).size


class _Visuals(NamedTuple):
  """Functions that convert an image and a video to patches."""

  of_image: Callable[[Any, ImageSettings], Patches]
  of_video: Callable[[Any, VideoSettings], Patches]


def _blank_image(image: ImageSize, settings: ImageSettings) -> Patches:
  """Returns as many patches as `patchify`, without values."""
  height, width = smart_resize(image.height, image.width, settings)
  return _blank_patches((1, height // settings.patch_size, width // settings.patch_size))


def _blank_video(video: Video | VideoInfo, settings: VideoSettings) -> Patches:
  return _blank_patches(video_grid(_video_info(video), settings))


def _blank_patches(grid: Grid) -> Patches:
  return np.empty((math.prod(grid), 0), np.float32), grid


_DECODED = _Visuals(patchify, patchify_video)
_MEASURED = _Visuals(_blank_image, _blank_video)


def _built(
  processor: Processor,
  messages: Sequence[Message],
  generation_prompt: bool,
  visuals: _Visuals,
) -> Encoded:
  special, row = processor.special, _ConversationBuilder()
  if not messages:
    raise ValueError("a conversation has no message; at least one is needed")
  for n, message in enumerate(messages):
    role, parts = _checked(n, message)
    row.text([special.im_start])
    if role == "assistant":
      # Encoded as in sampling: the header alone, and the answer beginning with a new token.
      row.text(processor._assistant)
      text = "".join(text for _, text in parts)
      row.text([*processor.encode_text(text), special.eos], target=True)
    else:
      _prompt_turn(row, processor, role, parts, visuals)
      row.text([special.eos])
    row.text(processor._newline)
  if generation_prompt:
    row.text([special.im_start, *processor._assistant])
  return row.encoded(has_system=messages[0]["role"] == "system")


def split_prefix(row: Encoded) -> tuple[Int[np.ndarray, "S"], Encoded]:
  """Returns the tokens of the row's prefix, and the row without them; its positions go on from theirs."""
  start = row.prefix
  rest = dataclasses.replace(
    row,
    tokens=row.tokens[start:],
    targets=row.targets[start:],
    positions=row.positions[start:],
    prefix=0,
  )
  return row.tokens[:start], rest


def collate_batch(rows: Sequence[Sequence[Encoded]], processor: Processor, shape: Size) -> Batch:
  """Collates conversations to a batch of NumPy arrays: each row concatenates some, numbered from 1, and is padded.

  Attention stays inside a conversation, positions restart in each, and images are in the order of the text. A row may
  be empty. `vision` is None if and only if `shape` has no patches, so that equal shapes are one program.

  Raises:
    ValueError: a row does not fit, or the patches of `shape` are not a multiple of the merge block.
  """
  sizes = [total_size(conversation.size for conversation in row) for row in rows]
  if too_large := [size for size in sizes if not shape.holds(size)]:
    raise ValueError(
      f"a row of {too_large[0].tokens} tokens and {too_large[0].patches} patches does not fit in {tuple(shape)}"
    )
  batch = _blank(len(rows), shape.tokens, processor)
  for b, row in enumerate(rows):
    start = 0
    for number, conversation in enumerate(row, 1):
      stop = start + len(conversation.tokens)
      _write(batch, b, slice(start, stop), conversation, number)
      batch["targets"][b, start] = False  # the token before it belongs to another conversation
      start = stop
  images = [[image for conversation in row for image in conversation.images] for row in rows]
  vision = processor.model_config.vision
  return Batch(
    **batch, vision=padded_vision(images, vision, shape.patches) if shape.patches else None
  )


def collate_prompts(
  rows: Sequence[Encoded],
  processor: Processor,
  ids: Sequence[int],
  labels: Sequence[int],
  tokens_bucket: int,
  patch_bucket: int,
) -> Prompts:
  """Pads prompts on the left, so that all answers begin at one column; `ids` and `labels` have one entry per row."""
  if not len(ids) == len(labels) == len(rows):
    raise ValueError(
      f"{len(rows)} prompts have {len(ids)} ids and {len(labels)} labels; give one of each per prompt"
    )
  if not rows or tokens_bucket <= 0:
    raise ValueError(
      f"{len(rows)} rows in buckets of {tokens_bucket} tokens; give at least one row and a positive bucket"
    )
  T = padded_length((len(row.tokens) for row in rows), tokens_bucket)
  padded = _blank(len(rows), T, processor)
  for b, row in enumerate(rows):
    _write(padded, b, slice(T - len(row.tokens), T), row, number=1)
  del padded["targets"]  # the answers are not sampled yet
  numbers: dict[str, Any] = {"ids": np.array(ids, np.int32), "label": np.array(labels, np.int32)}
  return Prompts(
    **padded,
    **numbers,
    vision=vision_rows([row.images for row in rows], processor.model_config.vision, patch_bucket),
  )


def cast_patches(batch: Any, dtype: DTypeLike) -> Any:
  """Returns a `Batch` or `Prompts` with its patches in the computation's type.

  The vision tower casts them before anything else, so results are the same, and fewer bytes travel to the devices.
  """
  if batch.vision is None:
    return batch
  patches = np.asarray(batch.vision.patches).astype(dtype)
  return batch.replace(vision=batch.vision.replace(patches=patches))


class _ConversationBuilder:
  """Builds one conversation: tokens, targets and positions grow together."""

  def __init__(self):
    self.tokens: list[int] = []
    self.targets: list[tuple[int, int]] = []
    self.positions: list[np.ndarray] = []
    self.images: list[Patches] = []
    self.prefix = 0  # tokens before those of the first image
    self._next = 0  # position of the next token
    self._placed = 0  # tokens that have a position

  def text(self, ids: list[int], target: bool = False):
    if target:
      self.targets.append((len(self.tokens), len(self.tokens) + len(ids)))
    self.tokens += ids

  def frame(self, rows: int, columns: int, pad: int, merge: int):
    """Adds the tokens of an image or a frame with this many patches."""
    self.prefix = self.prefix or len(self.tokens)
    self._place_text()
    grid = image_positions((1, rows, columns), merge, self._next)
    self.positions.append(grid)
    self.tokens += [pad] * len(grid)
    self._placed = len(self.tokens)
    self._next += max(rows, columns) // merge

  def encoded(self, has_system: bool) -> Encoded:
    self._place_text()
    tokens = np.array(self.tokens, np.int32)
    targets = np.zeros(len(tokens), bool)
    for start, stop in self.targets:
      targets[start:stop] = True
    prefix = self.prefix if has_system else 0
    return Encoded(tokens, targets, np.concatenate(self.positions), self.images, prefix)

  def _place_text(self):
    count = len(self.tokens) - self._placed
    line = np.arange(self._next, self._next + count, dtype=np.int32)
    self.positions.append(np.repeat(line[:, None], 3, axis=1))
    self._next += count
    self._placed += count


def image_positions(grid: Grid, merge: int, start: int) -> Int[np.ndarray, "L 3"]:
  """Returns M-RoPE positions of an image's tokens: time, row and column of the merged grid, counted from `start`.

  The text after the image continues at start + max(rows, columns) of the merged grid.
  """
  t, h, w = grid[0], grid[1] // merge, grid[2] // merge
  return start + np.indices((t, h, w), dtype=np.int32).reshape(3, -1).T


def _prompt_turn(
  row: _ConversationBuilder, processor: Processor, role: str, parts: list, visuals: _Visuals
):
  text = f"{role}\n"  # encoded with the text up to the next special token, as a tokenizer of the whole would
  for kind, part in parts:
    if kind == "text":
      text += part
      continue
    row.text(processor.encode_text(text))
    place = _place_video if kind == "video" else _place_image
    place(row, processor, part, visuals)
    text = ""
  row.text(processor.encode_text(text))


def _place_image(row: _ConversationBuilder, processor: Processor, image: Any, visuals: _Visuals):
  special, settings = processor.special, processor.image_settings
  patches = visuals.of_image(image, settings)
  _, rows, columns = patches[1]
  row.text([special.vision_start])
  row.frame(rows, columns, special.image, settings.merge_size)
  row.text([special.vision_end])
  row.images.append(patches)


def _place_video(row: _ConversationBuilder, processor: Processor, video: Any, visuals: _Visuals):
  special, settings = processor.special, processor.video_settings
  info = _video_info(video)
  patches = visuals.of_video(video, settings)
  _, rows, columns = patches[1]
  row.text([special.vision_start])
  for seconds in timestamps(info, settings):
    row.text([*processor.encode_text(f"<{seconds:.1f} seconds>"), special.vision_start])
    row.frame(rows, columns, special.video, settings.merge_size)
    row.text([special.vision_end])
  row.text([special.vision_end])
  row.images.append(patches)


def _video_info(video: Any) -> VideoInfo:
  if isinstance(video, VideoInfo):
    return video
  if not isinstance(video, Video):
    raise ValueError(
      f"a video is a {type(video).__name__}; give a result of open_video, or a Clip of frames and their rate"
    )
  return video.info


def _checked(n: int, message: Message) -> tuple[str, list]:
  """Returns the role and the (kind, value) parts of a turn: texts and, in a user's turn, images and videos."""
  role = message.get("role")
  if role not in ROLES or (role == "system" and n > 0):
    raise ValueError(
      f"message {n} has role {role!r}; allowed are {ROLES}, and system only as the first"
    )
  content = message.get("content")
  if isinstance(content, str):
    return role, [("text", content)]
  if not isinstance(content, list | tuple):
    raise ValueError(
      f"message {n} has content of type {type(content).__name__}; give a string or a list of parts"
    )
  parts = []
  for part in content:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
      parts.append(("text", part["text"]))
    elif kind in ("image", "video") and role == "user" and part.get(kind) is not None:
      parts.append((kind, part[kind]))
    else:
      raise ValueError(
        f"message {n} ({role}) has a part {_short(part)}; allowed are {{'type': 'text', 'text': …}} and, "
        "for users, {'type': 'image', 'image': image} and {'type': 'video', 'video': video}"
      )
  return role, parts


def _short(part) -> str:
  if not isinstance(part, dict):
    return type(part).__name__
  return str({key: value if key == "type" else type(value).__name__ for key, value in part.items()})


def _blank(B: int, T: int, processor: Processor) -> dict[str, Any]:
  """Returns rows of padding."""
  return {
    "tokens": np.full((B, T), processor.special.pad, np.int32),
    "segments": np.zeros((B, T), np.int32),
    "targets": np.zeros((B, T), bool),
    "positions": np.zeros((B, T, 3), np.int32),
  }


def _write(batch: dict[str, Any], b: int, at: slice, conversation: Encoded, number: int) -> None:
  batch["segments"][b, at] = number
  for name in ("tokens", "targets", "positions"):
    batch[name][b, at] = getattr(conversation, name)
