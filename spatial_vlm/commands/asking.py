"""Putting questions to a policy: prompts of one fixed shape in, written answers out."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from spatial_vlm import rollout
from spatial_vlm.commands.setup import Policy
from spatial_vlm.config import UsageError
from spatial_vlm.data.prompts import messages
from spatial_vlm.processor.chat import Encoded, Processor, collate_prompts, encode
from spatial_vlm.types import Params, Prompts


class PromptShape(NamedTuple):
  """Every prompt is padded to `tokens` tokens and `patches` patches, so that one program serves all."""

  tokens: int
  patches: int

  def holds(self, row: Encoded) -> bool:
    return len(row.tokens) <= self.tokens and sum(len(patches) for patches, _ in row.images) <= self.patches


class Written(NamedTuple):
  """An answer as generated; `tokens` counts its end-of-turn token, `truncated` tells that there was no room for one."""

  text: str
  tokens: int
  truncated: bool


def encode_question(processor: Processor, image: Image.Image | np.ndarray, text: str) -> Encoded:
  return encode(processor, messages(image, text), generation_prompt=True)


def collate(
  processor: Processor, rows: Sequence[Encoded], ids: Sequence[int], labels: Sequence[int], shape: PromptShape
) -> Prompts:
  """Raises UsageError when a prompt does not fit into `shape`."""
  for id, row in zip(ids, rows, strict=True):
    if not shape.holds(row):
      raise UsageError(
        f"prompt {id} has {len(row.tokens)} tokens and {sum(len(p) for p, _ in row.images)} patches; prompt_tokens "
        f"is {shape.tokens} and patches is {shape.patches}: raise them, or leave the record out"
      )
  return collate_prompts(rows, processor, ids, labels, shape.tokens, shape.patches)


def greedy(policy: Policy, params: Params, prompts: Prompts, max_tokens: int) -> rollout.Completions:
  """The likeliest answer to every prompt, token by token."""
  return rollout.generate(
    params,
    prompts,
    jax.random.key(0),  # a greedy choice draws nothing
    policy.banned,
    model=policy.model,
    samples=1,
    max_tokens=max_tokens,
    temperature=0.0,
    eos=policy.special.eos,
    pad=policy.special.pad,
  )


def written(policy: Policy, completions: rollout.Completions) -> list[Written]:
  """Generated rows as text."""
  tokens, mask = jax.device_get((completions.tokens, completions.mask))
  answers = []
  for row, real in zip(tokens, mask, strict=True):
    ids = row[real].tolist()
    ended = bool(ids) and ids[-1] == policy.special.eos
    answers.append(Written(policy.processor.decode(ids[:-1] if ended else ids), len(ids), not ended))
  return answers
