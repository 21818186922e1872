"""A policy: a model with its weights and what it takes to ask it something and to read what it wrote."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from spatial_vlm.data.messages import messages
from spatial_vlm.data.records import UnusableRecord
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.processor.chat import Encoded, Processor, collate_prompts, encode
from spatial_vlm.processor.tokenizer import SpecialIds
from spatial_vlm.rollout import sampler
from spatial_vlm.types import Params, Prompts


class Policy(NamedTuple):
  """A model with its weights and all that is needed to ask it something."""

  processor: Processor
  model: ModelConfig
  params: Params
  special: SpecialIds

  @property
  def forbidden_tokens(self) -> np.ndarray:
    """Bool[V]: ids that generation never produces (images, padding, control tokens but the end of a turn)."""
    forbidden_tokens = np.zeros(self.model.text.vocab_size, bool)
    forbidden_tokens[list(self.special.never_sampled)] = True
    return forbidden_tokens

  def on_device(self) -> "Policy":
    """The same, its weights uploaded once rather than for every batch and question."""
    return self._replace(params=jax.device_put(self.params))


class PromptShape(NamedTuple):
  """Every prompt is padded to `tokens` tokens and `patches` patches, so that one program serves all."""

  tokens: int
  patches: int

  def check(self, row: Encoded) -> None:
    """Raises UnusableRecord for a prompt that is longer."""
    if len(row.tokens) > self.tokens or row.patches > self.patches:
      raise UnusableRecord(
        f"the prompt has {len(row.tokens)} tokens and {row.patches} patches; prompt_tokens is {self.tokens} and "
        f"patches is {self.patches}: raise them to keep it"
      )


class Generation(NamedTuple):
  """An answer as generated; `tokens` counts its end-of-turn token, `truncated` tells that there was no room for one."""

  text: str
  tokens: int
  truncated: bool


def encode_question(processor: Processor, image: Image.Image | np.ndarray, text: str) -> Encoded:
  return encode(processor, messages(image, text), generation_prompt=True)


def collate(
  processor: Processor,
  rows: Sequence[Encoded],
  ids: Sequence[int],
  labels: Sequence[int],
  shape: PromptShape,
) -> Prompts:
  """Raises UnusableRecord when a prompt does not fit into `shape`."""
  for row in rows:
    shape.check(row)
  return collate_prompts(rows, processor, ids, labels, shape.tokens, shape.patches)


def written(policy: Policy, completions: sampler.Completions) -> list[Generation]:
  """Generated rows as text."""
  tokens, mask = jax.device_get((completions.tokens, completions.mask))
  texts = []
  for row, real in zip(tokens, mask, strict=True):
    ids = row[real].tolist()
    ended = bool(ids) and ids[-1] == policy.special.eos
    texts.append(
      Generation(policy.processor.decode(ids[:-1] if ended else ids), len(ids), not ended)
    )
  return texts
