"""Compiling and timing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from spatial_vlm.benchmark import measure
from spatial_vlm.benchmark.measure import Rounds


def test_calls_take_turns(monkeypatch):
  """A clock that every call advances: a takes 1 s, b 3 s."""
  now, order = [0.0], []
  monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

  def call(name, seconds):
    order.append(name)
    now[0] += seconds

  calls = {name: functools.partial(call, name, s) for name, s in (("a", 1.0), ("b", 3.0))}
  times = measure.alternate(calls, Rounds(count=3, round_s=2.0))
  assert times == {"a": [1.0] * 3, "b": [3.0] * 3}
  assert "".join(order) == "ab" + "ab" + 3 * "aab"  # first runs, estimates, rounds of at least 2 s


def test_ratios_are_taken_round_by_round():
  assert measure.ratios([2.0, 9.0, 8.0], [1.0, 3.0, 4.0]) == (2.0, 2.0, 3.0)


def test_a_program_is_built_once_and_its_products_are_counted():
  a = jnp.ones((16, 32))

  @jax.jit
  def step(a):
    return jax.lax.scan(lambda h, _: (h @ a.T @ a, None), a, length=5)[0]

  trace = functools.partial(step.trace, a)
  built = measure.build(trace)
  assert built.seconds > 0 and built.peak_bytes >= 2 * a.nbytes
  assert built.call(a).shape == a.shape
  assert measure.flops_of(trace()) == 5 * 2 * (2 * 16 * 32 * 16)


def test_loops_that_end_by_data_run_as_often_as_said():
  a = jnp.ones((8, 8))
  step = jax.jit(lambda a: jax.lax.while_loop(lambda h: h[0, 0] < 9, lambda h: h @ a, a))
  assert measure.flops_of(step.trace(a), trip_count=7) == 7 * 2 * 8**3


def test_a_second_build_reads_the_persistent_cache(tmp_path, monkeypatch):
  settings = {
    "jax_compilation_cache_dir": str(tmp_path),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  hits = []
  jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
  jax.experimental.compilation_cache.compilation_cache.reset_cache()
  for name, value in settings.items():
    jax.config.update(name, value)
  try:
    trace = functools.partial(jax.jit(lambda x: jnp.sin(x) * 123.25).trace, jnp.ones(7))
    measure.build(trace)
    assert measure.rebuild_seconds(trace) > 0
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
  assert hits.count("/jax/compilation_cache/cache_hits") == 1


def test_seconds_wait_for_the_result(monkeypatch):
  ticks = itertools.count()
  monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(ticks)))
  assert measure.seconds_of(lambda: jnp.ones(3)) == pytest.approx(1.0)
