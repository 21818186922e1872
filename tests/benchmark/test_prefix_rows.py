"""Rows of the prefix cache."""

import jax
import pytest

from spatial_vlm.benchmark.prefix_rows import prefix_rows


@pytest.fixture(scope="module")
def rows(make_subject):
  subject = make_subject()
  with jax.set_mesh(subject.mesh):
    return list(prefix_rows(subject))


def test_a_cached_prefix_saves_the_operations_of_its_tokens(rows):
  whole, cached, computed = rows
  assert (whole.tokens, cached.tokens, computed.tokens) == (16 * 48, 16 * 32, 8 * 16)
  assert whole.ratio is None and cached.ratio is not None
  # The image's tower is the same in both; the decoder reads 32 of 48 tokens.
  assert computed.flops < whole.flops - cached.flops < 2 * computed.flops * 16 / 8
  assert all(row.seconds is not None and row.compile_s > 0 for row in rows)
