"""Whether this machine computes what the formulas say: its attention kernel, and the whole model."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax import numpy as jnp

from spatial_vlm import sharding
from spatial_vlm.benchmark.inputs import RowShape, random_batch
from spatial_vlm.benchmark.measure import alternate
from spatial_vlm.benchmark.row import Row, Spread
from spatial_vlm.benchmark.subject import MODELS, Subject, row_shape
from spatial_vlm.model import flash, qwen3_vl
from spatial_vlm.model.attention import plain_attention
from spatial_vlm.types import Device

ROWS = 2
SLACK = 3.0
"""A kernel is right if its errors are at most so many times those of the formula in the same type."""
ROUNDING = 1e-5
"""Added to the errors that are allowed: in float32 the formula's own are nearly zero."""
ATTENTION = "attention"
"""Measurement whose rows begin with this name."""
OUTPUTS = ("output", "dq", "dk", "dv")


def attention_rows(subject: Subject) -> Iterator[Row]:
  """Yields the errors and times of the attention that the model calls here, forward and gradients, for both towers.

  An error is the largest absolute difference from the formula in float32 on the CPU. Where the kernel fails, later
  rows use the formula.
  """
  text, vision = subject.model.text, subject.model.vision
  heads = (text.num_attention_heads, text.num_key_value_heads, text.head_dim)
  shape = row_shape(subject.config.sft)
  yield _attention_row(subject, f"{ATTENTION}, text", heads, shape.tokens, causal=True)
  heads = (vision.num_heads, vision.num_heads, vision.head_dim)
  yield _attention_row(subject, f"{ATTENTION}, vision", heads, shape.patches, causal=False)


def _attention_row(
  subject: Subject, name: str, heads: tuple[int, int, int], tokens: int, causal: bool
) -> Row:
  dtype = subject.config.dtype
  arrays, segments = attention_inputs(heads, tokens, dtype)
  with _on_cpu() as cpu:
    exact = jax.device_put([x.astype(np.float32) for x in jax.device_get(arrays)], cpu)
    on_cpu = jax.device_put(segments, cpu)
    reference = jax.device_get(_with_gradients(plain_attention, *exact, on_cpu, causal))
  of_formula = functools.partial(_with_gradients, plain_attention, *arrays, segments, causal)
  formula_errors = _errors(of_formula(), reference)
  run = functools.partial(_with_gradients, flash.attention, *arrays, segments, causal)
  try:
    errors = _errors(run(), reference)
  except Exception as error:  # no kernel, or its library refuses these sizes
    use_formula()
    return Row(subject.name, name, error=f"{_first_line(error)}; the formula is used instead")
  figures = f"errors {_figures(errors)}; of the formula {_figures(formula_errors)}"
  if not (errors <= SLACK * formula_errors + ROUNDING).all():  # also for NaN
    use_formula()
    return Row(subject.name, name, error=f"{figures}: too large; the formula is used instead")
  times = alternate({"ours": run, "formula": of_formula}, subject.rounds)
  faster = np.median(times["formula"]) / np.median(times["ours"])
  return Row(
    subject.name,
    name,
    seconds=Spread.of(times["ours"]),
    note=f"{figures}; {faster:.2f} × as fast as the formula",
  )


@contextlib.contextmanager
def _on_cpu() -> Iterator[Device]:
  """Yields the CPU, on which programs of its arrays run whatever mesh is set outside."""
  cpu = jax.devices("cpu")[0]
  with jax.set_mesh(sharding.make_mesh({}, [cpu])), jax.default_matmul_precision("highest"):
    yield cpu


def attention_inputs(
  heads: tuple[int, int, int], tokens: int, dtype: str
) -> tuple[list[jax.Array], jax.Array]:
  """Returns q, k, v and a cotangent, and segments: three sequences a row, with padding before and after."""
  rng = np.random.default_rng(0)
  N, K, H = heads
  by_token, by_head = (ROWS, tokens, N, H), (ROWS, K, tokens, H)
  arrays = [
    jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
    for shape in (by_token, by_head, by_head, by_token)
  ]
  ends = np.sort(rng.integers(0, tokens, (ROWS, 4)), axis=1)
  number = np.sum(np.arange(tokens)[None, :, None] >= ends[:, None], axis=-1)
  return arrays, jnp.asarray(number % 4, jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _with_gradients(attend: Callable, q, k, v, cotangent, segments, causal: bool):
  """Returns the output and the gradients of q, k and v; those of padding rows are left out."""
  real = (segments > 0)[:, :, None, None]

  def masked(q, k, v):
    return jnp.where(real, attend(q, k, v, segments, causal=causal), 0)

  output, pull = jax.vjp(masked, q, k, v)
  return output, *pull(cotangent)


def _errors(found, reference) -> np.ndarray:
  pairs = zip(found, reference, strict=True)
  return np.array([np.abs(np.asarray(a, np.float32) - b).max() for a, b in pairs])


def _figures(errors: np.ndarray) -> str:
  return ", ".join(f"{label} {error:.1e}" for label, error in zip(OUTPUTS, errors, strict=True))


def use_formula() -> None:
  """Takes the kernels of attention out of use."""
  flash.KERNELS.clear()
  jax.clear_caches()


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0][:300]


PARITY_MODEL = "tiny"
PARITY_TOLERANCE = 1e-4


def parity_rows(subject: Subject) -> Iterator[Row]:
  """Yields the largest difference of hidden states and logits of a small model here and on the CPU, in float32."""
  model = MODELS[PARITY_MODEL]
  shape = RowShape(tokens=181, images=2, grid=(8, 8))  # two conversations a row, and padding
  batch = random_batch(model, 4, shape, subject.config.seed)

  @jax.jit
  def forward(params, batch):
    hidden = qwen3_vl.forward(params, model, batch)
    return qwen3_vl.logits(params, model, hidden)

  with _on_cpu() as cpu:
    init = jax.jit(functools.partial(qwen3_vl.init_params, model))
    params = init(jax.device_put(jax.random.key(0), cpu))
    there = np.asarray(forward(params, jax.device_put(batch, cpu)))
  with jax.default_matmul_precision("highest"):
    here = np.asarray(forward(jax.device_get(params), batch))
  real = batch.segments > 0
  difference = np.abs(here - there)[real].max()
  scale = np.abs(there[real]).max()
  text = (
    f"logits differ from those of the CPU by at most {difference:.1e}; the largest is {scale:.1f}"
  )
  wrong = not difference <= PARITY_TOLERANCE * scale
  yield Row(
    PARITY_MODEL,
    f"float32 on {jax.default_backend()} and CPU",
    note="" if wrong else text,
    error=text if wrong else "",
  )
