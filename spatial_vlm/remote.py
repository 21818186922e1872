"""Object stores (gs://): what they need, and local copies of files that only a local disk can serve."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import fsspec
from etils import epath
from fsspec.callbacks import Callback
from fsspec.config import conf

from spatial_vlm import extras
from spatial_vlm.config import UsageError
from spatial_vlm.progress import progress_bar

CACHE_VARIABLE = "SPATIAL_VLM_CACHE"
"""Environment variable with the folder of local copies; by default ~/.cache/spatial_vlm."""

_GCS = "gs://"


def is_remote(path: epath.PathLike) -> bool:
  """Returns whether a path is an address such as gs://bucket/folder."""
  return "://" in os.fspath(path)


def write_whole(path: epath.Path, text: str) -> None:
  """Writes a file that is never half written: readers find the old text or the new one.

  Object stores replace whole objects. On a disk the text goes to a second file, which then replaces the first.
  """
  if is_remote(path):
    path.write_text(text)
    return
  written = path.with_name(f".{path.name}.new")
  written.write_text(text)
  written.replace(path)


def check_installed(values: Iterable[object]) -> None:
  """Raises UsageError if a value names a gs:// address and the extra `gcs` is not installed."""
  named = next((text for value in values if _GCS in (text := str(value))), None)
  if named:
    extras.require("gcs", named)


def see_files_of_others() -> None:
  """Turns off gcsfs's cache of listings, for this process.

  The cache never expires. A process with a cached listing would not see the files that process 0 or TensorStore writes.
  """
  for protocol in ("gs", "gcs"):
    conf.setdefault(protocol, {})["use_listings_cache"] = False


def check_folder(folder: epath.Path) -> None:
  """Raises UsageError if a remote folder cannot be looked up, e.g. without credentials."""
  if is_remote(folder):
    try:
      folder.exists()
    except Exception as error:  # each library has its own
      raise UsageError(
        f"{folder} cannot be read ({str(error) or type(error).__name__}); check the name of the bucket and your "
        "rights, and log in: gcloud auth application-default login"
      ) from error


def list_files(folder: str) -> dict[str, str]:
  """Returns path in the folder → address of every file in a remote folder and its subfolders; empty if none exists."""
  files, root = fsspec.url_to_fs(folder)
  prefix = root.rstrip("/") + "/"
  return {path.removeprefix(prefix): f"{_GCS}{path}" for path in files.find(root)}


def read_file(address: str) -> bytes:
  """Returns the bytes of a remote file by one request."""
  files, path = fsspec.url_to_fs(address)
  return files.cat_file(path)


def local_copies(paths: Sequence[epath.Path]) -> list[Path]:
  """Returns copies of remote files in one folder of this machine's cache.

  Files are copied at the first call, with a progress bar; later calls and other processes find them there. A file that
  has changed since is copied again, into another folder.

  Raises:
    FileNotFoundError: a file is missing.
    UsageError: the disk is too small.
  """
  stats = [path.stat() for path in paths]
  versions = [(str(p), s.length, s.mtime) for p, s in zip(paths, stats, strict=True)]
  folder = cache_folder() / hashlib.sha256(repr(versions).encode()).hexdigest()[:16]
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    copies = [folder / path.name for path in paths]
    missing = [n for n, copy in enumerate(copies) if not copy.exists()]
    _check_space(folder, sum(stats[n].length for n in missing))
    for number in missing:
      _copy(paths[number], stats[number].length, copies[number])
  return copies


def cache_folder() -> Path:
  """Returns the folder of local copies."""
  return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/spatial_vlm").expanduser()


def _copy(source: epath.Path, size: int, target: Path) -> None:
  """Copies a remote file; `target` appears only when it is complete."""
  files, path = fsspec.url_to_fs(str(source))
  unfinished = target.with_name(f"{target.name}.unfinished")
  with progress_bar(f"copying {source.name}", size, unit="B") as bar:
    show = {"bar": lambda size, value, **_: bar.update(value - bar.n)}
    files.get_file(path, str(unfinished), callback=Callback(hooks=show))
  if (found := unfinished.stat().st_size) != size:
    raise OSError(f"{source} has {size} bytes, but {found} arrived; start again")
  unfinished.replace(target)


def _check_space(folder: Path, wanted: int) -> None:
  if wanted > (free := shutil.disk_usage(folder).free):
    raise UsageError(
      f"local copies need {wanted / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB left; name a folder of a larger "
      f"disk in the environment variable {CACHE_VARIABLE}"
    )
