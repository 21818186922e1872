import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from spatial_vlm.optim.optimizers import OptimizerSettings, make_optimizer
from spatial_vlm.optim.schedules import learning_rate_at
from spatial_vlm.parameters.paths import parameter_row, path_name


def config(**changes) -> OptimizerSettings:
  return OptimizerSettings(
    **dict(
      method="adamw",
      moments="float32",
      learning_rate=0.01,
      schedule="cosine",
      warmup_steps=4,
      total_steps=20,
      final_fraction=0.1,
      beta1=0.9,
      beta2=0.95,
      eps=1e-8,
      weight_decay=0.1,
      clip_norm=1.0,
    )
    | changes
  )


def make_params(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  shapes = {
    "text": {
      "embed": {"embedding": (7, 4)},
      "layers": {
        "mlp": {"up_proj": {"kernel": (3, 4, 4), "bias": (3, 4)}},  # three layers in one array
        "input_norm": {"scale": (3, 4)},
        "norm1": {"scale": (3, 4), "bias": (3, 4)},
      },
    }
  }
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), dtype), shapes, is_leaf=is_shape)


KERNEL = "text/layers/mlp/up_proj/kernel"
DECAYING = {"text/embed/embedding", KERNEL}


def flat(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def train(cfg, params, gradients):
  optimizer = make_optimizer(cfg)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params, state


def make_gradients(params, steps=20, scale=1.0):
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.normal(size=x.shape) * scale, x.dtype)  # noqa: E731
  return [jax.tree.map(draw, params) for _ in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("scale", [1.0, 0.01])  # clipped at every step, and never
def test_equals_torch_adamw_with_clipping(schedule, scale):
  cfg, params = config(schedule=schedule), make_params()
  gradients = make_gradients(params, scale=scale)
  found, _ = train(cfg, params, gradients)
  tensors = {name: torch.tensor(np.asarray(x)).requires_grad_() for name, x in flat(params).items()}
  groups = [
    dict(params=[x for n, x in tensors.items() if n in DECAYING], weight_decay=cfg.weight_decay),
    dict(params=[x for n, x in tensors.items() if n not in DECAYING], weight_decay=0.0),
  ]
  reference = torch.optim.AdamW(groups, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps)
  for step, gradient in enumerate(gradients):
    for name, value in flat(gradient).items():
      tensors[name].grad = torch.tensor(np.asarray(value))
    torch.nn.utils.clip_grad_norm_(tensors.values(), cfg.clip_norm)
    for group in reference.param_groups:
      group["lr"] = float(learning_rate_at(cfg, step))
    reference.step()
  for name, value in flat(found).items():
    np.testing.assert_allclose(value, tensors[name].detach(), rtol=2e-5, atol=2e-6, err_msg=name)


def test_only_matrices_decay():
  params = make_params()
  zeros = [jax.tree.map(jnp.zeros_like, params)] * 3
  after = flat(train(config(), params, zeros)[0])
  changed = {name for name, x in flat(params).items() if not np.array_equal(x, after[name])}
  assert changed == DECAYING


def test_moments_are_float32_and_the_parameters_keep_their_dtype():
  params = make_params(jnp.bfloat16)
  after, state = train(config(), params, make_gradients(params, 3))
  assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.bfloat16.dtype}
  floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert len(floats) == 2 * len(jax.tree.leaves(params))
  assert {x.dtype for x in floats} == {np.dtype("float32")}


def test_learning_rate():
  cosine = [float(learning_rate_at(config(), step)) for step in range(30)]
  np.testing.assert_allclose(cosine[:5], [0.0025, 0.005, 0.0075, 0.01, 0.01], rtol=1e-6)
  np.testing.assert_allclose(cosine[12], 0.01 * (0.1 + 0.9 / 2), rtol=1e-5)  # halfway down
  np.testing.assert_allclose(cosine[20:], 0.001, rtol=1e-5)
  assert all(a > b for a, b in zip(cosine[4:20], cosine[5:21], strict=True))
  constant = [float(learning_rate_at(config(schedule="constant"), step)) for step in range(30)]
  np.testing.assert_allclose(constant, np.minimum(0.01, 0.0025 * np.arange(1, 31)), rtol=1e-6)
  np.testing.assert_allclose(learning_rate_at(config(warmup_steps=0), 0), 0.01, rtol=1e-6)


def test_an_unknown_schedule_lists_the_known_ones():
  with pytest.raises(ValueError, match="'linear'; choose one of cosine, constant"):
    learning_rate_at(config(schedule="linear"), 0)
  with pytest.raises(ValueError, match="warmup_steps is 20 and total_steps 20"):
    make_optimizer(config(warmup_steps=20))
  with pytest.raises(ValueError, match="'sgd'; choose one of adamw, muon, adafactor"):
    make_optimizer(config(method="sgd"))


def orthogonal(matrix):
  """Nearest matrix with orthonormal rows or columns."""
  u, _, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
  return u @ v


