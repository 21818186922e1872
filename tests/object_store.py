"""An emulator of Google Cloud Storage, for gcsfs, google-cloud-storage and TensorStore, in a process of its own."""

import contextlib
import dataclasses
import functools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import fsspec
import gcs_emulator
from etils.epath import backend
from gcsfs.core import GCSFileSystem  # gcsfs's own asks Google for the type of a bucket


@dataclasses.dataclass(frozen=True)
class ObjectStore:
  """A running emulator with one bucket."""

  url: str

  @functools.cached_property
  def files(self):
    """Its file system, without a cache."""
    return GCSFileSystem(
      endpoint_url=self.url, token="anon", use_listings_cache=False, skip_instance_cache=True
    )

  @property
  def environment(self):
    """Variables that lead the libraries to the emulator, for processes of their own."""
    return {
      "STORAGE_EMULATOR_HOST": self.url,  # gcsfs and google-cloud-storage
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore looks for no credentials
      "GOOGLE_CLOUD_PROJECT": "none",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # gcsfs asks Google for nothing
      "NO_GCE_CHECK": "true",  # nor does it look for credentials
    }

  def upload(self, source, address):
    """Copies a local file or folder."""
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
      if path.is_file():
        name = address if path == source else f"{address}/{path.relative_to(source).as_posix()}"
        self.files.pipe_file(name, path.read_bytes())
    return address

  def download(self, address, folder):
    """Copies a folder to a local disk."""
    root = address.removeprefix("gs://")
    for path in self.files.find(root):
      target = Path(folder, path.removeprefix(f"{root}/"))
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(self.files.cat_file(path))
    return Path(folder)


@contextlib.contextmanager
def running(log):
  """Starts an emulator with the bucket `bucket` in its memory, and ends it."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  argv = [sys.executable, gcs_emulator.__file__, str(port)]
  with log.open("wb") as output:
    process = subprocess.Popen(argv, stdout=output, stderr=output)
    try:
      _await(process, port)
      yield ObjectStore(f"http://127.0.0.1:{port}")
    finally:
      process.kill()
      process.wait()


def _await(process, port):
  for _ in range(600):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
      return
    assert process.poll() is None, "the emulator ended at its start"
    time.sleep(0.05)
  raise TimeoutError("the emulator does not answer")


@contextlib.contextmanager
def in_this_process(store):
  """Leads gs:// of this process to the emulator."""
  with mock.patch.dict(os.environ, store.environment):
    _forget_file_systems()
    fsspec.register_implementation("gcs", GCSFileSystem, clobber=True)
    fsspec.register_implementation("gs", GCSFileSystem, clobber=True)
    try:
      yield
    finally:
      _forget_file_systems()


def _forget_file_systems():
  """Both libraries keep a file system for the life of the process."""
  GCSFileSystem.clear_instance_cache()
  type(backend.fsspec_backend)._get_filesystem.cache_clear()
