"""Stand-ins for chips: meshes and targets of this machine's devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from spatial_vlm import config, sharding
from spatial_vlm.model.config import PRESETS
from spatial_vlm.planning.chips import CHIPS
from spatial_vlm.planning.target import Target


@pytest.fixture(scope="session")
def hlo_mesh():
  return sharding.make_mesh({"fsdp": 4, "tensor": 2})


@pytest.fixture(scope="session")
def hlo_text(hlo_mesh):
  """Returns the optimised HLO of a function; each argument is (shape, spec)."""

  def compiled(function, *arguments):
    shapes = [
      jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(hlo_mesh, spec))
      for shape, spec in arguments
    ]
    return jax.jit(function).lower(*shapes).compile().as_text()

  return compiled


@pytest.fixture(scope="session")
def eight_chips():
  """A target of this machine's eight devices in place of v5e chips."""
  return Target(PRESETS["8b"], "v5e:2x4", 1, CHIPS["v5e"], jax.devices())


@pytest.fixture(scope="session")
def load_config():
  """Loads FILE:preset with overrides of the form leaf=value; required leaves may be empty."""

  def load(spec, *overrides):
    return config.load(spec, [f"--config.{override}" for override in overrides], complete=False)

  return load
