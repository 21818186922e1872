"""Learning-rate schedules with linear warm-up."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
  """Settings of the learning rate; `schedule` is a name in SCHEDULES."""

  schedule: str
  learning_rate: float
  """Peak, reached after `warmup_steps` updates."""
  warmup_steps: int
  total_steps: int
  """Updates of the run."""
  final_fraction: float
  """Fraction of the peak at which "cosine" ends."""


def learning_rate_at(cfg: ScheduleSettings, step: ArrayLike) -> Float[Array, ""]:
  """Returns the learning rate of update number `step` (from 0).

  It rises linearly over `warmup_steps` updates, starting above zero, and then follows the schedule.

  Raises:
    ValueError: the schedule is not in SCHEDULES, or the warm-up is as long as the run.
  """
  if cfg.schedule not in SCHEDULES:
    raise ValueError(f"schedule is {cfg.schedule!r}; choose one of {', '.join(SCHEDULES)}")
  if not 0 <= cfg.warmup_steps < cfg.total_steps:
    raise ValueError(
      f"warmup_steps is {cfg.warmup_steps} and total_steps {cfg.total_steps}; choose 0 or more warm-up steps, fewer "
      "than total_steps"
    )
  return SCHEDULES[cfg.schedule](cfg, step)


def _cosine(cfg: ScheduleSettings, step: ArrayLike) -> Float[Array, ""]:
  """Falls along a half cosine to `final_fraction` of the peak at `total_steps`, and stays there."""
  final, after_warmup = cfg.final_fraction, cfg.total_steps - cfg.warmup_steps
  progress = jnp.clip((step - cfg.warmup_steps) / after_warmup, 0.0, 1.0)
  fall = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
  return _constant(cfg, step) * fall


def _constant(cfg: ScheduleSettings, step: ArrayLike) -> Float[Array, ""]:
  """Stays at the peak after warm-up."""
  return cfg.learning_rate * jnp.minimum(1.0, (step + 1) / max(cfg.warmup_steps, 1))


SCHEDULES = {"cosine": _cosine, "constant": _constant}
