"""What a workdir holds before a command writes there."""

import json

import pytest
from etils import epath

from spatial_vlm import config, workdir
from spatial_vlm.config import UsageError, load, snapshot

CONFIG = """
from ml_collections import ConfigDict

def get_config(preset):
  return ConfigDict(dict(algorithm=preset, seed=0))
"""


@pytest.fixture
def settings(tmp_path):
  (tmp_path / "some.py").write_text(CONFIG)
  return lambda command, *changes: load(f"{tmp_path}/some.py:{command}", changes)


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path / "run")


def test_a_run_of_another_command_is_named(settings, folder):
  snapshot(settings("scenes"), folder)
  with pytest.raises(UsageError, match=r"run holds a run of `scenes`; give another --workdir$"):
    snapshot(settings("sft"), folder)


def test_a_run_of_an_earlier_version_is_named_by_its_command_line():
  stored = {"command": "spatial-vlm data --workdir x", "config": {"seed": 0}}
  assert workdir.other_command(stored, {"algorithm": "sft"}) == "data"
  assert workdir.other_command(stored, {"algorithm": "data"}) is None
  assert workdir.other_command({"config": {}}, {"algorithm": "sft"}) is None


@pytest.mark.parametrize(
  ("name", "foreign"),
  [
    ("model.safetensors", True),
    ("train.jsonl", True),
    (".git", False),
    ("sft.log", False),
    ("lost+found", False),
    ("checkpoints/6", False),
  ],
)
def test_a_folder_of_other_files_is_refused(settings, folder, name, foreign):
  (folder / name).mkdir(parents=True)
  if foreign:
    with pytest.raises(UsageError, match=f"run holds {name}, and no run; give an empty or a new"):
      snapshot(settings("sft"), folder)
  else:
    snapshot(settings("sft"), folder)
  assert (folder / "config.json").exists() != foreign


def test_a_start_that_failed_does_not_refuse_the_corrected_one(settings, folder):
  """It has made folders, but no file."""
  snapshot(settings("sft"), folder)
  (folder / "checkpoints").mkdir()
  snapshot(settings("sft", "seed=1"), folder)
  assert json.loads((folder / "config.json").read_text())["config"]["seed"] == 1
  (folder / "checkpoints" / "config.json").touch()  # of another program, as in an export
  with pytest.raises(UsageError, match="seed: 1 → 2"):
    snapshot(settings("sft", "seed=2"), folder)


@pytest.mark.parametrize(
  ("own", "named", "is_read"),
  [
    ("runs/a", "runs/a", True),
    ("runs/a", "runs/../runs/a/", True),
    ("runs/a", "runs/b", False),
    ("runs/a", "", False),
    ("gs://bucket/a", "gs://bucket/a/", True),
    ("gs://bucket/a", "gs://bucket/b", False),
  ],
)
def test_a_workdir_that_the_command_reads_is_known(own, named, is_read):
  found = workdir.read_by(epath.Path(own), {"data.folder": named} if named else {})
  assert found == ("data.folder" if is_read else None)


def test_names_in_settings_are_no_paths():
  """A workdir may be named like a command or a task."""
  texts = config.free_texts(config.load("configs/sft.py:tiny"))
  assert {"checkpoint", "data.images"} <= texts.keys() and not {"algorithm", "task"} & texts.keys()
  assert "seed" not in texts


def test_a_place_that_cannot_be_written_is_known(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  assert workdir.why_not_writable(tmp_path / "new" / "run") is None
  for below in ("file", "file/run/x"):
    assert workdir.why_not_writable(tmp_path / below) == f"{tmp_path}/file is a file; give a folder"
  monkeypatch.setattr("os.access", lambda path, mode: False)
  assert (
    workdir.why_not_writable(tmp_path / "run")
    == f"{tmp_path} is read-only for you; give another folder"
  )
