"""Continuous batching: requests wait in a queue, and a free slot takes the next one while other slots decode.

One thread drives an engine: `submit`, then `step` while it is `busy`. The random keys of an answer are functions of
(seed, id, sample, token), so an answer depends on its request and the weights alone, up to the rounding of the programs
that read prompts (see `SlotSettings.prefill_prompts`).

In a run of several processes, each submits the requests of its own rows (see `process_rows`), and all call `step`
equally often; they agree on every program that runs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, PRNGKeyArray

from spatial_vlm import sharding
from spatial_vlm.data.batch_plan import largest
from spatial_vlm.hosts import all_gather_json
from spatial_vlm.process_rows import make_global_batch, own_rows, process_shard
from spatial_vlm.processor.chat import Encoded, Processor, Size, cast_patches, collate_prompts
from spatial_vlm.processor.image import padded_vision
from spatial_vlm.rollout.prefix_cache import PrefixCache, computation_dtype
from spatial_vlm.rollout.slot_queue import Assignment, SlotQueue, WaitingRequest
from spatial_vlm.rollout.slot_requests import (
  MAX_END_TOKENS,
  Progress,
  RequestKind,
  SlotRequest,
  SlotSettings,
  check_request,
  kind_of,
)
from spatial_vlm.rollout.slots import (
  Arrivals,
  DecodedTokens,
  RowSettings,
  Slots,
  SlotSizes,
  decode_slots,
  empty_slots,
  fill_slots,
  zeros,
)
from spatial_vlm.types import Params, Prompts


class SlotEngine:
  """Decodes the answers of a queue of requests in a fixed number of rows over `mesh`.

  Args:
    processor: of the checkpoint.
    forbidden_tokens: ids that are never sampled.
    mesh: devices that sample; prompts and rows are sharded over ROWS, weights and caches by heads.
    settings: static sizes.
    prefix_cache: answers requests with prefixes; None: all prompts are whole.
  """

  def __init__(
    self,
    processor: Processor,
    forbidden_tokens: Bool[Array | np.ndarray, "V"],
    mesh: Mesh,
    settings: SlotSettings,
    prefix_cache: PrefixCache | None = None,
  ):
    self.mesh, self.settings = mesh, settings
    self._processor, self._forbidden, self._prefix_cache = processor, forbidden_tokens, prefix_cache
    self._sizes = slot_sizes(settings, prefix_cache.tokens if prefix_cache else 0)
    self._release()

  def _release(self) -> None:
    self._weights: Params | None = None
    self._slots: Slots | None = None
    self._has_failed = False
    of_part = slots_per_part(self.mesh, self.settings.prompt_slots)
    parts = self.settings.prompt_slots // of_part
    shard = process_shard(self.mesh)
    own = len(shard.rows(parts)) if shard.count > 1 else parts
    settings = self.settings
    self._queue = SlotQueue(own, of_part, settings.samples_per_slot, settings.prefill_prompts)

  def publish(self, weights: Params) -> None:
    """Sets the weights, in the computation's type over the mesh; requests of earlier weights are forgotten."""
    self.release()
    self._weights = weights

  def release(self) -> None:
    """Drops the weights, the caches and all requests."""
    self._release()
    if self._prefix_cache is not None:
      self._prefix_cache.clear()

  @property
  def busy(self) -> bool:
    """Whether a request waits or runs."""
    return bool(self._queue.waiting or self._queue.running)

  @property
  def waiting(self) -> int:
    """Requests in the queue."""
    return len(self._queue.waiting)

  @property
  def running(self) -> int:
    """Answers that are being decoded."""
    return len(self._queue.running)

  def submit(self, request: SlotRequest, key: PRNGKeyArray | None = None) -> None:
    """Puts a request into the queue; `key` replaces the key of its seed.

    Raises ValueError for a request that the engine can never answer.
    """
    most = self._queue.slots * self.settings.samples_per_slot
    check_request(request, self.settings, most)
    if request.prefix and self._prefix_cache is None:
      raise ValueError(
        f"request {request.id} has a prefix and the engine has no prefix_cache; give it one"
      )
    key = jax.random.key(request.seed) if key is None else key
    key_data = np.asarray(jax.random.key_data(key))
    self._queue.add(WaitingRequest(request, key_data, kind_of(request, self.settings)))

  def cancel(self, id: int) -> None:
    """Forgets a request and frees its slots; an unknown id is ignored, since its answers may just have ended."""
    self._queue.cancel(id)

  def step(self) -> list[Progress]:
    """Refills free slots, decodes up to `decode_tokens` tokens of every row, and returns what each answer gained.

    Raises RuntimeError where no weights are published, and in every call after one that raised: by then requests may
    be without their prompts, and slots overwritten. `publish` starts again without requests.
    """
    if self._has_failed:
      raise RuntimeError(
        "an earlier step of the engine failed, and its answers are lost; publish the weights again"
      )
    self._has_failed = True
    progress = self._step()
    self._has_failed = False
    return progress

  def _step(self) -> list[Progress]:
    with jax.set_mesh(self.mesh):
      while ready := [next for next in all_gather_json(self._queue.next_prompts()) if next]:
        kind, count = min(ready)
        self._fill(RequestKind(*kind), count)
      return self._decode() if any(all_gather_json(bool(self._queue.running))) else []

  def _fill(self, kind: RequestKind, count: int) -> None:
    """Reads up to `count` prompts of one kind in each part of the mesh, and starts their answers."""
    weights, taken = self._published(), self._queue.take(kind, count)
    nowhere = [self.settings.prompt_slots] * kind.slots  # beyond the last slot
    arriving: list[Assignment | None] = []
    for of_part in taken:
      arriving += [*of_part, *[None] * (count - len(of_part))]
    places = np.array([a.slots if a else nowhere for a in arriving], np.int32)
    waiting = [a.waiting if a else None for a in arriving]
    arrivals = make_global_batch(self.mesh, self._arrivals(kind, waiting, places))
    prefixes = None
    if kind.has_prefix:
      assert self._prefix_cache is not None  # see `submit`
      texts = [w.request.prefix if w else () for w in waiting]
      prefixes = self._prefix_cache.prefixes(weights, texts)
    model = self._processor.model_config
    self._slots = fill_slots(weights, self._state(), arrivals, prefixes, model=model)

  def _arrivals(
    self, kind: RequestKind, waiting: Sequence[WaitingRequest | None], places: np.ndarray
  ) -> Arrivals:
    """Returns the arrays of prompts; None is a blank row."""
    requests = [w.request if w else None for w in waiting]

    def array(of_request: Callable[[SlotRequest], Any], blank: Any, dtype: Any) -> np.ndarray:
      return np.array([of_request(r) if r else blank for r in requests], dtype)

    ids = array(lambda r: r.id if r.key_id is None else r.key_id, 0, np.int32)
    rows = [r.prompt if r else BLANK for r in requests]
    prompts = padded_prompts(self._processor, rows, ids, self.settings.sizes[kind.size])
    ends, none = self.settings.end_tokens, [-1] * MAX_END_TOKENS
    return Arrivals(
      prompts=cast_patches(prompts, computation_dtype(self._published())),
      places=places,
      samples=array(lambda r: r.samples, 0, np.int32),
      settings=RowSettings(
        keys=np.array([w.key if w else (0, 0) for w in waiting], np.uint32),
        temperature=array(lambda r: r.temperature, 0.0, np.float32),
        top_p=array(lambda r: r.top_p, 1.0, np.float32),
        top_k=array(lambda r: r.top_k, 0, np.int32),
        limit=array(lambda r: r.max_new_tokens, 1, np.int32),
        ends=array(lambda r: [*ends, *r.stop, *none][:MAX_END_TOKENS], none, np.int32),
        wants_likeliest=array(lambda r: r.top_logprobs > 0, False, bool),
      ),
    )

  def _decode(self) -> list[Progress]:
    keep = np.ones(self._queue.rows, bool)
    keep[self._queue.take_dropped()] = False
    self._slots, decoded = decode_slots(
      self._published(),
      self._state(),
      make_global_batch(self.mesh, keep),
      self._forbidden,
      model=self._processor.model_config,
      tokens=self.settings.decode_tokens,
      top_logprobs=self.settings.top_logprobs,
    )
    return self._progress(jax.tree.map(own_rows, decoded))

  def _progress(self, decoded: DecodedTokens) -> list[Progress]:
    """Returns what the running answers gained, and frees the slots of those that have ended."""
    progress, over = [], []
    for row in sorted(self._queue.running):
      request, sample = self._queue.running[row]
      count, finished = int(decoded.count[row]), None
      if not decoded.active[row]:
        finished = "stop" if decoded.ended[row] else "length"
        over.append(row)
      tokens, logp = decoded.tokens[row, :count], decoded.logp[row, :count]
      top = _likeliest(decoded, row, count, request.top_logprobs)
      progress.append(Progress(request.id, sample, tokens.tolist(), logp.tolist(), finished, top))
    self._queue.end(over)
    return progress

  def _state(self) -> Slots:
    if self._slots is None:
      dtype, model = computation_dtype(self._published()), self._processor.model_config
      self._slots = zeros(empty_slots(model, self.mesh, dtype, self._sizes))
    return self._slots

  def _published(self) -> Params:
    if self._weights is None:
      raise RuntimeError("the engine has no weights; call publish first")
    return self._weights


