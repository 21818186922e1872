"""AdamW, Muon or Adafactor with warm-up, as every training command uses them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float
from optax.contrib import muon

from spatial_vlm.optim.moments import stored
from spatial_vlm.parameters.paths import decays, matrix_axes, path_name

SCHEDULES = ("cosine", "constant")

_MUON_RMS = 0.4
"""Root mean square of Muon's update per unit of learning rate: twice what AdamW's comes to (arXiv 2502.16982)."""
_MUON_MOMENTUM = 0.95
_ADAFACTOR_RMS = 1.0
"""Largest root mean square of an array's update per unit of learning rate (arXiv 1804.04235, d in Section 6)."""


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """`method` and `schedule` name one of METHODS and of SCHEDULES; `moments` one of
  `moments.DTYPES`; `total_steps` counts the updates of the run."""

  method: str
  moments: str
  learning_rate: float
  schedule: str
  warmup_steps: int
  total_steps: int
  final_fraction: float
  beta1: float
  beta2: float
  eps: float
  weight_decay: float
  clip_norm: float


def learning_rate_at(cfg: OptimizerSettings, step: ArrayLike) -> Float[Array, ""]:
  """Learning rate of update number `step` (from 0).

  Rises linearly over `warmup_steps` updates, the first of which already moves; then stays
  ("constant"), or falls along a half cosine to `final_fraction` of its peak at `total_steps`, and
  stays there ("cosine").

  Raises ValueError for a schedule of another name, or a warm-up that is as long as the run.
  """
  warmup, total, final = cfg.warmup_steps, cfg.total_steps, cfg.final_fraction
  if cfg.schedule not in SCHEDULES:
    raise ValueError(f"schedule is {cfg.schedule!r}; choose one of {', '.join(SCHEDULES)}")
  if not 0 <= warmup < total:
    raise ValueError(
      f"warmup_steps is {warmup} of total_steps {total}; choose 0 or more, and fewer than total_steps"
    )
  rise = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
  if cfg.schedule == "constant":
    return cfg.learning_rate * rise
  progress = jnp.clip((step - warmup) / (total - warmup), 0.0, 1.0)
  fall = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
  return cfg.learning_rate * rise * fall


@functools.cache  # equal settings give the same object, so that a step compiled for it serves again
def make_optimizer(cfg: OptimizerSettings) -> optax.GradientTransformation:
  """Global-norm clipping to `clip_norm`, then a method of METHODS.

  adamw       beta1, beta2, eps; matrices and embeddings decay (see `decays`)
  muon        learns faster from scratch (Jordan, 2024): momentum, made orthogonal, for the matrices of MATRICES, which
              alone decay; Nesterov's Adam (beta1, beta2, eps) for everything else
  adafactor   keeps means of squared gradients over rows and over columns in place of moments (Shazeer and Stern, arXiv
              1804.04235): no momentum, no scaling by the parameters, clipped updates, β̂₂ = 1 − t^−0.8; decays as adamw

  Updates are computed in float32 whatever the types of the parameters and of the stored `moments`.

  Raises ValueError for another method or type of moments, and as `learning_rate_at` does.
  """
  learning_rate_at(cfg, 0)  # a wrong schedule is refused here, before anything compiles
  if cfg.method not in METHODS:
    raise ValueError(f"method is {cfg.method!r}; choose one of {', '.join(METHODS)}")
  method = optax.chain(optax.clip_by_global_norm(cfg.clip_norm), METHODS[cfg.method](cfg))
  return _in_float32(stored(method, cfg.moments))


def _adamw(cfg: OptimizerSettings) -> optax.GradientTransformation:
  return optax.chain(
    optax.scale_by_adam(b1=cfg.beta1, b2=cfg.beta2, eps=cfg.eps),
    optax.add_decayed_weights(cfg.weight_decay, mask=_decay_mask),
    optax.scale_by_learning_rate(lambda step: learning_rate_at(cfg, step)),
  )


def _muon(cfg: OptimizerSettings) -> optax.GradientTransformation:
  return muon(
    lambda step: learning_rate_at(cfg, step),
    beta=_MUON_MOMENTUM,
    consistent_rms=_MUON_RMS,
    weight_decay=cfg.weight_decay,
    eps=cfg.eps,
    adam_b1=cfg.beta1,
    adam_b2=cfg.beta2,
    muon_weight_dimension_numbers=_as_matrices,
  )


def _adafactor(cfg: OptimizerSettings) -> optax.GradientTransformation:
  return optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(_ADAFACTOR_RMS),
    optax.add_decayed_weights(cfg.weight_decay, mask=_decay_mask),
    optax.scale_by_learning_rate(lambda step: learning_rate_at(cfg, step)),
  )


METHODS = {"adamw": _adamw, "muon": _muon, "adafactor": _adafactor}


def _as_matrices(params):
  return jax.tree_util.tree_map_with_path(lambda path, _: matrix_axes(path_name(path)), params)


def _decay_mask(params):
  return jax.tree_util.tree_map_with_path(lambda path, _: decays(path_name(path)), params)


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  def cast(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  def update(updates, state, params=None):
    return inner.update(cast(updates), state, cast(params))

  return optax.GradientTransformation(lambda params: inner.init(cast(params)), update)
