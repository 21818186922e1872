"""The time spent on compiling."""

import threading

import jax
import jax.numpy as jnp

from spatial_vlm import compile_clock
from spatial_vlm.compile_clock import compile_seconds


def test_compiling_counts_in_its_own_thread_and_running_does_not():
  before = compile_seconds()
  program = jax.jit(lambda x: jnp.sin(x) * 41.5)
  program(jnp.arange(3.0)).block_until_ready()
  after = compile_seconds()
  assert after > before
  program(jnp.arange(3.0)).block_until_ready()
  assert compile_seconds() == after
  elsewhere = []
  other = threading.Thread(target=lambda: elsewhere.append(compile_seconds()))
  other.start()
  other.join()
  assert elsewhere == [0.0]


def test_a_span_within_another_counts_once():
  compile_clock._count("/jax/core/compile/jaxpr_trace_duration", 0.0, 1e12)
  before = compile_seconds()
  for start, end in ((2e12, 2e12 + 1), (2e12 + 4, 2e12 + 5), (2e12 + 3, 2e12 + 7)):
    compile_clock._count("/jax/core/compile/jaxpr_trace_duration", start, end)
  compile_clock._count("/jax/other", 0.0, 100.0)
  assert abs(compile_seconds() - before - 5.0) < 1e-3
