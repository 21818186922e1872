"""The stepwise engine over `CompiledEngine`, one request at a time, until the slot engine is there."""

import collections
import dataclasses
from typing import Literal, Protocol

import jax

from spatial_vlm.inference.policy import Policy, PromptFormat, collate
from spatial_vlm.process_rows import make_global_batch
from spatial_vlm.processor.chat import Encoded
from spatial_vlm.rollout.engine import CompiledEngine, Requests
from spatial_vlm.rollout.prefix_cache import Text


@dataclasses.dataclass(frozen=True)
class SlotRequest:
  id: int
  prompt: Encoded
  prefix: Text = ()
  samples: int = 1
  max_new_tokens: int = 1
  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0
  seed: int = 0
  stop: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Progress:
  id: int
  sample: int
  tokens: list[int]
  logp: list[float]
  finished: Literal["stop", "length"] | None


class StepEngine(Protocol):
  def submit(self, request: SlotRequest) -> None: ...
  def step(self) -> list[Progress]: ...
  def cancel(self, id: int) -> None: ...
  @property
  def busy(self) -> bool: ...


class CompiledSlots:
  def __init__(self, policy: Policy, engine: CompiledEngine, format: PromptFormat):
    self.policy, self.engine, self.format = policy, engine, format
    self._waiting: collections.deque[SlotRequest] = collections.deque()

  @property
  def busy(self) -> bool:
    return bool(self._waiting)

  def submit(self, request: SlotRequest) -> None:
    self._waiting.append(request)

  def cancel(self, id: int) -> None:
    self._waiting = collections.deque(r for r in self._waiting if r.id != id)

  def step(self) -> list[Progress]:
    request = self._waiting.popleft()
    prompts = collate(self.policy.processor, [request.prompt], [0], [-1], self.format)
    requests = Requests(make_global_batch(self.engine.mesh, prompts), [], [], [], [request.prefix])
    sampling = self.policy.sampling(request.max_new_tokens, request.temperature, request.samples)
    done = jax.device_get(self.engine.generate(requests, jax.random.key(request.seed), sampling))
    progress = []
    for sample, (row, mask, logp) in enumerate(zip(done.tokens, done.mask, done.logp, strict=True)):
      tokens, values = row[mask].tolist(), logp[mask].tolist()
      ended = bool(tokens) and tokens[-1] == self.policy.special.eos
      for start in range(0, len(tokens), 8):
        last = start + 8 >= len(tokens)
        finished = ("stop" if ended else "length") if last else None
        part = slice(start, start + 8)
        progress.append(Progress(request.id, sample, tokens[part], values[part], finished))
    return progress
