"""XLM-RoBERTa with the three heads of BGE-M3, as pure functions of (params, config, rows of tokens).

Reference: transformers 5.23, `XLMRobertaModel` (without its pooler, which BGE-M3 does not use); heads: Chen et al.,
M3-Embedding, arXiv 2402.03216, section 3.1, and FlagEmbedding's `inference/embedder/encoder_only/m3.py`.

A new encoder, and what it computes:

  config = XlmRobertaConfig.small(vocab_size=2000, hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
  params = init_encoder(config, jax.random.key(0))
  encoding = encode(params, config, tokens, mask)        # tokens, mask [B T]; <s> first, padding last
  encoding.dense [B D] · encoding.lexical [B T] · encoding.vectors [B T D]

`encode` is differentiable in `params`; `huggingface.encoder_folder.write_encoder` saves them. Activations have the
dtype of the parameters.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import flax.struct
import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.model.blocked import blocked_attention
from spatial_vlm.model.config import check_fields
from spatial_vlm.model.flash import attention
from spatial_vlm.model.stack import bind, init_block, init_stack, rematerialize
from spatial_vlm.types import Params

_SUPPORTED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "type_vocab_size": 1}
"""Settings of config.json with one supported value, which is also their default."""
_SPECIAL_TOKENS = ("bos_token_id", "pad_token_id", "eos_token_id", "unk_token_id")


@dataclasses.dataclass(frozen=True)
class XlmRobertaConfig:
  """Sizes of the encoder and its special tokens, named as in Hugging Face's config.json."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  max_position_embeddings: int
  """Two more than the longest row: the first token has position 2."""
  layer_norm_eps: float = 1e-5
  bos_token_id: int = 0
  pad_token_id: int = 1
  eos_token_id: int = 2
  unk_token_id: int = 3
  """Not in config.json: XLM-RoBERTa's tokenizers give `<unk>` this id."""

  def __post_init__(self):
    check_fields(self, except_for=_SPECIAL_TOKENS)
    for name in _SPECIAL_TOKENS:
      id = getattr(self, name)
      if type(id) is not int or not 0 <= id < self.vocab_size:
        raise ValueError(f"{name} is {id!r}; it must be one of the {self.vocab_size} tokens")
    if self.hidden_size % self.num_attention_heads:
      raise ValueError(
        f"width {self.hidden_size} does not divide into {self.num_attention_heads} attention heads"
      )
    if self.pad_token_id != 1:
      raise ValueError(f"pad_token_id is {self.pad_token_id}; XLM-RoBERTa's positions need 1")

  @classmethod
  def small(cls, max_tokens: int = 64, **sizes: int) -> Self:
    """Returns the sizes of a small encoder with a feed-forward layer of four times its width."""
    return cls(
      intermediate_size=4 * sizes["hidden_size"], max_position_embeddings=max_tokens + 2, **sizes
    )

  @classmethod
  def from_huggingface(cls, config: Mapping[str, Any]) -> Self:
    """Returns the sizes in a config.json.

    Raises:
      ValueError: it is not an XLM-RoBERTa, has an unsupported setting, or an entry is missing.
    """
    if config.get("model_type") != "xlm-roberta":
      raise ValueError(f"config.json has model_type {config.get('model_type')!r}, not xlm-roberta")
    for name, value in _SUPPORTED.items():
      if config.get(name, value) != value:
        raise ValueError(f"config.json has {name} {config[name]!r}; {value!r} is supported")
    fields = [f for f in dataclasses.fields(cls) if f.name != "unk_token_id"]
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in config]
    if missing:
      raise ValueError(f"config.json lacks {', '.join(missing)}")
    return cls(**{f.name: config[f.name] for f in fields if f.name in config})

  def to_huggingface(self) -> dict[str, Any]:
    """Returns the entries of a config.json."""
    sizes = dataclasses.asdict(self)
    del sizes["unk_token_id"]
    kind = {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}
    return {**kind, **_SUPPORTED, **sizes}

  @property
  def max_tokens(self) -> int:
    """Returns the length of the longest row, special tokens included."""
    return self.max_position_embeddings - self.pad_token_id - 1


@flax.struct.dataclass
class Encoding:
  """The outputs of the three heads for rows of tokens."""

  dense: Float[Array, "B D"]
  """Normalised hidden state of `<s>`."""
  lexical: Float[Array, "B T"]
  """Weight of each token, at least 0; 0 at special tokens and padding. A token that occurs several times counts with
  its largest weight."""
  vectors: Float[Array, "B T D"]
  """Normalised vector of each token; 0 at `<s>` and padding."""


