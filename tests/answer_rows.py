"""Answers to prompts as rows of a batch: alone, and each after a copy of its prompt."""

import numpy as np

from spatial_vlm.types import Batch


def answers_to(prompts, tokens, segments):
  """Rows that continue the prompts, equally many each."""
  start = np.repeat(prompts.positions.max(axis=(1, 2)) + 1, len(tokens) // len(prompts.tokens))
  positions = (start[:, None] + np.arange(tokens.shape[1]))[..., None].repeat(3, axis=-1)
  return Batch(tokens, segments, segments > 0, positions.astype(np.int32), vision=None)


def whole_rows(prompts, answers):
  """The answers after copies of their prompts."""
  copies = len(answers.tokens) // len(prompts.tokens)

  def whole(x, new):
    return np.concatenate([np.repeat(x, copies, axis=0), new], axis=1)

  return prompts.replace(
    tokens=whole(prompts.tokens, answers.tokens),
    segments=whole(prompts.segments, answers.segments),
    positions=whole(prompts.positions, answers.positions),
  )
