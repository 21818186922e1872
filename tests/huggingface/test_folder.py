"""Checkpoint folders are found, and the files next to their weights copied."""

import pytest
from etils import epath

from spatial_vlm.config import PACKAGE_FOLDER, UsageError
from spatial_vlm.huggingface.folder import copy_processor, find_folder


def test_a_folder_is_looked_for_here_and_then_in_the_project(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert find_folder("configs") == epath.Path(PACKAGE_FOLDER.parent) / "configs"
  (tmp_path / "configs").mkdir()
  assert find_folder("configs").resolve() == epath.Path(tmp_path / "configs").resolve()
  with pytest.raises(UsageError, match="no/such does not exist"):
    find_folder("no/such")


def test_files_next_to_the_weights_are_copied(nano, tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  for path in nano.iterdir():
    (source / path.name).write_bytes(path.read_bytes())
  (source / "model.safetensors.index.json").write_text("{}")
  (source / "notes.py").write_text("")
  export = tmp_path / "deep" / "export"
  copy_processor(epath.Path(export), epath.Path(source))
  copied = {path.name for path in export.iterdir()}
  assert copied == {path.name for path in nano.iterdir()} - {"config.json", "model.safetensors"}
  assert all((export / name).read_bytes() == (nano / name).read_bytes() for name in copied)


def test_a_remote_folder_is_copied_from_and_found(nano, gcs_folder, tmp_path):
  address, store = gcs_folder
  store.upload(nano, f"{address}/model")
  source = find_folder(f"{address}/model")
  copy_processor(epath.Path(address) / "export", source)
  copied = store.download(f"{address}/export", tmp_path / "copied")
  names = {path.name for path in copied.iterdir()}
  assert names == {path.name for path in nano.iterdir()} - {"config.json", "model.safetensors"}
  assert all((copied / name).read_bytes() == (nano / name).read_bytes() for name in names)
  with pytest.raises(UsageError, match="gs://.*/none does not exist"):
    find_folder(f"{address}/none")
