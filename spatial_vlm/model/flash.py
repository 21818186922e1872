"""Attention over whole rows, by the kernel of the platform that the program is compiled for.

  TPU    splash attention (Pallas): no T × T array; a key-value head is read once for all its query heads
  CUDA   cuDNN's flash attention, in bfloat16 and float16: one T × T mask per row, no scores
  CPU    `blocked.blocked_attention`: scores of a block of queries at a time
  other  `attention.plain_attention`; also in float32 on CUDA, since cuDNN has no float32 kernel

All compute `plain_attention`, padding rows included. XLA cannot partition a kernel over a mesh: under
`jax.set_mesh(mesh)` each device runs the kernel on its own rows and heads.
"""

import functools
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from spatial_vlm import sharding
from spatial_vlm.model.attention import (
  CacheBlock,
  attention_mask,
  cached_attention,
  plain_attention,
)
from spatial_vlm.model.blocked import blocked_attention
from spatial_vlm.model.stack import CONTEXT

Kernel = Callable[[Array, Array, Array, Array], Array]
"""(q [B T N H], k [B K U H], v [B K U H], segments [B U]) -> [B T N H]"""

LANES = 128
"""Width of a TPU's vector register; kernels work on multiples of it."""
BLOCKS = (768, 640, 512, 384, 256)
"""Sizes of a tile, in queries and in keys; 768 still fits into the vector memory of a v5e, forward and backward, for
heads of width 128."""
OUTSIDE = -1
"""Segment of the tokens that a kernel's padding adds to a row."""


def attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B K U H"],
  v: Float[Array, "B K U H"],
  segments: Int[Array, "B U"],
  causal: bool,
  formula: Callable[..., Array] = plain_attention,
) -> Float[Array, "B T N H"]:
  """Returns softmax(q kᵀ / √H) v inside each segment; with `causal`, over the keys up to the query's own.

  Queries are those of the last T of U tokens. N is a multiple of K; each key-value head serves N / K query heads.
  Segment 0 is padding: no real token attends to it, and its own rows are finite. `formula` (`plain_attention`
  or `blocked_attention`) is what a platform without a kernel computes.
  """
  kernels = dict(KERNELS)
  if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] > LANES or not _cudnn_is_installed():
    kernels.pop("cuda", None)
  # All branches are traced and one is compiled; residuals of the others for the backward pass are dead code.
  return jax.lax.platform_dependent(
    q,
    k,
    v,
    segments,
    default=functools.partial(formula, causal=causal),
    **{
      platform: functools.partial(shard_mapped, functools.partial(kernel, causal=causal))
      for platform, kernel in kernels.items()
    },
  )


def last_queries(
  kernel: Callable[..., Array],
  q: Float[Array, "B T N H"],
  k: Float[Array, "B K U H"],
  v: Float[Array, "B K U H"],
  segments: Int[Array, "B U"],
  causal: bool,
) -> Float[Array, "B T N H"]:
  """Runs a kernel that takes as many queries as keys: the first U − T are zero, and their results are dropped."""
  before = k.shape[2] - q.shape[1]
  q = jnp.pad(q, ((0, 0), (before, 0), (0, 0), (0, 0)))
  return kernel(q, k, v, segments, causal)[:, before:]


def splash_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B K T H"],
  v: Float[Array, "B K T H"],
  segments: Int[Array, "B T"],
  causal: bool,
  interpret: bool = False,
) -> Float[Array, "B T N H"]:
  """Computes splash attention on one device; `interpret` runs the kernel on any platform, slowly."""
  _, T, N, H = q.shape
  block = block_size(T)
  kernel = _splash_kernel(_mask(N, _round_up(T, block), causal), block, interpret)
  q = (q * H**-0.5).swapaxes(1, 2)  # the kernel does not scale
  q, k, v = (_padded(x, {2: block, 3: LANES}) for x in (q, k, v))
  segments = _padded(segments, {1: block}, OUTSIDE)
  mixed = jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(s, s)))(q, k, v, segments)
  return mixed[:, :, :T, :H].swapaxes(1, 2)


def block_size(tokens: int) -> int:
  """Returns the tile size that pads rows of so many tokens least; the largest of several.

  >>> [block_size(tokens) for tokens in (100, 600, 2048, 3840, 16384)]
  [128, 640, 512, 768, 512]
  """
  return LANES if tokens <= LANES else min(BLOCKS, key=lambda block: _round_up(tokens, block))


def _splash_kernel(mask: splash.MultiHeadMask, block: int, interpret: bool) -> Callable[..., Any]:
  return splash.make_splash_mha_single_device(
    mask,
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    interpret=interpret,
    residual_checkpoint_name=CONTEXT,
  )


