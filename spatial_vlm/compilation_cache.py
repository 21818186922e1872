"""Keeps compiled programs on this machine's disk, so that a later start of a command does not compile them again."""

import contextlib
import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path

DEFAULT = "~/.cache/spatial_vlm/compiled"
MAX_BYTES = 2 * 2**30
"""Bound on the size of the default folder, enforced when a command starts."""
MIN_COMPILE_SECONDS = 0.2
"""Programs that compile faster are not kept."""


def set_up(is_wanted: bool) -> None:
  """Makes JAX keep compiled programs in the default folder, or switches its cache off.

  A program of the cache is the machine code that an earlier start has run: results do not change. An entry that cannot
  be read, such as one that was being written when its process was killed, is compiled again, with a warning.

  JAX's own environment variables decide first: JAX_COMPILATION_CACHE_DIR names another folder and
  JAX_ENABLE_COMPILATION_CACHE=false forbids one. Several processes use no default folder: the hosts of a slice would
  not all find the same programs in it.
  """
  import jax  # here: the help of a command does without it

  if not is_wanted:
    jax.config.update("jax_enable_compilation_cache", False)
  given = jax.config.values
  is_off = not given["jax_enable_compilation_cache"]
  if is_off or given["jax_compilation_cache_dir"] or jax.distributed.is_initialized():
    return
  root = Path(DEFAULT).expanduser()
  folder = machine_folder(root)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    prune(root, MAX_BYTES)
  except OSError:  # a read-only home: the command works without a cache
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


@functools.cache
def machine_folder(root: Path) -> Path:
  """Returns the folder of compiled programs for this machine under `root`.

  XLA compiles for the features of the CPU it runs on and JAX's key does not hold them, so each set of features has its
  own folder. So has each version of JAX.
  """
  cpuinfo = Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  model = [line for line in lines if line.startswith(("cpu family", "model\t", "vendor_id"))]
  machine = "\n".join([platform.machine(), features, *sorted(set(model))])
  versions = "-".join(importlib.metadata.version(name) for name in ("jax", "jaxlib"))
  return root / f"{versions}-{hashlib.sha256(machine.encode()).hexdigest()[:12]}"


def prune(root: Path, limit: int) -> None:
  """Deletes the files under `root` that were used least recently, until the rest holds at most `limit` bytes."""
  files = []
  for path in root.rglob("*"):
    with contextlib.suppress(FileNotFoundError):  # deleted by another process
      if path.is_file():
        stat = path.stat()
        files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
  kept_bytes = sum(size for _, size, _ in files)
  for _, size, path in sorted(files):
    if kept_bytes <= limit:
      break
    path.unlink(missing_ok=True)
    kept_bytes -= size
