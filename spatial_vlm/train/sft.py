"""Supervised fine-tuning: masked token cross-entropy on the assistant's tokens.

  L(θ) = − 1/N · Σ_{b,t} m_{b,t} · log π_θ(y_{b,t} | y_{b,<t}, images_b),   N = Σ_{b,t} m_{b,t}

N counts the target tokens of the whole batch, over all micro-batches and devices, so the gradient does not depend
on how the batch is cut (sums before means).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from spatial_vlm import sharding
from spatial_vlm.config import Config, UsageError
from spatial_vlm.metrics import Sums
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.objectives.cross_entropy import token_cross_entropy
from spatial_vlm.parameters.partition import NOTHING, combine
from spatial_vlm.train.run import check_training
from spatial_vlm.train.update import (
  accumulate,
  apply_gradient,
  computed_in,
  constrain_state,
  cut_rows,
  mean_gradient,
)
from spatial_vlm.types import Batch, Params, TrainState


@dataclasses.dataclass(frozen=True)
class SftSettings:
  """What the step is compiled with; the names are those of the config."""

  micro_batches: int
  """Divides the rows of a batch."""
  chunk_tokens: int
  """Positions whose logits are in memory at a time."""
  remat: str
  """Names a policy of `model.stack`."""
  dtype: str
  """Type of the computation; parameters, sums of gradients and the optimizer stay float32."""


def sft_loss(
  params: Params, batch: Batch, model: ModelConfig, settings: SftSettings
) -> tuple[Float[Array, ""], Int[Array, ""]]:
  """Returns the summed cross-entropy (nats) of the target tokens of `batch`, and their number."""
  params = computed_in(settings.dtype, params)
  hidden = qwen3_vl.forward(params, model, batch, settings.remat)
  unembedding = qwen3_vl.unembedding(params, model).T
  return token_cross_entropy(
    hidden, unembedding, batch.tokens, batch.targets, settings.chunk_tokens
  )


@functools.partial(
  jax.jit, static_argnames=("model", "optimizer", "settings"), donate_argnames="state"
)
def sft_step(
  state: TrainState,
  batch: Batch,
  frozen: Params = NOTHING,
  *,
  model: ModelConfig,
  optimizer: optax.GradientTransformation,
  settings: SftSettings,
) -> tuple[TrainState, Sums]:
  """Updates the parameters in `state`, which are all but the `frozen` ones.

  Sums: `loss` (nats over target tokens), `grad_norm`, `target_tokens`, and those of `padding`.
  """

  def loss(params, micro_batch):
    total, count = sft_loss(combine(params, frozen), micro_batch, model, settings)
    return total, {"loss": (total, count)}

  gradient = jax.grad(loss, has_aux=True)
  grads, sums = accumulate(gradient, state.params, cut_rows(batch, settings.micro_batches))
  grads = mean_gradient(grads, sums["loss"][1])
  one = jnp.ones((), jnp.int32)
  sums["grad_norm"] = (optax.tree.norm(grads), one)
  sums["target_tokens"] = (sums["loss"][1], one)
  state = constrain_state(apply_gradient(state, grads, optimizer), sharding.state_shardings)
  return state, sums | padding(batch)


def padding(batch: Batch) -> Sums:
  """Returns (padded slots, all slots) of tokens and, where the batch has images, of patches."""
  segments = {"token": batch.segments}
  if batch.vision is not None:
    segments["patch"] = batch.vision.segments
  return {
    f"input/{kind}_padding": (jnp.sum(of_kind == 0), jnp.full((), of_kind.size, jnp.int32))
    for kind, of_kind in segments.items()
  }


def sft_loop(
  state: TrainState, batches: Iterator[Batch], step: Callable, steps: int
) -> Iterator[tuple[TrainState, Sums]]:
  """Yields the state and the sums after each of at most `steps` updates."""
  for batch in itertools.islice(batches, steps):
    state, sums = step(state, batch)
    yield state, sums


def check(config: Config) -> None:
  """Raises UsageError, with numbers and remedy, for settings that cannot work together."""
  check_training(config)
  if config.batch_size % config.micro_batches:
    raise UsageError(
      f"batch_size {config.batch_size} is no multiple of micro_batches {config.micro_batches}; change one of them"
    )
  check_data(config)
  if config.checkpoint_steps % config.log_steps:
    raise UsageError(
      f"checkpoint_steps {config.checkpoint_steps} is no multiple of log_steps {config.log_steps}; a resumed run "
      "could not write the same metrics"
    )


def check_data(config: Config) -> None:
  data = config.data
  if data.pretrain.scenes and (data.batching != "shuffled" or data.mix):
    raise UsageError(
      "data.pretrain renders its images during training; it needs data.batching=shuffled and no data.mix"
    )