@functools.cache
def _mask(heads: int, tokens: int, causal: bool) -> splash.MultiHeadMask:
  """Returns the mask without segments; the cached object lets all layers share one trace of the kernel."""
  of_head = splash.CausalMask if causal else splash.FullMask
  return splash.MultiHeadMask([of_head((tokens, tokens))] * heads)


def cudnn_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B K T H"],
  v: Float[Array, "B K T H"],
  segments: Int[Array, "B T"],
  causal: bool,
) -> Float[Array, "B T N H"]:
  """Computes cuDNN's flash attention on one device; JAX passes it no segments, so they become a mask for all heads."""
  _, T, _, H = q.shape
  # Padding to whole tiles: with a mask, some versions of cuDNN give NaN gradients if a row ends inside a tile.
  q = _padded(q, {1: LANES, 3: 8})
  k, v = (_padded(x, {2: LANES, 3: 8}).swapaxes(1, 2) for x in (k, v))
  mixed = jax.nn.dot_product_attention(
    q,
    k,
    v,
    mask=attention_mask(_padded(segments, {1: LANES}, OUTSIDE), causal)[:, None],
    scale=H**-0.5,
    is_causal=causal,
    implementation="cudnn",
  )
  return checkpoint_name(mixed[:, :T, :, :H], CONTEXT)


@functools.cache
def _cudnn_is_installed() -> bool:
  """Returns whether JAX's CUDA plugin is installed; without it a call of cuDNN cannot be traced."""
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return any(plugin.name.startswith("xla_cuda") for plugin in plugins)


KERNELS: dict[str, Callable[..., Array]] = {
  "tpu": functools.partial(last_queries, splash_attention),
  "cuda": functools.partial(last_queries, cudnn_attention),
  "cpu": blocked_attention,
}
"""Platform → its kernel; a platform without one computes the formula."""


def shard_mapped(
  kernel: Kernel,
  q: Float[Array, "B T N H"],
  k: Float[Array, "B K U H"],
  v: Float[Array, "B K U H"],
  segments: Int[Array, "B U"],
) -> Float[Array, "B T N H"]:
  """Runs `kernel` on each device's rows and heads, on the mesh of `jax.set_mesh` if one is set.

  Axes that do not divide the rows or the query heads are dropped: their devices do the same work. If the heads' axis
  does not divide the key-value heads, they are repeated until it does, so that each device has those of its queries.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return kernel(q, k, v, segments)
  rows = sharding.divisible_axes(sharding.ROWS, mesh, len(q))
  heads = sharding.divisible_axes(("tensor",), mesh, q.shape[2])
  copies = math.lcm(k.shape[1], sharding.axis_product(mesh, heads)) // k.shape[1]
  k, v = (jnp.repeat(x, copies, axis=1) for x in (k, v))
  return jax.shard_map(
    kernel,
    in_specs=(P(rows, None, heads), P(rows, heads), P(rows, heads), P(rows)),
    out_specs=P(rows, None, heads),
    check_vma=False,  # kernels do not declare the axes over which outputs vary
  )(q, k, v, segments)


def shard_mapped_cached_attention(
  q: Float[Array, "B 1 N H"],
  k: Float[Array, "B K 1 H"],
  v: Float[Array, "B K 1 H"],
  blocks: Sequence[CacheBlock],
) -> Float[Array, "B 1 N H"]:
  """Runs `cached_attention` on each device's rows and key-value heads (see `shard_mapped`).

  XLA's own partitioning gathers the scores of all heads in every layer, for every token.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return cached_attention(q, k, v, blocks)
  rows = sharding.divisible_axes(
    sharding.ROWS, mesh, math.gcd(*(len(block.valid) for block in blocks))
  )
  heads = sharding.divisible_axes(("tensor",), mesh, k.shape[1])
  of_block = blocks[0].replace(keys=P(rows, heads), values=P(rows, heads), valid=P(rows))
  return jax.shard_map(
    cached_attention,
    in_specs=(P(rows, None, heads), P(rows, heads), P(rows, heads), [of_block] * len(blocks)),
    out_specs=P(rows, None, heads),
    check_vma=False,
  )(q, k, v, list(blocks))


def _round_up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


def _padded(x: Array, multiples: dict[int, int], value: int = 0) -> Array:
  """Returns `x` with each of the given axes padded at its end to a multiple."""
  ends = [_round_up(size, multiples.get(axis, 1)) - size for axis, size in enumerate(x.shape)]
  return jnp.pad(x, [(0, end) for end in ends], constant_values=value)
