"""The table of tensors of a Hugging Face Qwen3-VL checkpoint, with the parameters that each of them becomes here."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

from spatial_vlm.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of the checkpoint and the paths of its parameters.

  A matrix is [out, in] in the checkpoint and [in, out] here, where in and out may be several axes (heads, a patch's
  channels, frames, rows and columns); other tensors differ in shape at most.
  """

  name: str
  """With `{}` for the number of the layer, if the parameters are stacks."""
  shape: tuple[int, ...]
  paths: tuple[str, ...]
  """Several if the tensor concatenates their matrices on the first axis (fused q, k, v)."""
  is_matrix: bool = False

  @property
  def is_stacked(self) -> bool:
    return "{}" in self.name

  def names(self, shape: tuple[int, ...]) -> Iterator[str]:
    """Yields the tensor's name in each layer of parameters of this shape."""
    if not self.is_stacked:
      return iter([self.name])
    return (self.name.format(layer) for layer in range(shape[0]))


def tensors(config: ModelConfig) -> list[Tensor]:
  """Returns every tensor of the checkpoint, named as in transformers 5.23."""
  vision, text = config.vision, config.text
  D, F = vision.hidden_size, vision.intermediate_size
  patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
  block, ours = "model.visual.blocks.{}.", "vision/blocks/"
  qkv = ("attention/q_proj/", "attention/k_proj/", "attention/v_proj/")
  table = [
    *affine("model.visual.patch_embed.proj.", (D, *patch), "vision/patch_embed/proj/"),
    Tensor(
      "model.visual.pos_embed.weight",
      (vision.num_position_embeddings, D),
      ("vision/patch_embed/positions/embedding",),
    ),
    *layer_norm(block + "norm1.", D, ours + "norm1/"),
    *layer_norm(block + "norm2.", D, ours + "norm2/"),
    *affine(block + "attn.qkv.", (3 * D, D), *(ours + path for path in qkv)),
    *affine(block + "attn.proj.", (D, D), ours + "attention/out_proj/"),
    *affine(block + "mlp.linear_fc1.", (F, D), ours + "mlp/fc1/"),
    *affine(block + "mlp.linear_fc2.", (D, F), ours + "mlp/fc2/"),
    *_merger(config, "model.visual.merger.", D, "vision/merger/"),
  ]
  if vision.deepstack_visual_indexes:
    table += _merger(
      config,
      "model.visual.deepstack_merger_list.{}.",
      D * vision.merge_unit,
      "vision/deepstack_mergers/",
    )
  D, F, H = text.hidden_size, text.intermediate_size, text.head_dim
  N, K = text.num_attention_heads * H, text.num_key_value_heads * H
  model, layer, ours = "model.language_model.", "model.language_model.layers.{}.", "text/layers/"
  table += [
    Tensor(EMBEDDING, (text.vocab_size, D), ("text/embed/embedding",)),
    *_scale(layer + "input_layernorm.", D, ours + "input_norm/"),
    *_matrix(layer + "self_attn.q_proj.", (N, D), ours + "attention/q_proj/"),
    *_matrix(layer + "self_attn.k_proj.", (K, D), ours + "attention/k_proj/"),
    *_matrix(layer + "self_attn.v_proj.", (K, D), ours + "attention/v_proj/"),
    *_matrix(layer + "self_attn.o_proj.", (D, N), ours + "attention/o_proj/"),
    *_scale(layer + "self_attn.q_norm.", H, ours + "attention/q_norm/"),
    *_scale(layer + "self_attn.k_norm.", H, ours + "attention/k_norm/"),
    *_scale(layer + "post_attention_layernorm.", D, ours + "post_attention_norm/"),
    *_matrix(layer + "mlp.gate_proj.", (F, D), ours + "mlp/gate_proj/"),
    *_matrix(layer + "mlp.up_proj.", (F, D), ours + "mlp/up_proj/"),
    *_matrix(layer + "mlp.down_proj.", (D, F), ours + "mlp/down_proj/"),
    *_scale(model + "norm.", D, "text/final_norm/"),
  ]
  if not config.tie_word_embeddings:
    table.append(Tensor(HEAD, (text.vocab_size, D), ("head/embedding",)))
  return table


HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
_OLDER_PREFIXES = (
  (re.compile(r"^visual\."), "model.visual."),
  (re.compile(r"^language_model\.lm_head\."), "lm_head."),
  (re.compile(r"^language_model\.(?:model\.)?"), "model.language_model."),
  (re.compile(r"^model\.(?!visual\.|language_model\.)"), "model.language_model."),
)
"""Prefixes of other classes and versions of transformers, and of trainers → those of 5.23."""


def current_name(name: str) -> str:
  """Returns the name that transformers 5.23 gives a tensor.

  >>> [current_name(name) for name in ("visual.pos_embed.weight", "model.norm.weight", "lm_head.weight")]
  ['model.visual.pos_embed.weight', 'model.language_model.norm.weight', 'lm_head.weight']
  """
  for prefix, current in _OLDER_PREFIXES:
    if prefix.match(name):
      return prefix.sub(current, name)
  return name


def _matrix(name: str, shape: tuple[int, ...], *ours: str) -> list[Tensor]:
  return [Tensor(name + "weight", shape, tuple(path + "kernel" for path in ours), is_matrix=True)]


def affine(name: str, shape: tuple[int, ...], *ours: str) -> list[Tensor]:
  """Returns the matrix [out, in] and the bias of a linear layer; several parameters share a fused one."""
  bias = Tensor(name + "bias", shape[:1], tuple(path + "bias" for path in ours))
  return [*_matrix(name, shape, *ours), bias]


def _scale(name: str, width: int, ours: str) -> list[Tensor]:
  return [Tensor(name + "weight", (width,), (ours + "scale",))]


def layer_norm(name: str, width: int, ours: str) -> list[Tensor]:
  """Returns scale and bias of a norm."""
  return [*_scale(name, width, ours), Tensor(name + "bias", (width,), (ours + "bias",))]


def _merger(config: ModelConfig, name: str, norm_width: int, ours: str) -> list[Tensor]:
  merged = config.vision.hidden_size * config.vision.merge_unit
  return [
    *layer_norm(name + "norm.", norm_width, ours + "norm/"),
    *affine(name + "linear_fc1.", (merged, merged), ours + "fc1/"),
    *affine(name + "linear_fc2.", (config.vision.out_hidden_size, merged), ours + "fc2/"),
  ]


@functools.cache
def tensor_of_parameter(table: tuple[Tensor, ...]) -> Mapping[str, tuple[Tensor, int]]:
  """Returns path of a parameter -> (its tensor, number of the parameter in it)."""
  return {path: (tensor, part) for tensor in table for part, path in enumerate(tensor.paths)}
