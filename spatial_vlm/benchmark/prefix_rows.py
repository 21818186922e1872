"""Prefill of whole prompts, and of the same prompts after a prefix whose keys and values are cached."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from spatial_vlm.benchmark.inference_rows import prefill
from spatial_vlm.benchmark.inputs import random_prompts
from spatial_vlm.benchmark.measure import alternate, build, flops_of, ratios
from spatial_vlm.benchmark.row import Row, Spread
from spatial_vlm.benchmark.subject import Subject, row_shape
from spatial_vlm.model.attention import Prefixes
from spatial_vlm.process_rows import make_global_batch
from spatial_vlm.rollout.prefix_cache import FILLED_AT_ONCE, PrefixTable, fill, table_shapes


def prefix_rows(subject: Subject) -> Iterator[Row]:
  """Yields the prefill of whole prompts, that of their rest after a cached prefix, and the computation of prefixes."""
  config, model, params = subject.config.prefix, subject.model, subject.params
  rest, length, rows = row_shape(config), config.prefix_tokens, config.batch_size
  whole = rest._replace(tokens=rest.tokens + length)
  seed = subject.config.seed
  prompts, of_rest = (
    make_global_batch(subject.mesh, random_prompts(model, rows, shape, seed))
    for shape in (whole, rest)
  )
  table = _filled_table(subject)
  shared = _shared(subject, table)
  tokens = np.zeros((FILLED_AT_ONCE, length), np.int32)
  texts = (tokens, np.ones(tokens.shape, bool), np.arange(FILLED_AT_ONCE, dtype=np.int32))
  traces = {
    "prefill, whole prompts": functools.partial(prefill.trace, params, prompts, model=model),
    "prefill after a cached prefix": functools.partial(
      prefill.trace, params, of_rest, shared, model=model
    ),
    f"computing {FILLED_AT_ONCE} prefixes": functools.partial(
      fill.trace, params, table, *texts, model=model
    ),
  }
  arguments = [(params, prompts), (params, of_rest, shared), (params, table, *texts)]
  built = {name: build(trace) for name, trace in traces.items()}
  calls = {
    name: functools.partial(built[name].call, *of_call)
    for name, of_call in zip(traces, arguments, strict=True)
  }
  times = alternate(calls, subject.rounds)
  first, cached, computed = traces
  notes = {
    first: f"{rows} prompts of {whole.tokens} tokens",
    cached: f"{rows} prompts of {rest.tokens} tokens after {length} of {FILLED_AT_ONCE} texts",
    computed: f"once for all prompts; {length} tokens each",
  }
  sizes = {first: rows * whole.tokens, cached: rows * rest.tokens, computed: tokens.size}
  for name, trace in traces.items():
    yield Row(
      subject.name,
      name,
      seconds=Spread.of(times[name]),
      tokens=sizes[name],
      flops=flops_of(trace()),
      peak_bytes=built[name].peak_bytes,
      compile_s=built[name].seconds,
      ratio=ratios(times[first], times[name]) if name == cached else None,
      note=notes[name],
    )


def _filled_table(subject: Subject) -> PrefixTable:
  """Returns a table of full texts of zeros."""
  length, dtype = subject.config.prefix.prefix_tokens, jnp.dtype(subject.config.dtype)
  shapes = table_shapes(subject.model, subject.mesh, FILLED_AT_ONCE, length, dtype)
  table = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)
  return table.replace(valid=~table.valid)


def _shared(subject: Subject, table: PrefixTable) -> Prefixes:
  """Returns the texts of the table, each shared by every eighth prompt."""
  row = np.arange(subject.config.prefix.batch_size, dtype=np.int32) % FILLED_AT_ONCE
  return Prefixes(table.keys, table.values, table.valid, make_global_batch(subject.mesh, row))
