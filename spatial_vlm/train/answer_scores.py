"""Log-probabilities of groups of answers, each prompt computed once for the answers in memory.

A mini-batch is cut into parts of groups, and these into parts of answers. The parts of answers read the same keys and
values of their prompts, so that more parts cost no further passes over prompts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm import sharding
from spatial_vlm.config import UsageError
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.qwen3_vl import ReadPrompts
from spatial_vlm.objectives.token_logprobs import token_logprobs
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.train.update import computed_in
from spatial_vlm.types import Batch, Params, Prompts


class Parts(NamedTuple):
  """Into how many parts the groups, and then the answers of each group, are cut."""

  groups: int
  answers: int


class Answers(NamedTuple):
  """Answers to B prompts, g to each, and what an update reads of them."""

  tokens: Int[Array, "B g T"]
  mask: Bool[Array, "B g T"]
  logp_sampler: Float[Array, "B g T"] | None = None
  logp_old: Float[Array, "B g T"] | None = None
  logp_reference: Float[Array, "B g T"] | None = None
  advantage: Float[Array, "B g"] | None = None


def parts_of(groups: int, group_size: int, micro_batches: int) -> Parts:
  """Returns the parts of a mini-batch, `micro_batches` in all, on the mesh in use.

  Groups are cut until a device has one at a time; answers only then, and where devices can share each part evenly.

  >>> parts_of(groups=32, group_size=16, micro_batches=8)
  Parts(groups=8, answers=1)
  >>> parts_of(groups=2, group_size=16, micro_batches=8)
  Parts(groups=2, answers=4)

  Raises UsageError where nothing can be cut into so many parts.
  """

  def fits(parts: Parts) -> bool:
    count, rest = divmod(groups, parts.groups)
    if rest:
      return False
    return group_size // sharding.copies_for_rows(count, group_size) % parts.answers == 0

  def cuts(micro_batches: int) -> list[Parts]:
    numbers = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
    return [*filter(fits, (Parts(n, micro_batches // n) for n in numbers))]

  if not (found := cuts(micro_batches)):
    allowed = [n for n in range(1, groups * group_size + 1) if cuts(n)]
    raise UsageError(
      f"micro_batches is {micro_batches}; a minibatch of {groups} groups of {group_size} answers can be cut into "
      f"{', '.join(map(str, allowed))}"
    )
  devices = sharding.row_devices(groups * group_size)
  return next((parts for parts in found if groups // parts.groups <= devices), found[-1])


def shared_by_devices(prompts: Prompts, answers: Answers) -> tuple[Prompts, Answers]:
  """Repeats prompts so that each device computes those of its own answers; g falls accordingly."""
  count, group_size = answers.mask.shape[:2]
  copies = sharding.copies_for_rows(count, group_size)
  prompts = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), prompts)
  answers = jax.tree.map(lambda x: x.reshape(count * copies, -1, *x.shape[2:]), answers)
  return sharding.constrain_rows((prompts, answers))


def cut_answers(answers: Answers, parts: int) -> Answers:
  """Reshapes every array [B, g, …] to [parts, B, g / parts, …]."""
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(len(x), parts, -1, *x.shape[2:]), 1, 0), answers
  )


def join_answers(
  pieces: Float[Array, "parts B g T"], group_size: int
) -> Float[Array, "groups G T"]:
  """Inverts `cut_answers` and `shared_by_devices`."""
  return jnp.moveaxis(pieces, 0, 1).reshape(-1, group_size, pieces.shape[-1])


def read_prompts(
  params: Params, prompts: Prompts, model: ModelConfig, settings: RlSettings
) -> ReadPrompts:
  """Returns what the answers to the prompts read."""
  return qwen3_vl.read_prompts(computed_in(settings.dtype, params), model, prompts, settings.remat)


def answer_logprobs(
  params: Params,
  prompts: Prompts,
  read: ReadPrompts,
  answers: Answers,
  forbidden_tokens: Bool[Array | np.ndarray, "V"],
  model: ModelConfig,
  settings: RlSettings,
) -> tuple[Float[Array, "R T"], Float[Array, "R T"]]:
  """Returns log π_θ and the entropy of every answer token (R = B·g rows), over the ids that may be sampled."""
  params = computed_in(settings.dtype, params)
  rows = sharding.constrain_rows(answer_rows(prompts, answers))
  hidden = qwen3_vl.forward_answers(params, model, prompts, read, rows, settings.remat)
  logp, entropy = token_logprobs(
    hidden,
    qwen3_vl.unembedding(params, model).T,
    jnp.pad(rows.tokens, ((0, 0), (1, 0))),  # the last token of the prompt predicts the first
    forbidden_tokens,
    temperature=settings.temperature,
    chunk=settings.chunk_tokens,
  )
  return logp[:, 1:], entropy[:, 1:]


def answer_rows(prompts: Prompts, answers: Answers) -> Batch:
  """Returns the answers as the R = B·g rows of a `Batch` that continue their prompts; all their tokens are targets."""
  _, group_size, length = answers.tokens.shape
  first = jnp.repeat(qwen3_vl.position_after(prompts), group_size)
  positions = (first[:, None] + jnp.arange(length)[None])[..., None]
  mask = answers.mask.reshape(-1, length)
  return Batch(
    tokens=answers.tokens.reshape(-1, length),
    segments=mask.astype(prompts.segments.dtype),
    targets=mask,
    positions=jnp.broadcast_to(positions, (*mask.shape, 3)),
    vision=None,
  )
