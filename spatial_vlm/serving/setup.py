"""Making a server from a policy and the config of `serve`."""

import dataclasses
import logging
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from spatial_vlm.config import Config, settings_from
from spatial_vlm.inference.generation import format_with_prefixes, serving_slots
from spatial_vlm.inference.policy import Policy, PromptFormat
from spatial_vlm.inference.questions import QuestionBuilder, Recall
from spatial_vlm.processor.chat import Encoded, Size
from spatial_vlm.rollout.prefix_cache import PrefixCache
from spatial_vlm.rollout.slot_engine import SlotEngine
from spatial_vlm.rollout.slot_requests import SlotRequest, SlotSettings
from spatial_vlm.serving.chat_request import MAX_TOP_LOGPROBS
from spatial_vlm.serving.engine_thread import EngineThread
from spatial_vlm.serving.limits import Limits
from spatial_vlm.serving.prompts import PromptBuilder
from spatial_vlm.serving.server_metrics import ServerMetrics
from spatial_vlm.serving.service import ChatService
from spatial_vlm.tasks import find_task

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EngineFactory:
  """Makes engines with the sizes of the config; their programs are compiled once for all of them."""

  policy: Policy
  mesh: Mesh
  settings: SlotSettings
  cache: PrefixCache | None

  def __call__(self) -> SlotEngine:
    """Returns an engine without requests."""
    forbidden = self.policy.forbidden_tokens
    engine = SlotEngine(self.policy.processor, forbidden, self.mesh, self.settings, self.cache)
    engine.publish(self.policy.params)
    return engine

  def compile(self) -> None:
    """Compiles all programs by running each, so that no client waits for it."""
    engine, prefixes = self(), [(), (self.policy.special.im_start,)] if self.cache else [()]
    for size in self.settings.sizes:
      log.info("compiling prompts of %d tokens and %d patches", *size)
      for prefix in prefixes:
        for count in self.settings.prefill_prompts:
          for request in self._blank_requests(size, prefix, count):
            engine.submit(request)
          while engine.busy:
            engine.step()

  def _blank_requests(
    self, size: Size, prefix: tuple[int, ...], count: int
  ) -> Iterator[SlotRequest]:
    model = self.policy.model
    tokens = np.full(size.tokens, self.policy.special.im_start, np.int32)
    positions = np.repeat(np.arange(size.tokens, dtype=np.int32)[:, None], 3, axis=1)
    merge = model.vision.spatial_merge_size
    grid = (1, merge, size.patches // merge)
    patches = np.zeros((size.patches, model.vision.patch_dim), np.float32)
    prompt = Encoded(tokens, np.zeros(size.tokens, bool), positions, [(patches, grid)])
    for id in range(count):
      yield SlotRequest(id=id, prompt=prompt, prefix=prefix, max_new_tokens=1)


def make_service(
  policy: Policy, mesh: Mesh, config: Config, name: str, recall: Recall | None = None
) -> tuple[ChatService, EngineFactory]:
  """Returns a service with the sizes and limits of the config, and what makes its engine.

  Args:
    policy: its weights lie on the mesh.
    mesh: devices that generate.
    config: see configs/serve.py.
    name: served name of the model.
    recall: behaviors that plain statements are answered with.
  """
  task = find_task(config.task)
  systems = set(QuestionBuilder(task, "chain", recall).systems)
  format = format_with_prefixes(policy, config.prompt_shapes, systems)
  metrics = ServerMetrics()
  slots = serving_slots(config, format, policy.special.eos)
  top = min(MAX_TOP_LOGPROBS, policy.model.text.vocab_size)
  slots = dataclasses.replace(slots, top_logprobs=top)
  factory = EngineFactory(policy, mesh, slots, _cache(policy, mesh, format, systems))
  service = ChatService(
    model=name,
    prompts=PromptBuilder(task, policy.processor.limited_to(config.max_patches), format, recall),
    engine=EngineThread(factory, metrics.failures.inc),
    limits=settings_from(Limits, config.limits),
    defaults=(config.max_new_tokens, config.temperature),
    slots=config.slots,
    metrics=metrics,
  )
  return service, factory


def _cache(
  policy: Policy, mesh: Mesh, format: PromptFormat, systems: set[str]
) -> PrefixCache | None:
  """Returns a cache that holds the system turns of all behaviors; None if there is none."""
  if not format.prefix_tokens:
    return None
  return PrefixCache(policy.model, mesh, len(systems), format.prefix_tokens)
