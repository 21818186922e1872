"""Files are compared by what they hold, not by their names."""

import json
import os

import ml_collections
import pytest

from spatial_vlm import config
from spatial_vlm import contents as module
from spatial_vlm.contents import FILES, contents


@pytest.fixture
def files(tmp_path):
  (tmp_path / "model").mkdir()
  (tmp_path / "model" / "config.json").write_text("{}")
  (tmp_path / "model" / "model.safetensors").write_bytes(bytes(range(256)) * 400)
  (tmp_path / "model" / "README.md").write_text("about it")
  (tmp_path / "images").mkdir()
  (tmp_path / "images" / "a.png").write_bytes(b"a")
  (tmp_path / "more.zip").write_bytes(b"zip")
  (tmp_path / "records.jsonl").write_text("{}\n")
  (tmp_path / "store.json").write_text(json.dumps({"digest": 1}))
  return tmp_path


def config_of(folder, **changes):
  values = {
    "checkpoint": str(folder / "model"),
    "method": "chain",
    "empty": "",
    "workers": 2,
    "data": {
      "records": str(folder / "records.jsonl"),
      "images": f"{folder}/images,{folder}/more.zip",
      "mix": ((str(folder / "store.json"), "images", 0.5),),
    },
  }
  return ml_collections.ConfigDict(values | changes)


@pytest.mark.parametrize("command", ["sft", "dapo", "evaluate", "compare", "behaviors"])
def test_every_leaf_that_names_a_file_counts(command):
  preset = config.leaves(config.read_preset(f"configs/{command}.py:tiny"))
  others = {"engine.url", "lora.targets", "trainable"}
  named = {name for name, value in preset.items() if "/" in str(value)} - others
  assert named and named <= {*FILES}


def test_a_word_that_is_also_a_folder_does_not_count(files, monkeypatch):
  monkeypatch.chdir(files)
  assert contents(config_of(files, method="model")) == contents(config_of(files))


def test_leaves_that_name_files_count_and_folders_of_images_do_not(files):
  found = contents(config_of(files))
  assert sorted(found) == ["checkpoint", "data.images", "data.mix", "data.records"]
  (files / "images" / "a.png").write_bytes(b"b")
  (files / "model" / "README.md").write_text("more about it")
  assert contents(config_of(files)) == found
  assert "checkpoint" not in contents(config_of(files), ("check*",))


@pytest.mark.parametrize(
  ("file", "leaf"),
  [
    ("model/model.safetensors", "checkpoint"),
    ("model/config.json", "checkpoint"),
    ("records.jsonl", "data.records"),
    ("more.zip", "data.images"),
    ("store.json", "data.mix"),
  ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_other_bytes_of_equal_length_and_time_are_noticed(files, file, leaf, whole, monkeypatch):
  if not whole:  # as for gigabytes of weights: blocks at equal distances
    monkeypatch.setattr(module, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
  before, times = contents(config_of(files)), (files / file).stat()
  changed = bytes(byte ^ 1 for byte in (files / file).read_bytes())
  (files / file).write_bytes(changed)
  os.utime(files / file, ns=(times.st_atime_ns, times.st_mtime_ns))
  after = contents(config_of(files))
  assert [name for name in before if before[name] != after[name]] == [leaf]


def test_a_remote_file_counts_by_what_its_store_tells(files, gcs_folder):
  address, store = gcs_folder
  remote = store.upload(files / "model", f"{address}/model")
  before = contents(config_of(files, checkpoint=remote))
  (files / "model" / "model.safetensors").write_bytes(bytes(reversed(range(256))) * 400)
  store.upload(files / "model", f"{address}/model")
  after = contents(config_of(files, checkpoint=remote))
  assert [name for name in before if before[name] != after[name]] == ["checkpoint"]
