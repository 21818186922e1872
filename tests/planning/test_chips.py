"""Topologies by name, without a TPU."""

import builtins

import numpy as np
import pytest
from jax.sharding import Mesh

from spatial_vlm.planning.chips import CHIPS, topology_devices, torus_dimensions


@pytest.mark.parametrize("topology", ["v5e-64", "v5litepod-64", "v7x:2x2", "8x8", ""])
def test_unknown_versions_are_refused_with_the_known_ones(topology):
  with pytest.raises(ValueError, match="VERSION:GRID.*v5e, v5p"):
    topology_devices(topology, 1)


def test_missing_libtpu_is_an_error_that_names_the_extra(monkeypatch):
  imported = builtins.__import__

  def without(name, *args, **kwargs):
    if name == "libtpu":
      raise ImportError(name)
    return imported(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(ImportError, match=r"pip install .*\[plan\]"):
    topology_devices("v5e:2x2", 1)


@pytest.mark.slow
def test_topologies_of_all_versions():
  """Single chips too, although their hosts have several."""
  pytest.importorskip("libtpu")
  for name, count in (("v5e:1x1", 1), ("v6e:1x1", 1), ("v5e:4x4", 16), ("v5p:2x2x1", 4)):
    chip, devices = topology_devices(name, 1)
    assert (chip, len(devices)) == (CHIPS[name.partition(":")[0]], count)
  _, devices = topology_devices("v5e:2x4", 2)
  assert {device.slice_index for device in devices} == {0, 1}
  with pytest.raises(ValueError, match="knows no topology 'v5e:3x5'.*two dimensions"):
    topology_devices("v5e:3x5", 1)


class At:
  def __init__(self, *coords):
    self.coords = coords


def test_torus_dimensions_count_what_an_axis_spans():
  """4 × 4 chips: an axis over all of them spans both dimensions; an axis over a line of four spans one."""
  grid = np.array([[At(x, y, 0) for y in range(4)] for x in range(4)], object)
  assert torus_dimensions(Mesh(grid.reshape(16, 1), ("fsdp", "tensor"))) == {"fsdp": 2, "tensor": 1}
  assert torus_dimensions(Mesh(grid, ("fsdp", "tensor"))) == {"fsdp": 1, "tensor": 1}
