"""Configuration of a dense Qwen3-VL, read from and written as Hugging Face's config.json.

Reference: transformers 5.23, models/qwen3_vl/configuration_qwen3_vl.py. The presets 2b, 4b and 8b have the sizes of the
published checkpoints; tiny is the same architecture for two CPU cores.
"""

import dataclasses
import math
from collections.abc import Container, Mapping
from typing import Any

VISION_ROPE_THETA = 10_000.0
LAYER_NORM_EPS = 1e-6


_MOST = {"vocab_size": 2**21, "depth": 1000, "num_hidden_layers": 1000}
_MOST_OTHERWISE = 2**24


def check_sizes(config: Any, most: Mapping[str, int]) -> None:
  """Raises ValueError unless fields are whole numbers from 1 to `most`: a lying file costs no memory."""
  for name, limit in most.items():
    value = getattr(config, name)
    if type(value) is not int or not 1 <= value <= limit:
      raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {limit}.")


def check_fields(config: Any, except_for: Container[str] = ()) -> None:
  """Raises ValueError for sizes that no model has, and for numbers that are not positive and finite."""
  fields = [field for field in dataclasses.fields(config) if field.name not in except_for]
  check_sizes(config, {f.name: _MOST.get(f.name, _MOST_OTHERWISE) for f in fields if f.type is int})
  for field in fields:
    value = getattr(config, field.name)
    if field.type is float and not (type(value) in (int, float) and 0 < value < math.inf):
      raise ValueError(f"{field.name} is {value!r}; it must be a positive number.")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Sizes of the vision tower (a ViT with 2-D rotary attention) and of its mergers."""

  depth: int
  hidden_size: int
  intermediate_size: int
  num_heads: int
  patch_size: int
  temporal_patch_size: int
  spatial_merge_size: int
  in_channels: int
  num_position_embeddings: int
  """Entries of the learnt position grid, a square."""
  out_hidden_size: int
  deepstack_visual_indexes: tuple[int, ...]
  """Ascending layer numbers (from 0) whose outputs are the DeepStack features of text layers 0, 1, …"""

  def __post_init__(self):
    check_fields(self)
    taps = self.deepstack_visual_indexes
    if list(taps) != sorted(set(taps)) or any(not 0 <= tap < self.depth for tap in taps):
      raise ValueError(
        f"deepstack_visual_indexes is {taps}; give ascending layer numbers from 0 to {self.depth - 1}."
      )
    if self.hidden_size % self.num_heads or self.head_dim % 4:
      raise ValueError(
        f"vision width {self.hidden_size} over {self.num_heads} heads: 2-D rotary attention needs a head width that is"
        " a multiple of 4."
      )
    if math.isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
      raise ValueError(
        f"num_position_embeddings is {self.num_position_embeddings}; the position grid must be a square."
      )

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_heads

  @property
  def patch_dim(self) -> int:
    """Returns P, the number of values of a patch (channels · frames · rows · columns)."""
    return self.in_channels * self.temporal_patch_size * self.patch_size**2

  @property
  def merge_unit(self) -> int:
    """Returns the number of patches that become one visual token."""
    return self.spatial_merge_size**2


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes of the Qwen3 decoder."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  rms_norm_eps: float
  rope_theta: float
  mrope_section: tuple[int, int, int]
  """Numbers of rotary frequencies for time, height and width; they add up to head_dim / 2."""
  max_position_embeddings: int

  def __post_init__(self):
    check_fields(self)
    if sum(self.mrope_section) != self.head_dim // 2:
      raise ValueError(
        f"mrope_section {self.mrope_section} adds up to {sum(self.mrope_section)}; it must be half of head_dim"
        f" {self.head_dim}."
      )
    if self.num_attention_heads % self.num_key_value_heads:
      raise ValueError(
        f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key-value heads evenly."
      )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes of both towers, and the token ids of visual input."""

  vision: VisionConfig
  text: TextConfig
  tie_word_embeddings: bool
  image_token_id: int
  video_token_id: int
  vision_start_token_id: int
  vision_end_token_id: int
  bos_token_id: int | None = None
  """This id and the next two are kept for other programs; this package reads them from the tokenizer."""
  eos_token_id: int | tuple[int, ...] | None = None
  pad_token_id: int | None = None

  def __post_init__(self):
    if self.vision.out_hidden_size != self.text.hidden_size:
      raise ValueError(
        f"The vision tower's out_hidden_size {self.vision.out_hidden_size} must be the text width"
        f" {self.text.hidden_size}."
      )
    if len(self.vision.deepstack_visual_indexes) > self.text.num_hidden_layers:
      raise ValueError(
        f"{len(self.vision.deepstack_visual_indexes)} DeepStack features need as many text layers; there are"
        f" {self.text.num_hidden_layers}."
      )

  @classmethod
  def from_huggingface(cls, config: Mapping[str, Any]) -> "ModelConfig":
    """Returns the configuration in a config.json of transformers 4.57 or 5.

    Raises:
      ValueError: this port does not support a setting, or an entry is missing.
    """
    _check_kind(config)
    try:
      vision, text = config["vision_config"], config["text_config"]
      # transformers 5 writes rope_parameters; 4.57 wrote rope_scaling and, next to it, rope_theta.
      rope = text.get("rope_parameters") or {
        "rope_theta": text["rope_theta"],
        **(text["rope_scaling"] or {}),
      }
      _check_supported(vision, text, rope)
      return cls(
        vision=VisionConfig(
          **{
            name: vision[name] for name in _plain_fields(VisionConfig, {"deepstack_visual_indexes"})
          },
          deepstack_visual_indexes=tuple(vision["deepstack_visual_indexes"]),
        ),
        text=TextConfig(
          **{
            name: text[name] for name in _plain_fields(TextConfig, {"rope_theta", "mrope_section"})
          },
          rope_theta=float(rope["rope_theta"]),
          mrope_section=tuple(rope.get("mrope_section", _MROPE_SECTION)),
        ),
        # The text section also has this entry, but it is wrong in some published files.
        tie_word_embeddings=config.get("tie_word_embeddings") is True,
        **{name: config[name] for name in _TOKEN_IDS},
        **{name: _end_ids(text.get(name, config.get(name)), name) for name in _END_IDS},
      )
    except KeyError as error:
      raise ValueError(
        f"config.json lacks {error.args[0]!r}, which a Qwen3-VL configuration must have."
      ) from error

  def to_huggingface(self) -> dict[str, Any]:
    """Returns a config.json that transformers 4.57 and 5 load as `Qwen3VLForConditionalGeneration`."""
    text = dataclasses.asdict(self.text)
    rope = {
      "rope_type": "default",
      "mrope_section": list(text.pop("mrope_section")),
      "mrope_interleaved": True,
    }
    ends = {name: getattr(self, name) for name in _END_IDS if getattr(self, name) is not None}
    vision = dataclasses.asdict(self.vision)
    vision["deepstack_visual_indexes"] = list(self.vision.deepstack_visual_indexes)
    return {
      "architectures": ["Qwen3VLForConditionalGeneration"],
      "model_type": "qwen3_vl",
      "tie_word_embeddings": self.tie_word_embeddings,
      **{name: getattr(self, name) for name in _TOKEN_IDS},
      "text_config": {
        "model_type": "qwen3_vl_text",
        **text,
        **{name: list(ids) if isinstance(ids, tuple) else ids for name, ids in ends.items()},
        "rope_scaling": rope,  # with rope_theta: transformers 4.57
        "rope_parameters": rope | {"rope_theta": self.text.rope_theta},  # transformers 5
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": self.tie_word_embeddings,
      },
      "vision_config": {
        "model_type": "qwen3_vl_vision",
        **vision,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": {"rope_type": "axial", "rope_theta": VISION_ROPE_THETA},
      },
    }


