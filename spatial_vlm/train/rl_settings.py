"""Settings of policy optimization that are compiled into its programs, and their checks."""

import dataclasses

from spatial_vlm.config import Config, UsageError
from spatial_vlm.rollout.sampler import SamplingSettings
from spatial_vlm.tasks import find_training_task
from spatial_vlm.train.run import check_training


@dataclasses.dataclass(frozen=True)
class RlSettings:
  """What rounds and updates are compiled with; the names are those of the config."""

  groups_per_batch: int
  """Groups of one policy batch."""
  group_size: int
  """G, the answers to each prompt."""
  rollout_batch_size: int
  """Prompts of a sampling round."""
  max_rollout_rounds: int
  """Rounds after which the update takes the groups that exist."""
  minibatches: int
  """Updates on each policy batch."""
  micro_batches: int
  objectives: tuple[tuple[str, float], ...]
  """Names of OBJECTIVES and their weights."""
  rewards: tuple[tuple[str, float], ...]
  """Names of REWARDS and their weights."""
  eps_low: float
  """The ratio is clipped to 1 − ε_low … 1 + ε_high."""
  eps_high: float
  max_new_tokens: int
  """L_max of DAPO's Eq. 13."""
  answer_lengths: tuple[int, ...]
  """Lengths below `max_new_tokens` that the answers of a mini-batch may be cut to."""
  overlong_cache_tokens: int
  """L_cache of DAPO's Eq. 13."""
  temperature: float
  chunk_tokens: int
  remat: str
  dtype: str
  eos: int
  pad: int

  def answer_length(self, longest: int) -> int:
    """Returns the length that answers of at most `longest` tokens are cut to.

    Without any answer tokens it is the smallest.
    """
    return min(
      length for length in (*self.answer_lengths, self.max_new_tokens) if length >= longest
    )

  @property
  def sampling(self) -> SamplingSettings:
    """How an engine samples the groups."""
    return SamplingSettings(
      group_size=self.group_size,
      max_new_tokens=self.max_new_tokens,
      temperature=self.temperature,
      eos=self.eos,
      pad=self.pad,
    )


def check(config: Config) -> None:
  """Raises UsageError, with numbers and remedy, for settings that cannot work together."""
  check_training(config)
  find_training_task(config.task)
  if config.overlong_cache_tokens > config.max_new_tokens:
    raise UsageError(
      f"overlong_cache_tokens is {config.overlong_cache_tokens}; choose 0 … max_new_tokens "
      f"({config.max_new_tokens})"
    )
  _check_updates(config)


def _check_updates(config: Config) -> None:
  if config.groups_per_batch % config.minibatches:
    raise UsageError(
      f"groups_per_batch {config.groups_per_batch} cannot be cut into {config.minibatches} minibatches; use a divisor"
    )
  updates = config.steps * config.minibatches
  if not 0 <= config.optimizer.warmup_steps < updates:
    raise UsageError(
      f"optimizer.warmup_steps is {config.optimizer.warmup_steps}; it must be below the number of updates, "
      f"{config.steps} steps × {config.minibatches} minibatches = {updates}"
    )
