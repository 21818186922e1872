"""The folder in which tests keep compiled programs for other processes and later runs."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache" / "jax"
CACHE_BYTES = 2 * 2**30
"""Bound on the size of all programs in `CACHE`, enforced when a test session starts."""


def cache_folder() -> Path:
  """Returns the folder of compiled programs for this machine.

  XLA compiles for the features of the CPU it runs on, so each set of features and each version has its own folder.
  """
  cpuinfo = Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  model = [line for line in lines if line.startswith(("cpu family", "model\t", "vendor_id"))]
  machine = "\n".join([platform.machine(), features, *sorted(set(model))])
  versions = "-".join(importlib.metadata.version(name) for name in ("jax", "jaxlib"))
  return CACHE / f"{versions}-{hashlib.sha256(machine.encode()).hexdigest()[:12]}"


def prune(root: Path, limit: int) -> None:
  """Deletes the files under `root` that were used least recently, until the rest holds at most `limit` bytes."""
  files = []
  for path in root.rglob("*"):
    if path.is_file():
      stat = path.stat()
      files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
  kept_bytes = sum(size for _, size, _ in files)
  for _, size, path in sorted(files):
    if kept_bytes <= limit:
      break
    path.unlink(missing_ok=True)
    kept_bytes -= size
