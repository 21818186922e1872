"""Moments in fewer bits: rounding keeps the mean, training follows float32, resumed runs equal uninterrupted ones."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from optimizer_settings import adamw_settings

from spatial_vlm import sharding
from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.optim import moments
from spatial_vlm.optim.moments import FIRST, SECOND
from spatial_vlm.optim.optimizers import make_optimizer

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


settings = functools.partial(
  adamw_settings,
  learning_rate=0.01,
  total_steps=1000,
  beta2=0.999,
  weight_decay=0.0,
  clip_norm=1e9,
)


def module(kernel):
  """Parameters of a module with this kernel, at a path of the table of parameters."""
  return {"attention": {"q_proj": {"kernel": kernel}}}


def kernel_of(params):
  return params["attention"]["q_proj"]["kernel"]


@pytest.fixture
def rounding_to_nearest(monkeypatch):
  """Rounding to nearest, which stochastic rounding replaces."""
  make_optimizer.cache_clear()
  monkeypatch.setattr(moments, "stochastic_round", lambda x, dtype, key: x.astype(dtype))
  yield
  make_optimizer.cache_clear()


def neighbours(x, dtype):
  """The two adjacent numbers of the type around each x, from the list of all of them."""
  unsigned = np.arange(2 ** (8 * np.dtype(dtype).itemsize), dtype=f"u{np.dtype(dtype).itemsize}")
  numbers = unsigned.view(dtype)
  with np.errstate(invalid="ignore"):
    numbers = np.unique(numbers[np.isfinite(numbers)].astype(np.float64))
  above = np.searchsorted(numbers, x)
  return numbers[np.maximum(above - (numbers[above] != x), 0)], numbers[above]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, FIRST, SECOND])
def test_rounding_gives_an_adjacent_value_and_keeps_the_mean(dtype):
  """Over all magnitudes of the type, those below its smallest normal number included."""
  rng = np.random.default_rng(0)
  low, high = (-12, 7) if dtype == FIRST else (-18, 14)
  x = np.float32(rng.choice([-1, 1], 400) * 2 ** rng.uniform(low, high, 400))
  x[:2] = 0.0, 1.0
  draws = 4000
  keys = jax.random.split(jax.random.key(0), draws)
  rounded = jax.jit(jax.vmap(lambda key: moments.stochastic_round(x, dtype, key)))(keys)
  assert rounded.dtype == dtype
  rounded = np.asarray(rounded).astype(np.float64)
  below, above = neighbours(np.float64(x), dtype)
  assert ((rounded == below) | (rounded == above)).all()
  error = (rounded.mean(axis=0) - x) / np.where(above > below, above - below, 1.0)
  assert np.abs(error).max() < 4.5 * 0.5 / np.sqrt(draws)
  assert np.abs(error.mean()) < 4.5 * 0.5 / np.sqrt(draws * x.size)
  assert (rounded[:, :2] == x[:2]).all()


@pytest.mark.parametrize("dtype", [FIRST, SECOND])
def test_rows_in_float8(dtype):
  """Rows of any scale come back to the type's precision, zero as zero.

  A value that came back is stored again without a change, even if another value of its row changes.
  """
  rng = np.random.default_rng(1)
  scales = np.float32([1.0, 3e-30, 1e30, 0.7, 0.0])[:, None]
  x = np.float32(rng.uniform(0.25, 1, (5, 64)) * scales)
  x[:, 5] = 0.0
  store = jax.jit(moments.to_float8, static_argnames="dtype")
  first = store(x, dtype, jax.random.key(0))
  assert first.codes.dtype == dtype and first.scale.shape == (5,)
  found = np.array(moments.from_float8(first))
  np.testing.assert_allclose(found, x, rtol=2.0 ** -jnp.finfo(dtype).nmant)
  found[:, 0] *= 1.9
  again = moments.from_float8(store(found, dtype, jax.random.key(1)))
  np.testing.assert_array_equal(again[:, 1:], found[:, 1:])


def test_a_second_moment_never_vanishes():
  """A value too small for its row's scale is rounded up, so that the update becomes smaller and not infinite."""
  v = jnp.float32([[1.0, 1e-12, 0.0], [1e-20, 1e-30, 1e-38]])
  found = np.asarray(moments.from_float8(moments.to_float8(v, SECOND, jax.random.key(0))))
  assert ((found > 0) == (v > 0)).all()
  assert (found >= 0.8 * v).all()
  assert found[0, 1] == 2.0**-28


