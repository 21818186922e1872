"""AdamW with warm-up, as every training command uses it.

`cfg` is a ConfigDict with learning_rate, schedule, warmup_steps, total_steps, final_fraction, beta1,
beta2, eps, weight_decay and clip_norm.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

SCHEDULES = ("cosine", "constant")


def learning_rate_at(cfg: Any, step: ArrayLike) -> Float[Array, ""]:
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


def make_optimizer(cfg: Any) -> optax.GradientTransformation:
  """Global-norm clipping to `clip_norm`, then AdamW (beta1, beta2, eps, weight_decay).

  Moments and updates are float32 whatever the dtype of the parameters. Only matrices decay (see
  `decays`). Raises ValueError as `learning_rate_at` does.
  """
  learning_rate_at(cfg, 0)  # a wrong schedule is refused here, before anything compiles
  return _in_float32(
    optax.chain(
      optax.clip_by_global_norm(cfg.clip_norm),
      optax.scale_by_adam(b1=cfg.beta1, b2=cfg.beta2, eps=cfg.eps),
      optax.add_decayed_weights(cfg.weight_decay, mask=_decay_mask),
      optax.scale_by_learning_rate(lambda step: learning_rate_at(cfg, step)),
    )
  )


def decays(path: str) -> bool:
  """Whether weight decay applies to the parameter at `path`: to matrices, not to biases or norms.

  The name decides, not the number of axes: a stack of bias vectors has two, like a matrix.

  >>> [decays(f"text/layers/{name}") for name in ("up_proj/kernel", "q_norm/scale", "qkv/bias")]
  [True, False, False]
  """
  *_, leaf = parts = path.lower().split("/")
  return leaf not in ("bias", "scale") and not any("norm" in part for part in parts)


def _decay_mask(params):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: decays(jax.tree_util.keystr(path, simple=True, separator="/")), params
  )


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  def cast(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  def update(updates, state, params=None):
    return inner.update(cast(updates), state, cast(params))

  return optax.GradientTransformation(lambda params: inner.init(cast(params)), update)
