"""The measured limits of this machine."""

import pytest

from spatial_vlm.benchmark import limits
from spatial_vlm.benchmark.limits import Limits, Sizes, measure_limits


def test_the_scarcer_resource_decides():
  both = Limits(flops_per_s=1e12, bytes_per_s=1e9)
  assert both.seconds(flops=2e12, bytes=1e9) == 2.0
  assert both.seconds(flops=1e12, bytes=3e9) == 3.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rates_are_measured(monkeypatch, dtype):
  monkeypatch.setitem(limits.SIZES, "cpu", Sizes((64, 128), 2**22))
  found = measure_limits(dtype)
  assert 1e6 < found.flops_per_s < 1e15
  assert 1e6 < found.bytes_per_s < 1e13


def test_the_fastest_of_all_counts(monkeypatch):
  """2 w³ operations of width w in 1 s each, and three ways to read an array."""
  monkeypatch.setitem(limits.SIZES, "cpu", Sizes((64, 128), 2**22))
  monkeypatch.setattr(limits, "seconds_of", lambda call: 1.0)
  assert measure_limits("float32") == (2.0 * 128**3, 2.0 * 2**22)