@pytest.mark.parametrize(("dtype", "wrong"), [("float8", np.nan), ("bfloat16", np.inf)])
def test_non_finite_values_stay_non_finite(dtype, wrong):
  optimizer = make_optimizer(settings(moments=dtype))
  params = {"layers": module(jnp.ones((2, 8)))}
  state = optimizer.init(params)
  gradient = {"layers": module(jnp.ones((2, 8)).at[1, 3].set(wrong))}
  step = jax.jit(optimizer.update)
  _, state = step(gradient, state, params)
  updates, _ = step(params, state, params)
  assert not np.isfinite(kernel_of(updates["layers"])[1, 3])


@pytest.mark.parametrize("dtype", ["bfloat16", slow("float8")])
def test_averages_keep_moving(dtype):
  assert 0.95 < _second_moment_over_exact(dtype) < 1.05


@pytest.mark.parametrize("dtype", ["bfloat16", slow("float8")])
def test_averages_rounded_to_nearest_stop_moving(dtype, rounding_to_nearest):
  assert _second_moment_over_exact(dtype) > 1.5


def _second_moment_over_exact(dtype):
  """Mean second moment over that in float32: 1,500 updates after the gradients have become ten times smaller."""
  return _mean_second_moment(dtype) / _exact_second_moment()


@functools.cache
def _exact_second_moment():
  return _mean_second_moment("float32")


def _mean_second_moment(dtype):
  params = {"layers": module(jnp.zeros((32, 32)))}
  optimizer = make_optimizer(settings(moments=dtype))

  def step(state, number):
    key = jax.random.fold_in(jax.random.key(0), number)
    size = jnp.where(number < 50, 1.0, 0.1)
    gradient = {"layers": module(size * jax.random.normal(key, (32, 32)))}
    return optimizer.update(gradient, state, params)[1], None

  def run():
    return jax.lax.scan(step, optimizer.init(params), jnp.arange(1550))[0]

  nu = optax.tree.get(moments._decode(jax.jit(run)()), "nu")
  return float(kernel_of(nu["layers"]).mean())


@pytest.fixture(scope="module")
def exact():
  return _held_out_loss("float32")


@pytest.mark.parametrize(("dtype", "tolerance"), [slow("bfloat16", 0.002), ("float8", 0.02)])
def test_training_follows_float32(exact, dtype, tolerance):
  """600 updates with β₂ = 0.999 on noisy labels; nats."""
  assert exact < np.log(CLASSES) - 1.5
  assert abs(_held_out_loss(dtype) - exact) < tolerance


def test_training_with_eight_bits_rounded_to_nearest_does_not(exact, rounding_to_nearest):
  assert _held_out_loss("float8") > exact + 0.08


INPUTS, HIDDEN, CLASSES = 32, 64, 10


def _held_out_loss(dtype):
  """Cross-entropy of a network of two layers, taught by the noisy labels of a linear teacher."""
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(728, 32, INPUTS)))
  teacher = 0.7 * rng.normal(size=(INPUTS, CLASSES))
  labels = np.argmax(x @ teacher + 0.5 * rng.normal(size=(728, 32, CLASSES)), axis=-1)
  params = {
    "in": module(np.float32(rng.normal(size=(INPUTS, HIDDEN)) / INPUTS**0.5)),
    "out": module(np.float32(rng.normal(size=(HIDDEN, CLASSES)) / HIDDEN**0.5)),
  }
  optimizer = make_optimizer(settings(moments=dtype))

  def loss(params, batch):
    x, labels = batch
    scores = jnp.tanh(x @ kernel_of(params["in"])) @ kernel_of(params["out"])
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

  def step(carry, batch):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def run(params, x, labels):
    start = (params, optimizer.init(params))
    (trained, _), _ = jax.lax.scan(step, start, (x[:600], labels[:600]))
    return loss(trained, (x[600:], labels[600:]))

  return float(run(params, x, labels))


MATRIX = {"text": {"layers": {"mlp": {"up_proj": {"kernel": (2, 128, 256)}}}}}


