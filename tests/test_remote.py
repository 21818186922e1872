"""Object stores: what they need, listings, and local copies; against an emulator of Google Cloud Storage."""

import contextlib
import importlib.util
from pathlib import Path

import fsspec
import pytest
from etils import epath

from spatial_vlm import cli, extras, remote
from spatial_vlm.config import UsageError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv(remote.CACHE_VARIABLE, str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def without_gcsfs(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name)
  )


@pytest.mark.parametrize(
  "arguments",
  [
    ["sft", "--workdir", "gs://bucket/run"],
    ["sft", "--config.checkpoint=gs://bucket/model"],
    ["sft", "--config.data.mix=(('gs://bucket/more.jsonl', 'images', 0.5),)"],
  ],
)
def test_without_the_extra_one_line_says_what_to_install(without_gcsfs, capsys, arguments):
  if arguments[1] != "--workdir":
    arguments += ["--workdir", "no_run"]
  assert cli.main(arguments) == 2
  error = capsys.readouterr().err
  assert "gs://bucket/" in error and "[gcs]' -c " in error
  assert error.count("\n") == 1


def test_local_paths_need_no_extra(without_gcsfs):
  remote.check_installed(["runs/sft", Path("a"), 1, None, ("b",)])


def test_a_package_around_a_library_may_be_missing(monkeypatch):
  monkeypatch.setattr(extras, "EXTRAS", {"gcs": ("no_such_package.storage",)})
  with pytest.raises(UsageError, match=r"no_such_package\.storage"):
    remote.check_installed(["gs://bucket"])


def test_a_workdir_that_cannot_be_looked_up_is_refused(monkeypatch, capsys):
  def exists(path):
    raise RuntimeError("Anonymous caller does not have storage.objects.get access")

  monkeypatch.setattr(type(epath.Path("gs://bucket")), "exists", exists)
  assert cli.main(["sft", "--workdir", "gs://bucket/run"]) == 2
  error = capsys.readouterr().err
  assert "Anonymous caller" in error and "gcloud auth" in error and error.count("\n") == 1


def test_a_process_sees_files_that_others_write(gcs_folder):
  address, store = gcs_folder
  with contextlib.ExitStack() as restored:
    for protocol in ("gs", "gcs"):
      restored.callback(fsspec.config.conf.pop, protocol, None)
    remote.see_files_of_others()
    folder = epath.Path(address)
    store.files.pipe_file(f"{address}/first", b"1")
    assert [path.name for path in folder.iterdir()] == ["first"]
    store.files.pipe_file(f"{address}/second", b"2")
    assert sorted(path.name for path in folder.iterdir()) == ["first", "second"]


def test_files_of_subfolders_are_listed(gcs_folder):
  address, store = gcs_folder
  for name in ("a.png", "deep/er/b.png"):
    store.files.pipe_file(f"{address}/{name}", name.encode())
  assert remote.list_files(f"{address}/") == remote.list_files(address)
  listed = remote.list_files(address)
  assert sorted(listed) == ["a.png", "deep/er/b.png"]
  assert remote.read_file(listed["deep/er/b.png"]) == b"deep/er/b.png"
  assert remote.list_files(f"{address}/none") == {}


def test_files_are_copied_once(gcs_folder, cache, capfd):
  address, store = gcs_folder
  paths = [epath.Path(address) / name for name in ("one", "two")]
  for path in paths:
    store.files.pipe_file(str(path), path.name.encode() * 100_000)
  copies = remote.local_copies(paths)
  assert [copy.read_bytes() for copy in copies] == [b"one" * 100_000, b"two" * 100_000]
  assert len({copy.parent for copy in copies}) == 1 and cache in copies[0].parents
  assert "copying two: 300kB/300kB" in capfd.readouterr().err
  copies[0].write_bytes(b"kept")
  assert remote.local_copies(paths) == copies
  assert copies[0].read_bytes() == b"kept"
  assert not list(cache.rglob("*.unfinished"))


def test_a_changed_file_is_copied_again(gcs_folder):
  address, store = gcs_folder
  path = epath.Path(address) / "file"
  store.files.pipe_file(str(path), b"before")
  before = remote.local_copies([path])
  store.files.pipe_file(str(path), b"afterwards")
  assert remote.local_copies([path])[0].read_bytes() == b"afterwards"
  assert before[0].read_bytes() == b"before"


def test_a_cut_copy_is_not_used(gcs_folder, monkeypatch):
  address, store = gcs_folder
  path = epath.Path(address) / "file"
  store.files.pipe_file(str(path), b"whole")
  files, _ = fsspec.url_to_fs(address)
  with monkeypatch.context() as patch:
    patch.setattr(files, "get_file", lambda path, local, **_: Path(local).write_bytes(b"wh"))
    with pytest.raises(OSError, match="has 5 bytes, but 2 arrived"):
      remote.local_copies([path])
  assert remote.local_copies([path])[0].read_bytes() == b"whole"


def test_a_missing_file_and_a_full_disk_are_named(gcs_folder, monkeypatch):
  address, store = gcs_folder
  path = epath.Path(address) / "file"
  with pytest.raises(FileNotFoundError, match="file"):
    remote.local_copies([path])
  store.files.pipe_file(str(path), b"whole")
  monkeypatch.setattr(remote.shutil, "disk_usage", lambda folder: type("", (), {"free": 4}))
  with pytest.raises(UsageError, match=remote.CACHE_VARIABLE):
    remote.local_copies([path])


def test_a_file_is_never_half_written(tmp_path, monkeypatch):
  """A write that is cut off leaves the old text; the next one leaves nothing of it behind."""
  path = epath.Path(tmp_path / "behaviors.yaml")
  remote.write_whole(path, "old")
  write = type(path).write_text

  def cut_off(self, text):
    write(self, text[: len(text) // 2])
    raise OSError("no space left")

  with monkeypatch.context() as patch:
    patch.setattr(type(path), "write_text", cut_off)
    with pytest.raises(OSError, match="no space"):
      remote.write_whole(path, "new text")
  assert path.read_text() == "old"
  remote.write_whole(path, "new text")
  assert [(p.name, p.read_text()) for p in path.parent.iterdir() if p.is_file()] == [
    ("behaviors.yaml", "new text")
  ]
