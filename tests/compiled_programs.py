"""The folder in which tests keep compiled programs for other processes and later runs."""

from pathlib import Path

from spatial_vlm import compilation_cache

CACHE = Path(__file__).parents[1] / ".cache" / "jax"
CACHE_BYTES = 2 * 2**30
"""Bound on the size of all programs in `CACHE`, enforced when a test session starts."""


def cache_folder() -> Path:
  """Returns the folder of compiled programs for this machine."""
  return compilation_cache.machine_folder(CACHE)
