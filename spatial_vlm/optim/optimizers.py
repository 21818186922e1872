"""Optimizers of all training commands: AdamW, Muon or Adafactor, with gradient clipping and a schedule."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from spatial_vlm.config import Config, settings_from
from spatial_vlm.optim.moments import store_moments
from spatial_vlm.optim.schedules import ScheduleSettings, learning_rate_at
from spatial_vlm.parameters.paths import parameter_row, path_name

_MUON_RMS = 0.4
"""Root mean square of Muon's update per unit of learning rate: twice that of AdamW (arXiv 2502.16982)."""
_MUON_MOMENTUM = 0.95
_ADAFACTOR_RMS = 1.0
"""Largest root mean square of an array's update per unit of learning rate (arXiv 1804.04235, d in Section 6)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings(ScheduleSettings):
  """Settings of an optimizer and of its schedule."""

  method: str
  """A name in OPTIMIZERS."""
  moments: str
  """Storage type of the moments, a name in `moments.DTYPES`."""
  beta1: float
  beta2: float
  eps: float
  weight_decay: float
  clip_norm: float


def optimizer_from_config(config: Config, total_steps: int) -> optax.GradientTransformation:
  """Returns the optimizer of the config group `optimizer`.

  Its schedule ends after `decay_steps` updates, or where that is 0 after `total_steps`, the updates of the run.
  """
  decay_steps = config.decay_steps or total_steps
  return make_optimizer(settings_from(OptimizerSettings, config, total_steps=decay_steps))


@functools.cache  # equal settings give the same object, so that jit does not compile a step again
def make_optimizer(cfg: OptimizerSettings) -> optax.GradientTransformation:
  """Returns clipping of the global norm to `clip_norm`, followed by an optimizer of OPTIMIZERS.

  adamw       beta1, beta2, eps; kernels and embeddings decay (column `decays` of `parameters.paths.PARAMETERS`)
  muon        learns faster from scratch (Jordan, 2024): orthogonalized momentum for kernels, which alone decay;
              NAdam (beta1, beta2, eps) for all other parameters
  adafactor   stores means of squared gradients over rows and over columns instead of moments (Shazeer and Stern, arXiv
              1804.04235): no momentum, no scaling by the parameters, clipped updates, β̂₂ = 1 − t^−0.8; decays as adamw

  Updates are computed in float32, whatever the types of the parameters and of the stored `moments`.

  Raises:
    ValueError: the optimizer or the type of the moments is unknown; or as `learning_rate_at`.
  """
  learning_rate_at(cfg, 0)  # refuses a wrong schedule before anything compiles
  if cfg.method not in OPTIMIZERS:
    raise ValueError(f"method is {cfg.method!r}; choose one of {', '.join(OPTIMIZERS)}")
  optimizer = optax.chain(optax.clip_by_global_norm(cfg.clip_norm), OPTIMIZERS[cfg.method](cfg))
  return _in_float32(store_moments(optimizer, cfg.moments))


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
    muon_weight_dimension_numbers=_muon_dimension_numbers,
  )


def _adafactor(cfg: OptimizerSettings) -> optax.GradientTransformation:
  return optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(_ADAFACTOR_RMS),
    optax.add_decayed_weights(cfg.weight_decay, mask=_decay_mask),
    optax.scale_by_learning_rate(lambda step: learning_rate_at(cfg, step)),
  )


OPTIMIZERS = {"adamw": _adamw, "muon": _muon, "adafactor": _adafactor}


def _muon_dimension_numbers(params):
  def of_parameter(path, _):
    matrix = parameter_row(path_name(path)).matrix
    return matrix and MuonDimensionNumbers(matrix.inputs, matrix.outputs)

  return jax.tree_util.tree_map_with_path(of_parameter, params)


def _decay_mask(params):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: parameter_row(path_name(path)).decays, params
  )


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  def cast(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  def update(updates, state, params=None):
    return inner.update(cast(updates), state, cast(params))

  return optax.GradientTransformation(lambda params: inner.init(cast(params)), update)
