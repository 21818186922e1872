"""HBM traffic of compiled programs, known by hand."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from spatial_vlm.planning.hbm_traffic import hbm_traffic
from spatial_vlm.planning.hlo import Hlo


def test_traffic_of_one_operation_is_its_operands_and_result(hlo_text):
  text = hlo_text(lambda x, y: jnp.sin(x) + y, ((1024,), P()), ((1024,), P()))
  assert hbm_traffic(Hlo(text)) == 3 * 1024 * 4


def test_loop_over_a_stack_reads_one_layer_per_trip(hlo_text):
  """Eight layers of 64 × 64: each trip reads, writes and rereads a slice, never the whole stack."""

  def layers(x, stack):
    return jax.lax.scan(lambda x, w: (jnp.sin(x) @ w, None), x, stack)[0]

  text = hlo_text(layers, ((4, 64), P()), ((8, 64, 64), P()))
  stack = 8 * 64 * 64 * 4
  assert stack <= hbm_traffic(Hlo(text)) < 6 * stack
