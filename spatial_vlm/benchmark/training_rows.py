"""A step of supervised fine-tuning, and what compiling it costs with and without the persistent cache."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from spatial_vlm import sharding
from spatial_vlm.benchmark.inputs import random_batch
from spatial_vlm.benchmark.measure import alternate, build, flops_of, ratios, rebuild_seconds
from spatial_vlm.benchmark.row import Row, Spread
from spatial_vlm.benchmark.subject import Subject, row_shape
from spatial_vlm.benchmark.weights import random_params
from spatial_vlm.config import Config, settings_from
from spatial_vlm.optim.optimizers import optimizer_from_config
from spatial_vlm.parameters.partition import subset_from_config
from spatial_vlm.process_rows import make_global_batch
from spatial_vlm.train.run import partition_policy, place_state
from spatial_vlm.train.sft import SftSettings, sft_step
from spatial_vlm.types import Params, TrainState


class Stepper:
  """Calls a compiled step that donates its state."""

  def __init__(self, step: Callable, state: Any, *constants: Any):
    self._step, self._state, self._constants = step, state, constants

  def __call__(self) -> Any:
    """Returns the state and the sums after one more step."""
    self._state, sums = self._step(self._state, *self._constants)
    return self._state, sums


def fresh_state(subject: Subject, config: Config) -> tuple[TrainState, Params, Any]:
  """Returns a train state with random weights, the frozen parameters and the optimizer of a group of settings."""
  subset = subset_from_config(config)
  optimizer = optimizer_from_config(config.optimizer, TOTAL_STEPS)
  params = random_params(subject.mesh, subject.model, subset, subject.config.seed)
  trained, frozen = partition_policy(subject.mesh, params, subset, subject.config.seed)
  return place_state(subject.mesh, trained, optimizer), frozen, optimizer


TOTAL_STEPS = 1000
"""Of the schedule; it does not change the program's cost."""


def sft_rows(subject: Subject) -> Iterator[Row]:
  """Yields the time of a training step; its utilisation is that of the operations without recomputation."""
  config, model = subject.config.sft, subject.model
  state, frozen, optimizer = fresh_state(subject, config)
  shape = row_shape(config)
  host = random_batch(model, config.batch_size, shape, subject.config.seed)
  batch = make_global_batch(subject.mesh, host)
  settings = settings_from(SftSettings, config)
  shapes = jax.eval_shape(lambda s: s, (state, batch, frozen))
  shapes = sharding.with_shardings(
    shapes, jax.tree.map(lambda x: x.sharding, (state, batch, frozen))
  )
  trace = functools.partial(sft_step.trace, *shapes, model=model, optimizer=optimizer)
  built = build(functools.partial(trace, settings=settings))
  calls = {"ours": Stepper(built.call, state, batch, frozen)}
  del state
  if subject.peer:
    calls["transformers"] = subject.peer.train_step(host, config)
  times = alternate(calls, subject.rounds)
  whole = dataclasses.replace(settings, remat="none", chunk_tokens=shape.tokens)
  lora = f"LoRA of rank {config.lora.rank}" if config.lora.rank else "all parameters"
  yield Row(
    subject.name,
    "training step",
    seconds=Spread.of(times["ours"]),
    tokens=host.tokens.size,
    flops=flops_of(trace(settings=whole)),
    peak_bytes=built.peak_bytes,
    compile_s=built.seconds,
    cached_compile_s=rebuild_seconds(functools.partial(trace, settings=settings)),
    ratio=ratios(times["transformers"], times["ours"]) if subject.peer else None,
    note=f"{lora}, {config.optimizer.method}, remat {config.remat}, {config.dtype}; "
    f"{config.batch_size} rows of {shape.tokens} tokens, {shape.patches} patches",
  )