_MROPE_SECTION = (24, 20, 20)
"""That of the published checkpoints, and of transformers where config.json has none."""

_TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


_END_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _end_ids(value: Any, name: str) -> Any:
  """Returns an id, or a tuple of ids for a list; raises ValueError for anything else but None."""
  ids = value if isinstance(value, list) else [value]
  if value is not None and not all(type(id) is int for id in ids):
    raise ValueError(f"config.json has {name} {value!r}; it must be a token id or a list of them.")
  return tuple(value) if isinstance(value, list) else value


def _plain_fields(section: type, apart: set[str]) -> list[str]:
  return [field.name for field in dataclasses.fields(section) if field.name not in apart]


def _check_kind(config: Mapping[str, Any]) -> None:
  """Raises ValueError, with the cause in one line, for another model, a mixture of experts or quantized weights."""
  text = config.get("text_config") or {}
  if config.get("model_type") == "qwen3_vl_moe" or "num_experts" in text:
    raise ValueError(
      f"config.json has model_type {config.get('model_type')!r}, a mixture of experts; this port of dense Qwen3-VL"
      " supports 'qwen3_vl', such as Qwen3-VL-8B-Instruct."
    )
  _require("model_type", config.get("model_type"), ("qwen3_vl",))
  if quantized := config.get("quantization_config") or text.get("quantization_config"):
    method = str(quantized.get("quant_method", "an unknown method"))
    raise ValueError(
      f"config.json has a quantization_config: the weights are quantized by {method.upper()}, which is not read; give"
      " the folder of the unquantized model (bfloat16 or float32)."
    )