def arrays(shapes, seed):
  rng = np.random.default_rng(seed)
  draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize(
  ("method", "dtype", "expected"),
  [
    ("adamw", "float32", 8),
    ("adamw", "bfloat16", 4),
    ("adamw", "float8", 2 + 8 / 256),
    ("muon", "float32", 4),
    ("muon", "bfloat16", 2),
    ("muon", "float8", 1 + 4 / 256),
    *[("adafactor", dtype, 4 / 128 + 4 / 256) for dtype in moments.DTYPES],
  ],
)
def test_bytes_for_each_parameter(method, dtype, expected):
  params = jax.eval_shape(lambda: arrays(MATRIX, 0))
  state = jax.eval_shape(make_optimizer(settings(method=method, moments=dtype)).init, params)
  stored_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  assert expected <= stored_bytes / (2 * 128 * 256) < expected + 1e-3


SHAPES = MATRIX | {"vision": {"merger": {"norm": {"scale": (96,)}, "fc1": {"kernel": (96, 64)}}}}


@functools.partial(jax.jit, static_argnames="optimizer")
def update(params, state, gradient, optimizer):
  updates, state = optimizer.update(gradient, state, params)
  return optax.apply_updates(params, updates), state


def assert_same_bits(found, expected):
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
  ):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes()), jax.tree_util.keystr(path)


@pytest.mark.parametrize(
  ("method", "dtype"),
  [
    ("adamw", "float8"),
    slow("adafactor", "float8"),
    slow("muon", "float8"),
    slow("adamw", "bfloat16"),
  ],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, method, dtype):
  optimizer = make_optimizer(settings(method=method, moments=dtype))
  params = arrays(SHAPES, 0)
  run = (params, optimizer.init(params))
  for number in range(4):
    if number == 2:
      with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, run, {})
    run = update(*run, arrays(SHAPES, 10 + number), optimizer=optimizer)
  assert any(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(run[1]))
  with Checkpoints(tmp_path) as checkpoints:
    resumed, _ = checkpoints.restore(jax.eval_shape(lambda: run))
  for number in (2, 3):
    resumed = update(*resumed, arrays(SHAPES, 10 + number), optimizer=optimizer)
  assert_same_bits(resumed, run)


def test_rounding_does_not_depend_on_the_mesh():
  mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
  optimizer = make_optimizer(settings(moments="float8"))
  params, gradient = arrays(MATRIX, 0), arrays(MATRIX, 1)
  expected = update(params, optimizer.init(params), gradient, optimizer=optimizer)
  cut = NamedSharding(mesh, P(None, "fsdp", "tensor"))
  params, gradient = jax.device_put((params, gradient), cut)
  found = update(params, jax.jit(optimizer.init)(params), gradient, optimizer=optimizer)
  codes = [x for x in jax.tree.leaves(found[1]) if x.dtype == FIRST]
  assert codes and all(not x.is_fully_replicated for x in codes)
  assert_same_bits(found[1], expected[1])


def test_arrays_are_rounded_with_independent_keys():
  """Moments of equal gradients, each rounded with its own key, and with a new key in every update."""
  optimizer = make_optimizer(settings(moments="bfloat16"))
  params = {"a": module(jnp.ones((64, 64))), "b": module(jnp.ones((64, 64)))}
  state, step = optimizer.init(params), jax.jit(optimizer.update)
  seen = []
  for _ in range(2):
    _, state = step(jax.tree.map(lambda x: x / 3, params), state, params)
    mu = optax.tree.get(state, "mu")
    seen += [kernel_of(mu["a"]), kernel_of(mu["b"])]
  chances = [np.asarray(x) > np.asarray(x).astype(np.float64).mean() for x in seen]
  for i, one in enumerate(chances):
    assert 0.05 < one.mean() < 0.95
    for other in chances[:i]:
      assert 0.02 < (one == other).mean() < 0.98


def test_another_type_is_refused():
  with pytest.raises(
    ValueError, match="moments is 'int8'; choose one of float32, bfloat16, float8"
  ):
    make_optimizer(settings(moments="int8"))


@pytest.mark.tpu
@pytest.mark.parametrize("dtype", moments.DTYPES)
def test_on_a_tpu_no_moment_exists_in_float32(v5e, dtype):
  """An update of eight arrays of 32 MiB has temporaries of less than a third of one array."""
  chip = SingleDeviceSharding(v5e[0])
  optimizer = make_optimizer(settings(moments=dtype))
  params = {f"{i}": module(jax.ShapeDtypeStruct((2048, 4096), jnp.float32)) for i in range(8)}
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip),
    (params, jax.eval_shape(optimizer.init, params), params),
  )
  step = jax.jit(functools.partial(update.__wrapped__, optimizer=optimizer), donate_argnums=(0, 1))
  memory = step.lower(*arguments).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 2048 * 4096 * 4 / 3