def _likeliest(
  decoded: DecodedTokens, row: int, count: int, top: int
) -> list[list[tuple[int, float]]]:
  """Returns the `top` likeliest tokens of each place without forbidden ones; [] for a `top` of 0."""
  if not top:
    return []
  places = zip(decoded.likeliest[row, :count], decoded.likeliest_logp[row, :count], strict=True)
  return [
    [
      (int(id), float(logp))
      for id, logp in zip(ids[:top], logps[:top], strict=True)
      if logp > -np.inf
    ]
    for ids, logps in places
  ]


def slots_per_part(mesh: Mesh, prompt_slots: int) -> int:
  """Returns the slots of each part of the mesh; all samples of a request are in one part."""
  axes = sharding.divisible_axes(sharding.ROWS, mesh, prompt_slots)
  return prompt_slots // sharding.axis_product(mesh, axes)


def slot_sizes(settings: SlotSettings, prefix_tokens: int) -> SlotSizes:
  """Returns the sizes of the slots' arrays; prompts come after prefixes of up to so many tokens."""
  calls = -(-settings.max_new_tokens // settings.decode_tokens)
  return SlotSizes(
    prompt_slots=settings.prompt_slots,
    rows_per_prompt=settings.samples_per_slot,
    prompt_tokens=largest(settings.sizes).tokens + prefix_tokens,
    answer_tokens=(calls - 1) * settings.decode_tokens,  # nothing reads the last call's tokens
    end_tokens=MAX_END_TOKENS,
  )


BLANK = Encoded(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros((0, 3), np.int32), images=[])
"""An empty prompt, which fills a batch."""


def padded_prompts(
  processor: Processor, rows: Sequence[Encoded], ids: np.ndarray, size: Size
) -> Prompts:
  """Pads prompts to exactly this size, so that equal sizes are one program, images or not."""
  vision, labels = processor.model_config.vision, [-1] * len(rows)
  bucket = size.patches or vision.merge_unit
  prompts = collate_prompts(rows, processor, ids.tolist(), labels, size.tokens, bucket)
  if size.patches and prompts.vision is None:
    blank = padded_vision([[]] * len(rows), vision, size.patches)
    prompts = dataclasses.replace(prompts, vision=blank)
  return prompts
