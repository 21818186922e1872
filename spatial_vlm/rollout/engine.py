"""Engines sample completions of prompts; RL talks to one through the protocol `Engine`.

An engine gets weights and requests and returns tokens with their log-probabilities. It judges nothing: verdicts and
rewards are computed from its completions.
"""

import contextlib
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from spatial_vlm.model.attention import Prefixes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.rollout.batch_queue import BatchQueue
from spatial_vlm.rollout.prefix_cache import PrefixCache
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.rollout.sampler import (
  Completions,
  SamplingSettings,
  first_token_logits,
  generate,
)
from spatial_vlm.rollout.slot_engine import SlotEngine
from spatial_vlm.types import Params


class Engine(Protocol):
  """Samples completions with weights that change between batches."""

  def publish(self, weights: Params) -> None:
    """Makes the next completions come from these trainable parameters."""
    ...

  def generate(
    self, requests: Requests, key: PRNGKeyArray, sampling: SamplingSettings
  ) -> Completions:
    """Samples `sampling.group_size` completions of every prompt."""
    ...

  def release(self) -> None:
    """Frees the memory of the published weights, e.g. before an update."""
    ...


class CompiledEngine:
  """The engine in this process, over `mesh`.

  Without slots, the answers of a batch start together, in one compiled program of prefill and decoding. With slots, a
  batch waits in their queue, and short answers make room for further ones; a single prompt still takes one program.

  Every program that reads prompts runs here, since its kernels are partitioned by hand and read the mesh that is set.

  Args:
    model: sizes of the model.
    forbidden_tokens: ids that are never sampled.
    mesh: devices that sample; weights are sharded by heads and hidden units there.
    to_rollout_weights: published weights -> all parameters in the computation's type, over `mesh`.
    prefix_cache: answers requests with prefixes; None: all prompts are whole.
    slots: decodes batches of several prompts; it has the same mesh and prefix cache. None: they start together.
  """

  def __init__(
    self,
    model: ModelConfig,
    forbidden_tokens: Bool[Array | np.ndarray, "V"],
    mesh: Mesh,
    to_rollout_weights: Callable[[Params], Params],
    prefix_cache: PrefixCache | None = None,
    slots: SlotEngine | None = None,
  ):
    self.model, self.forbidden_tokens, self.mesh = model, forbidden_tokens, mesh
    self._prefix_cache = prefix_cache
    self._to_rollout_weights = to_rollout_weights
    self._weights: Params | None = None
    self._queue = BatchQueue(slots) if slots else None
    self._turn = self._queue.turn if self._queue else contextlib.nullcontext()

  def publish(self, weights: Params) -> None:
    """Copies the weights to the sampling mesh."""
    self.release()
    self._weights = self._to_rollout_weights(weights)
    if self._queue:
      with self._turn:
        self._queue.engine.publish(self._weights)

  def generate(
    self, requests: Requests, key: PRNGKeyArray, sampling: SamplingSettings
  ) -> Completions:
    """Raises RuntimeError where no weights are published, ValueError for prefixes that the cache cannot hold.

    With slots, also raises RuntimeError where the weights change, or a step of the engine fails, before the batch is
    answered.
    """
    weights = self._published()
    if self._queue and len(requests.prompts.label) > 1:
      return self._queue.generate(requests, key, sampling)
    with self._turn, jax.set_mesh(self.mesh):
      return generate(
        weights,
        requests.prompts,
        key,
        self.forbidden_tokens,
        self._prefixes(requests),
        model=self.model,
        sampling=sampling,
      )

  def first_token_logits(self, requests: Requests) -> Float[Array, "B V"]:
    """Returns the logits of the first token of every completion; raises as `generate`."""
    with self._turn, jax.set_mesh(self.mesh):
      prefixes = self._prefixes(requests)
      return first_token_logits(self._published(), requests.prompts, prefixes, model=self.model)

  def release(self) -> None:
    """Drops the copy of the weights, and what was computed with them."""
    self._weights = None
    if self._queue:
      with self._turn:
        self._queue.engine.release()
    if self._prefix_cache is not None:
      self._prefix_cache.clear()

  def fill_prefixes(self, requests: Requests) -> None:
    """Computes the prefixes of the prompts that are not in memory yet."""
    self._prefixes(requests)

  def _prefixes(self, requests: Requests) -> Prefixes | None:
    """Returns the prefixes of the prompts; None where all are whole: their program reads no table."""
    if not any(requests.prefixes):
      return None
    if self._prefix_cache is None:
      raise ValueError("the requests have prefixes and the engine has no prefix_cache; give it one")
    return self._prefix_cache.prefixes(self._published(), requests.prefixes)

  def _published(self) -> Params:
    if self._weights is None:
      raise RuntimeError("the engine has no weights; call publish first")
    return self._weights