class Embeddings(nnx.Module):
  """Adds the embeddings of tokens, positions and the only segment type, and normalises the sum."""

  def __init__(self, config: XlmRobertaConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    def table(rows):
      return nnx.Embed(
        rows,
        config.hidden_size,
        embedding_init=nnx.initializers.normal(0.02),
        rngs=rngs,
        param_dtype=param_dtype,
      )

    self.words = table(config.vocab_size)
    self.positions = table(config.max_position_embeddings)
    self.types = table(1)
    self.norm = _layer_norm(config, rngs, param_dtype)

  def __call__(
    self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
  ) -> Float[Array, "B T D"]:
    return self.norm(
      self.words(tokens) + self.types(jnp.zeros_like(tokens)) + self.positions(positions)
    )


class SelfAttention(nnx.Module):
  """Computes multi-head attention over the real tokens of each row."""

  def __init__(self, config: XlmRobertaConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    width, N = config.hidden_size, config.num_attention_heads
    heads = (N, width // N)
    self.q_proj = nnx.LinearGeneral(width, heads, rngs=rngs, param_dtype=param_dtype)
    self.k_proj = nnx.LinearGeneral(width, heads, rngs=rngs, param_dtype=param_dtype)
    self.v_proj = nnx.LinearGeneral(width, heads, rngs=rngs, param_dtype=param_dtype)
    self.out_proj = nnx.LinearGeneral(
      heads, width, axis=(-2, -1), rngs=rngs, param_dtype=param_dtype
    )

  def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
    q, k, v = self.q_proj(x), self.k_proj(x).swapaxes(1, 2), self.v_proj(x).swapaxes(1, 2)
    segments = mask.astype(jnp.int32)
    return self.out_proj(attention(q, k, v, segments, causal=False, formula=blocked_attention))


class FeedForward(nnx.Module):
  """Computes two layers with exact GELU."""

  def __init__(self, config: XlmRobertaConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    width, inner = config.hidden_size, config.intermediate_size
    self.fc1 = nnx.Linear(width, inner, rngs=rngs, param_dtype=param_dtype)
    self.fc2 = nnx.Linear(inner, width, rngs=rngs, param_dtype=param_dtype)

  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    return self.fc2(nnx.gelu(self.fc1(x), approximate=False))


class EncoderLayer(nnx.Module):
  """Computes attention and feed-forward, each followed by the norm of its sum with its input (post-norm)."""

  def __init__(self, config: XlmRobertaConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    self.attention = SelfAttention(config, rngs=rngs, param_dtype=param_dtype)
    self.attention_norm = _layer_norm(config, rngs, param_dtype)
    self.mlp = FeedForward(config, rngs=rngs, param_dtype=param_dtype)
    self.mlp_norm = _layer_norm(config, rngs, param_dtype)

  def __call__(self, h: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
    h = self.attention_norm(h + self.attention(h, mask))
    return self.mlp_norm(h + self.mlp(h))


class Heads(nnx.Module):
  """Projects hidden states to the lexical weight and to the vector of each token."""

  def __init__(self, config: XlmRobertaConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    width = config.hidden_size
    self.lexical = nnx.Linear(width, 1, rngs=rngs, param_dtype=param_dtype)
    self.vectors = nnx.Linear(width, width, rngs=rngs, param_dtype=param_dtype)


def _layer_norm(config: XlmRobertaConfig, rngs: nnx.Rngs, param_dtype) -> nnx.LayerNorm:
  # The fast variance E[x²] − E[x]² loses digits that parity with the reference needs.
  return nnx.LayerNorm(
    config.hidden_size,
    epsilon=config.layer_norm_eps,
    use_fast_variance=False,
    rngs=rngs,
    param_dtype=param_dtype,
  )


def init_encoder(config: XlmRobertaConfig, key: Array, dtype: jnp.dtype = jnp.float32) -> Params:
  """Returns random parameters: {"encoder": {"embed", "layers", "heads"}}, the layers stacked on a leading axis."""
  embed, layers, heads = jax.random.split(key, 3)
  return {
    "encoder": {
      "embed": init_block(Embeddings, config, embed, dtype),
      "layers": init_stack(EncoderLayer, config, config.num_hidden_layers, layers, dtype),
      "heads": init_block(Heads, config, heads, dtype),
    }
  }


def hidden_states(
  params: Params,
  config: XlmRobertaConfig,
  tokens: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  remat: str = "none",
) -> Float[Array, "B T D"]:
  """Returns the last layer's output; finite and meaningless at padding.

  Args:
    mask: True at real tokens. Their positions are counted from 2; padding has position 1.
    remat: rematerialization policy, a name in `stack.REMAT_POLICIES`.

  Raises:
    ValueError: rows are longer than `config.max_tokens`, or `remat` is unknown.
  """
  if tokens.shape[1] > config.max_tokens:
    raise ValueError(
      f"rows of {tokens.shape[1]} tokens exceed the {config.max_tokens} that the encoder has positions for"
    )
  encoder = params["encoder"]
  positions = jnp.cumsum(mask, axis=1, dtype=jnp.int32) * mask + config.pad_token_id
  h = bind(Embeddings, config, encoder["embed"])(tokens, positions)
  layer = rematerialize(lambda layer, h: bind(EncoderLayer, config, layer)(h, mask), remat)
  return jax.lax.scan(lambda h, params: (layer(params, h), None), h, encoder["layers"])[0]


def encode(
  params: Params,
  config: XlmRobertaConfig,
  tokens: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  remat: str = "none",
) -> Encoding:
  """Returns dense, lexical and multi-vector representations of rows, in float32; see `hidden_states`.

  With hidden states H: dense e = norm(H₀); lexical wₜ = relu(w·Hₜ + b); vectors eₜ = norm(W Hₜ + b), t ≥ 1.
  """
  h = hidden_states(params, config, tokens, mask, remat)
  heads = bind(Heads, config, params["encoder"]["heads"])
  special = jnp.asarray(
    [config.bos_token_id, config.pad_token_id, config.eos_token_id, config.unk_token_id]
  )
  has_weight = mask & ~jnp.isin(tokens, special)
  has_vector = mask & (jnp.arange(mask.shape[1]) > 0)[None]
  lexical = nnx.relu(heads.lexical(h)[..., 0].astype(jnp.float32))
  return Encoding(
    dense=_normalised(h[:, 0]),
    lexical=jnp.where(has_weight, lexical, 0.0),
    vectors=jnp.where(has_vector[..., None], _normalised(heads.vectors(h)), 0.0),
  )


def _normalised(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
  """Returns x / max(‖x‖, 1e-12) in float32, as torch's `normalize`; its gradient at 0 is finite."""
  x = x.astype(jnp.float32)
  squares = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