def _check_supported(vision: Mapping, text: Mapping, rope: Mapping) -> None:
  """Raises ValueError for settings that this port does not support; an absent entry has the supported value."""
  _require(
    "vision hidden_act", vision.get("hidden_act", "gelu_pytorch_tanh"), ("gelu_pytorch_tanh",)
  )
  vision_rope = vision.get("rope_parameters") or {}
  _require("vision rope_type", vision_rope.get("rope_type", "axial"), ("axial",))
  _require(
    "vision rope_theta", vision_rope.get("rope_theta", VISION_ROPE_THETA), (VISION_ROPE_THETA,)
  )
  _require("text hidden_act", text.get("hidden_act", "silu"), ("silu",))
  _require("attention_bias", text.get("attention_bias", False), (False,))
  _require("rope_type", rope.get("rope_type", rope.get("type", "default")), ("default", "mrope"))
  _require("mrope_interleaved", rope.get("mrope_interleaved", True), (True,))


def _require(name: str, value: Any, allowed: tuple) -> None:
  if value not in allowed:
    raise ValueError(
      f"config.json has {name} {value!r}; this port of dense Qwen3-VL supports"
      f" {' or '.join(map(repr, allowed))}."
    )


def _qwen3_vl(vision: dict[str, Any], text: dict[str, Any], tied: bool) -> ModelConfig:
  """Returns a configuration with the sizes that all published checkpoints share."""
  return ModelConfig(
    vision=VisionConfig(
      **vision,
      num_heads=16,
      patch_size=16,
      temporal_patch_size=2,
      spatial_merge_size=2,
      in_channels=3,
      num_position_embeddings=48 * 48,
      out_hidden_size=text["hidden_size"],
    ),
    text=TextConfig(
      **text,
      vocab_size=151_936,
      head_dim=128,
      rms_norm_eps=1e-6,
      rope_theta=5e6,
      mrope_section=_MROPE_SECTION,
      max_position_embeddings=262_144,
      num_key_value_heads=8,
    ),
    tie_word_embeddings=tied,
    image_token_id=151_655,
    video_token_id=151_656,
    vision_start_token_id=151_652,
    vision_end_token_id=151_653,
  )


_VIT_300M = {
  "depth": 24,
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "deepstack_visual_indexes": (5, 11, 17),
}
_VIT_400M = {
  "depth": 27,
  "hidden_size": 1152,
  "intermediate_size": 4304,
  "deepstack_visual_indexes": (8, 16, 24),
}

PRESETS: dict[str, ModelConfig] = {
  # Images of 64×64 have 8×8 patches, 16 visual tokens. The token ids are replaced by the tokenizer's own.
  "tiny": ModelConfig(
    vision=VisionConfig(
      depth=4,
      hidden_size=96,
      intermediate_size=256,
      num_heads=4,
      patch_size=8,
      temporal_patch_size=2,
      spatial_merge_size=2,
      in_channels=3,
      num_position_embeddings=8 * 8,
      out_hidden_size=128,
      deepstack_visual_indexes=(1, 2),
    ),
    text=TextConfig(
      vocab_size=512,
      hidden_size=128,
      intermediate_size=384,
      num_hidden_layers=4,
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=32,
      rms_norm_eps=1e-6,
      rope_theta=1e4,
      mrope_section=(6, 5, 5),
      max_position_embeddings=4096,
    ),
    tie_word_embeddings=True,
    image_token_id=510,
    video_token_id=511,
    vision_start_token_id=508,
    vision_end_token_id=509,
  ),
  "2b": _qwen3_vl(
    _VIT_300M,
    {
      "hidden_size": 2048,
      "intermediate_size": 6144,
      "num_hidden_layers": 28,
      "num_attention_heads": 16,
    },
    tied=True,
  ),
  "4b": _qwen3_vl(
    _VIT_300M,
    {
      "hidden_size": 2560,
      "intermediate_size": 9728,
      "num_hidden_layers": 36,
      "num_attention_heads": 32,
    },
    tied=True,
  ),
  "8b": _qwen3_vl(
    _VIT_400M,
    {
      "hidden_size": 4096,
      "intermediate_size": 12_288,
      "num_hidden_layers": 36,
      "num_attention_heads": 32,
    },
    tied=False,
  ),
}
