"""What a workdir holds before a command writes there."""

import json

import pytest
from etils import epath

from spatial_vlm import workdir
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
