"""A policy: a model with its weights, its processor, and functions that encode questions and decode answers."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import DTypeLike
from PIL import Image

from spatial_vlm.data.batch_plan import largest, smallest
from spatial_vlm.data.messages import messages
from spatial_vlm.data.records import UnusableRecord
from spatial_vlm.hosts import all_gather_json
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.process_rows import make_global_batch
from spatial_vlm.processor.chat import (
  Encoded,
  Processor,
  Size,
  cast_patches,
  collate_prompts,
  encode,
  split_prefix,
)
from spatial_vlm.processor.tokenizer import SpecialIds
from spatial_vlm.rollout import sampler
from spatial_vlm.rollout.prefix_cache import Text
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.types import Params, Prompts


class Policy(NamedTuple):
  """A model with its weights and everything that is needed to ask it."""

  processor: Processor
  model: ModelConfig
  params: Params
  special: SpecialIds

  @property
  def dtype(self) -> np.dtype:
    """Type that the weights are computed in."""
    return self.params["vision"]["patch_embed"]["proj"]["kernel"].dtype

  @property
  def forbidden_tokens(self) -> np.ndarray:
    """Bool[V]: ids that are never generated (images, padding, control tokens except the end of a turn)."""
    forbidden = np.zeros(self.model.text.vocab_size, bool)
    forbidden[list(self.special.never_sampled)] = True
    return forbidden

  def sampling(
    self, max_new_tokens: int, temperature: float = 0.0, group_size: int = 1
  ) -> sampler.SamplingSettings:
    """Returns settings with this policy's special tokens; the default is one greedy completion of each prompt."""
    return sampler.SamplingSettings(
      group_size=group_size,
      max_new_tokens=max_new_tokens,
      temperature=temperature,
      eos=self.special.eos,
      pad=self.special.pad,
    )


class PromptFormat(NamedTuple):
  """How prompts are laid out as arrays."""

  sizes: tuple[Size, ...]
  """Padded sizes; each is a program of its own. A batch takes the smallest that holds all its prompts."""
  dtype: DTypeLike
  """Type of the patches: that of the computation."""
  prefix_tokens: int = 0
  """Longest prefix (see `Encoded.prefix`) that is laid out apart, for a `PrefixCache`; `sizes` hold the rest."""

  def split(self, row: Encoded) -> tuple[Text, Encoded]:
    """Returns the prefix that is laid out apart, () if none is, and the rest of the prompt."""
    if not 0 < row.prefix <= self.prefix_tokens:
      return (), row
    prefix, rest = split_prefix(row)
    return tuple(prefix.tolist()), rest

  @property
  def limit(self) -> Size:
    """The size that holds all others; ValueError if there is none."""
    return largest(self.sizes)

  def check(self, row: Encoded) -> None:
    """Raises UnusableRecord for a prompt that does not fit."""
    limit, (prefix, row) = self.limit, self.split(row)
    if not limit.holds(row.size):
      after = f" after its prefix of {len(prefix)}" if prefix else ""
      raise UnusableRecord(
        f"the prompt has {len(row.tokens)} tokens{after} and {row.patches} patches; the largest of prompt_shapes holds "
        f"{limit.tokens} and {limit.patches}: raise it to keep the prompt"
      )

  def size(self, rows: Sequence[Encoded]) -> Size:
    """Returns the size that every process pads its rows of a batch to; a collective."""
    tokens, patches = max(len(row.tokens) for row in rows), max(row.patches for row in rows)
    return smallest(self.sizes, [Size(*size) for size in all_gather_json([tokens, patches])])


def prompt_format(
  shapes: Sequence[tuple[int, int]], dtype: DTypeLike, prefix_tokens: int = 0
) -> PromptFormat:
  """Returns the format of a config's padded (tokens, patches); raises ValueError if none holds all others."""
  sizes = tuple(Size(*shape) for shape in shapes)
  largest(sizes)  # raises at the start of a run rather than at its first prompt
  return PromptFormat(sizes, dtype, prefix_tokens)


def longest_prefix(processor: Processor, systems: Iterable[str]) -> int:
  """Returns the tokens of the longest prefix of questions with one of these system turns; 0 for none."""
  blank = np.zeros((1, 1, 3), np.uint8)
  return max((encode_question(processor, blank, "", s).prefix for s in systems), default=0)


class Generation(NamedTuple):
  """A generated answer."""

  text: str
  """Without the end-of-turn token."""
  tokens: int
  """Number of generated tokens, the end-of-turn token included."""
  truncated: bool
  """Whether generation stopped at its limit, before an end-of-turn token."""


def encode_question(
  processor: Processor,
  image: Image.Image | np.ndarray | list[np.ndarray] | None,
  text: str,
  system: str = "",
) -> Encoded:
  """Encodes one question, about one image, several or none, up to where the answer begins.

  A system turn comes first if it is given.
  """
  return encode(processor, messages(image, text, system=system), generation_prompt=True)


def collate(
  processor: Processor,
  rows: Sequence[Encoded],
  ids: Sequence[int],
  labels: Sequence[int],
  format: PromptFormat,
) -> Prompts:
  """Pads encoded questions into one batch; raises UnusableRecord for a prompt that does not fit."""
  for row in rows:
    format.check(row)
  size = format.size(rows)
  prompts = collate_prompts(rows, processor, ids, labels, size.tokens, size.patches)
  return cast_patches(prompts, format.dtype)


class AskedQuestion(NamedTuple):
  """A question about images, in words and encoded."""

  text: str
  image: Any
  """Image, or a list of several."""
  encoded: Encoded
  """The system turn, the images and the words."""
  system: str = ""


def make_requests(
  policy: Policy,
  mesh: Mesh,
  asked: Sequence[AskedQuestion],
  ids: Sequence[int],
  labels: Sequence[int],
  format: PromptFormat,
) -> Requests:
  """Returns the whole batch over the engine's mesh, from the questions of this process."""
  prefixes, rest = zip(*(format.split(row.encoded) for row in asked), strict=True)
  prompts = collate(policy.processor, rest, ids, labels, format)
  return Requests(
    prompts=make_global_batch(mesh, prompts),
    texts=[row.text for row in asked],
    images=[row.image for row in asked],
    systems=[row.system for row in asked],
    prefixes=prefixes,
    encoded=rest,
  )


def decode_completions(policy: Policy, completions: sampler.Completions) -> list[Generation]:
  """Decodes generated rows."""
  tokens, mask = jax.device_get((completions.tokens, completions.mask))
  texts = []
  for row, real in zip(tokens, mask, strict=True):
    ids = row[real].tolist()
    ended = bool(ids) and ids[-1] == policy.special.eos
    texts.append(
      Generation(policy.processor.decode(ids[:-1] if ended else ids), len(ids), not ended)
    )
  return texts
