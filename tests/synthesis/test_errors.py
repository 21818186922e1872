"""One base class for all errors of synthesis."""

import importlib
import pkgutil

import spatial_vlm.synthesis
from spatial_vlm.synthesis.errors import SynthesisError


def test_every_exception_of_synthesis_is_a_synthesis_error():
  prefix = "spatial_vlm.synthesis."
  modules = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(spatial_vlm.synthesis.__path__, prefix)
  ]
  defined = {
    value
    for module in modules
    for value in vars(module).values()
    if isinstance(value, type)
    and issubclass(value, Exception)
    and value.__module__.startswith(prefix)
  }
  assert len(defined) >= 7
  assert all(issubclass(error, SynthesisError) for error in defined), defined
