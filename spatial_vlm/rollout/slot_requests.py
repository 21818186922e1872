"""Requests to a slot engine, the progress of their answers, and the checks of a request before it is queued."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from spatial_vlm.data.batch_plan import largest, smallest
from spatial_vlm.processor.chat import Encoded, Size
from spatial_vlm.rollout.prefix_cache import Text

MAX_END_TOKENS = 8
"""Most tokens that end an answer: those of the engine and the request's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotRequest:
  """One prompt, and how its answers are sampled."""

  id: int
  """Different from that of every other request in the engine."""
  prompt: Encoded
  prefix: Text = ()
  """Tokens that come before `prompt`, from the engine's prefix cache."""
  samples: int = 1
  max_new_tokens: int
  temperature: float = 0.0
  """0 takes the likeliest token."""
  top_p: float = 1.0
  top_k: int = 0
  """0: all tokens."""
  seed: int = 0
  stop: tuple[int, ...] = ()
  """Tokens that end an answer, besides those of the engine."""
  top_logprobs: int = 0
  """Likeliest tokens that are returned at each place of the answer, up to the engine's number."""
  key_id: int | None = None
  """Number that the random keys fold in; None: `id`. With it, equal seeds give equal answers under different ids."""


class Progress(NamedTuple):
  """Tokens that a step adds to one answer."""

  id: int
  sample: int
  tokens: list[int]
  """The token that ends the answer is the last one."""
  logp: list[float]
  """Log-probability of each token at the sampled temperature (at 1 for temperature 0), over all allowed tokens."""
  finished: Literal["stop", "length"] | None
  """Why the answer ends here; None: it continues."""
  likeliest: Sequence[list[tuple[int, float]]] = ()
  """For each token, the likeliest ones at its place with their log-probabilities; () if not asked for."""


@dataclasses.dataclass(frozen=True)
class SlotSettings:
  """Static sizes of an engine, which its programs are compiled for."""

  prompt_slots: int
  """Prompts whose answers are decoded at a time."""
  max_new_tokens: int
  """Most tokens of any answer."""
  sizes: tuple[Size, ...]
  """Padded sizes of prompts; each is a program of its own. A prompt takes the smallest that holds it."""
  end_tokens: tuple[int, ...]
  samples_per_slot: int = 1
  """Answers that share a prompt's keys and values; a slot is free again when all of them have ended."""
  prefill_prompts: tuple[int, ...] = (1, 8)
  """Prompts that each part of the mesh reads at a time, ascending; each count is a program of its own.

  Programs of different counts round differently. With one count, an answer is bitwise the same whatever else waits.
  """
  decode_tokens: int = 16
  """Tokens of each row between two refills."""
  top_logprobs: int = 0
  """Most likeliest tokens that a request may ask for at each place; 0: the programs have no part for them."""


class RequestKind(NamedTuple):
  """Selects the program that reads a prompt, together with the number of prompts."""

  size: int
  """Number of its padded size."""
  has_prefix: bool
  slots: int
  """Slots that its samples take."""


def kind_of(request: SlotRequest, settings: SlotSettings) -> RequestKind:
  """Returns the kind of a request; raises ValueError for a prompt that does not fit."""
  size, limit = request.prompt.size, largest(settings.sizes)
  if not limit.holds(size):
    raise ValueError(
      f"request {request.id} has a prompt of {size.tokens} tokens and {size.patches} patches; the largest size holds "
      f"{limit.tokens} and {limit.patches}"
    )
  number = settings.sizes.index(smallest(settings.sizes, [size]))
  slots = -(-request.samples // settings.samples_per_slot)
  return RequestKind(number, bool(request.prefix), slots)


def check_request(request: SlotRequest, settings: SlotSettings, max_samples: int) -> None:
  """Raises ValueError for settings that the engine cannot sample with."""
  name = f"request {request.id}"
  if not 1 <= request.max_new_tokens <= settings.max_new_tokens:
    raise ValueError(
      f"{name} has max_new_tokens {request.max_new_tokens}; give 1 … {settings.max_new_tokens}"
    )
  if not 1 <= request.samples <= max_samples:
    raise ValueError(f"{name} has {request.samples} samples; give 1 … {max_samples}")
  if request.temperature < 0 or not 0 < request.top_p <= 1 or request.top_k < 0:
    raise ValueError(
      f"{name} has temperature {request.temperature}, top_p {request.top_p} and top_k {request.top_k}; give a "
      "temperature of 0 or more, 0 < top_p <= 1, and a top_k of 0 (all tokens) or more"
    )
  if not 0 <= request.top_logprobs <= settings.top_logprobs:
    raise ValueError(
      f"{name} has top_logprobs {request.top_logprobs}; give 0 … {settings.top_logprobs}"
    )
  most = MAX_END_TOKENS - len(settings.end_tokens)
  if len(request.stop) > most:
    raise ValueError(f"{name} has {len(request.stop)} stop tokens; give at most {most}")
