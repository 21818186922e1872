"""Forward pass, prefill and decoding."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spatial_vlm.benchmark.inputs import RowShape, random_batch, random_prompts, text_ids
from spatial_vlm.benchmark.measure import alternate, build, flops_of, ratios
from spatial_vlm.benchmark.row import Row, Spread
from spatial_vlm.benchmark.subject import Subject, row_shape
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.attention import Prefixes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.process_rows import make_global_batch
from spatial_vlm.rollout.sampler import SamplingSettings, generate, stages
from spatial_vlm.types import Batch, Params, Prompts


@functools.partial(jax.jit, static_argnames="model")
def forward_last(params: Params, batch: Batch, *, model: ModelConfig) -> jax.Array:
  """Returns the logits after the last token of every row; the head's product is small beside the layers'."""
  hidden = qwen3_vl.forward(params, model, batch)
  return qwen3_vl.logits(params, model, hidden[:, -1])


def forward_rows(subject: Subject) -> Iterator[Row]:
  """Yields the time of a forward pass over the rows of a training batch, images included."""
  config, model = subject.config.sft, subject.model
  shape = row_shape(config)
  host = random_batch(model, config.batch_size, shape, subject.config.seed)
  batch = make_global_batch(subject.mesh, host)
  trace = functools.partial(forward_last.trace, subject.params, batch, model=model)
  built = build(trace)
  calls = {"ours": functools.partial(built.call, subject.params, batch)}
  note = _sizes(config.batch_size, shape)
  if subject.peer:
    calls["transformers"] = subject.peer.forward(host)
    note += f"; logits differ by at most {subject.peer.difference(calls):.1e}"
  times = alternate(calls, subject.rounds)
  yield Row(
    subject.name,
    "forward",
    seconds=Spread.of(times["ours"]),
    tokens=batch.tokens.size,
    flops=flops_of(trace()),
    peak_bytes=built.peak_bytes,
    compile_s=built.seconds,
    ratio=_ratio(times, "transformers", "ours"),
    note=note,
  )


@functools.partial(jax.jit, static_argnames="model")
def prefill(
  params: Params, prompts: Prompts, prefixes: Prefixes | None = None, *, model: ModelConfig
) -> tuple[jax.Array, Any]:
  """Returns `qwen3_vl.prefill`."""
  return qwen3_vl.prefill(params, model, prompts, prefixes)


def decode_rows(subject: Subject) -> Iterator[Row]:
  """Yields, for each batch size, prefill and a step of decoding.

  `generate` is one program of prefill and all steps, so a step is (generate − prefill) / steps. No row ends early.
  """
  for batch_size in subject.config.decode.batch_sizes:
    yield from _decode_rows(subject, batch_size)


def _decode_rows(subject: Subject, batch_size: int) -> Iterator[Row]:
  config, model, params = subject.config.decode, subject.model, subject.params
  shape = row_shape(config)
  host = random_prompts(model, batch_size, shape, subject.config.seed)
  prompts = make_global_batch(subject.mesh, host)
  steps = config.new_tokens
  trace_prefill = functools.partial(prefill.trace, params, prompts, model=model)
  arguments = (params, prompts, jax.random.key(0), never_ending(model))
  trace_generate = functools.partial(
    generate.trace, *arguments, model=model, sampling=endless_sampling(steps)
  )
  built, built_generate = build(trace_prefill), build(trace_generate)
  calls = {
    "prefill": functools.partial(built.call, params, prompts),
    "generate": functools.partial(built_generate.call, *arguments),
  }
  if subject.peer:
    calls["their prefill"] = subject.peer.prefill(host)
    calls["their generate"] = subject.peer.generate(host, steps)
  times = alternate(calls, subject.rounds)
  prefill_flops = flops_of(trace_prefill())
  yield Row(
    subject.name,
    f"prefill, batch {batch_size}",
    seconds=Spread.of(times["prefill"]),
    tokens=host.tokens.size,
    flops=prefill_flops,
    bytes=_weight_bytes(params),
    peak_bytes=built.peak_bytes,
    compile_s=built.seconds,
    ratio=_ratio(times, "their prefill", "prefill"),
    note=f"prompts of {_row(shape)}",
  )
  step = _differences(times["generate"], times["prefill"], steps)
  theirs = times.get("their generate")
  theirs = theirs and _differences(theirs, times["their prefill"], steps - 1)
  all_flops = flops_of(trace_generate(), steps // len(stages(steps)))
  yield Row(
    subject.name,
    f"decode, batch {batch_size}",
    seconds=Spread.of(step),
    tokens=batch_size,
    flops=(all_flops - prefill_flops) / steps,
    bytes=step_bytes(params, model, batch_size, shape.tokens + steps / 2),
    peak_bytes=built_generate.peak_bytes,
    compile_s=built_generate.seconds,
    ratio=ratios(theirs, step) if theirs else None,
    note=f"{steps} new tokens",
  )


END = 0
"""Id that ends an answer."""


def never_ending(model: ModelConfig) -> jax.Array:
  """Returns the ids that are never sampled: the one that ends an answer, and the special ones of images."""
  ids = jnp.arange(model.text.vocab_size)
  return (ids == END) | (ids >= text_ids(model))


def endless_sampling(steps: int) -> SamplingSettings:
  """Returns settings with which every answer has `steps` tokens, where `never_ending` forbids its end."""
  return SamplingSettings(1, steps, temperature=1.0, eos=END, pad=END)


def step_bytes(params: Params, model: ModelConfig, rows: int, slots: float) -> float:
  """Returns the fewest bytes that a step of decoding reads: the decoder's weights, and the rows' keys and values."""
  text = {name: leaf for name, leaf in params["text"].items() if name != "embed"}
  head = qwen3_vl.unembedding(params, model)
  itemsize = np.dtype(head.dtype).itemsize
  sizes = model.text
  of_token = 2 * sizes.num_hidden_layers * sizes.num_key_value_heads * sizes.head_dim * itemsize
  return _weight_bytes(text) + head.nbytes + rows * slots * of_token


def _weight_bytes(params: Params) -> float:
  return float(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))


def _differences(whole: list[float], part: list[float], steps: int) -> list[float]:
  """Returns seconds per step; never below a nanosecond, which noise could give."""
  return [max((a - b) / steps, 1e-9) for a, b in zip(whole, part, strict=True)]


def _ratio(times: dict[str, list[float]], theirs: str, ours: str) -> Spread | None:
  return ratios(times[theirs], times[ours]) if theirs in times else None


def _sizes(rows: int, shape: RowShape) -> str:
  return f"{rows} rows of {_row(shape)}"


def _row(shape: RowShape) -> str:
  return f"{shape.tokens} tokens, {shape.patches} patches"