def test_muon_moves_every_layers_matrix_along_its_orthogonal_factor():
  rng = np.random.default_rng(2)
  layers = {
    "attention": {
      "q_proj": {"kernel": (3, 6, 2, 4)},  # three layers, 6 → 2 heads of 4
      "o_proj": {"kernel": (3, 2, 4, 6)},
    },
    "mlp": {"up_proj": {"kernel": (3, 6, 10)}},
  }
  shapes = {"text": {"layers": layers}}
  draw = lambda s: jnp.asarray(rng.normal(size=s), jnp.float32)  # noqa: E731
  params = jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))
  gradient = make_gradients(params, 1)
  cfg = config(method="muon", schedule="constant", warmup_steps=0, weight_decay=0.0)
  after, _ = train(cfg, params, gradient)
  as_matrices = {"q_proj": (3, 6, 8), "o_proj": (3, 8, 6), "up_proj": (3, 6, 10)}
  steps = jax.tree.map(lambda a, b: np.asarray(a - b), flat(after), flat(params))
  for name, grad in flat(gradient[0]).items():
    shape = as_matrices[name.split("/")[-2]]
    for moved, g in zip(steps[name].reshape(shape), np.reshape(grad, shape), strict=True):
      direction = -orthogonal(g)
      cosine = (moved * direction).sum() / np.linalg.norm(moved) / np.linalg.norm(direction)
      assert cosine > 0.97, name  # the accuracy of five Newton-Schulz iterations
      rms = np.sqrt(np.mean(moved**2))
      assert 0.5 < rms / (0.4 * cfg.learning_rate) < 1.5, name


def test_muon_leaves_embeddings_norms_and_biases_to_adam_with_nesterov_momentum():
  assert parameter_row("text/embed/embedding").matrix is None
  assert parameter_row("text/layers/q_norm/scale").matrix is None
  assert parameter_row("vision/blocks/mlp/fc1/bias").matrix is None
  cfg, params = config(method="muon", weight_decay=0.0), make_params()
  gradients = make_gradients(params, 3)
  found = flat(train(cfg, params, gradients)[0])
  reference = optax.chain(
    optax.clip_by_global_norm(cfg.clip_norm),
    optax.nadam(lambda step: learning_rate_at(cfg, step), cfg.beta1, cfg.beta2, cfg.eps),
  )
  state, expected = reference.init(params), params
  for gradient in gradients:
    updates, state = reference.update(gradient, state)
    expected = optax.apply_updates(expected, updates)
  differing = {n for n, x in flat(expected).items() if not np.allclose(x, found[n], atol=1e-6)}
  assert differing == {KERNEL}


def test_only_matrices_decay_under_muon():
  params = make_params()
  zeros = [jax.tree.map(jnp.zeros_like, params)] * 3
  after = flat(train(config(method="muon"), params, zeros)[0])
  changed = {name for name, x in flat(params).items() if not np.array_equal(x, after[name])}
  assert changed == {KERNEL}


def test_adafactor_equals_the_algorithm_of_the_paper():
  """Algorithm 4 of arXiv 1804.04235 for each layer's matrix, without relative step sizes; Algorithm 5 for vectors."""
  rng = np.random.default_rng(0)
  shapes = {"kernel": (3, 128, 130), "bias": (3, 130)}  # three layers in one array
  up_proj = {name: jnp.asarray(rng.normal(size=s)) for name, s in shapes.items()}
  params = {"text": {"layers": {"mlp": {"up_proj": up_proj}}}}
  gradients = make_gradients(params, 5)
  cfg = config(method="adafactor", clip_norm=1e9)
  found, _ = train(cfg, params, gradients)
  for name, expected in up_proj.items():
    path = f"text/layers/mlp/up_proj/{name}"
    expected, rows, columns = np.asarray(expected, np.float64), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
      g = np.asarray(flat(gradient)[path], np.float64)
      beta2 = 1 - t**-0.8
      square = g**2 + 1e-30
      if name == "kernel":
        rows = beta2 * rows + (1 - beta2) * square.mean(axis=2, keepdims=True)
        columns = beta2 * columns + (1 - beta2) * square.mean(axis=1, keepdims=True)
        v = rows * columns / rows.mean(axis=1, keepdims=True)
      else:
        v = rows = beta2 * rows + (1 - beta2) * square
      update = g / np.sqrt(v)
      update /= max(1.0, np.sqrt(np.mean(update**2)))
      decay = cfg.weight_decay * expected * (name == "kernel")
      expected = expected - float(learning_rate_at(cfg, t - 1)) * (update + decay)
    np.testing.assert_allclose(flat(found)[path], expected, rtol=0, atol=3e-6, err_msg=name)


def test_equal_settings_give_the_same_optimizer():
  """Jit recompiles a step for another object."""
  assert make_optimizer(config()) is make_optimizer(config())
  assert make_optimizer(config()) is not make_optimizer(config(eps=1e-6))
