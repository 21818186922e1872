"""`data`: measures records and stores them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatial_vlm import cli, config
from spatial_vlm.data import store
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.data.store import StoreSource

VSR = Path(__file__).parents[2].parent / "shared" / "vsr"
needs_vsr = pytest.mark.skipif(not VSR.is_dir(), reason=f"the annotations of VSR are not in {VSR}")


@pytest.fixture(scope="module")
def changes(scenes_folder):
  return {"data.folder": scenes_folder, "data.images": scenes_folder / "images", "sheet": 4}


@pytest.fixture(scope="module")
def stored(tmp_path_factory, run, changes):
  """Workdir of a finished run that made a store."""
  workdir = tmp_path_factory.mktemp("data")
  done = run("data", workdir, {**changes, "store.shards": 3})
  assert done.code == 0 and not config.unread(done.configs[0])
  return workdir


def statistics(workdir):
  return json.loads((workdir / "statistics.json").read_text())


def content(workdir):
  files = (path for path in Path(workdir).rglob("*") if path.is_file())
  return {str(p.relative_to(workdir)): p.read_bytes() for p in files if p.name != "config.json"}


def test_statistics_are_printed_and_written(tmp_path, run, changes, capsys):
  assert run("data", tmp_path, changes).code == 0
  printed, report = capsys.readouterr().out, (tmp_path / "report.md").read_text()
  found = statistics(tmp_path)
  assert {name: split["records"] for name, split in found["splits"].items()} == {
    "train": 64,
    "validation": 32,
    "test": 32,
  }
  train = found["splits"]["train"]
  assert train["images"] == 64 and train["true_share"] == 0.5
  assert train["by_agreement"] == {"all": {"records": 64, "true_share": 0.5}}
  assert sum(group["records"] for group in train["by_relation"].values()) == 64
  assert found["overlap"]["shared"] == 0 and found["overlap"]["pairs"] == 32
  for text in (printed, report):
    assert "| train      |      64 |     64 |        10 |" in text
    assert "| Projective    |" in text and "| all " in text
    assert "0 of the 32 pairs" in text
  assert "| left of " in report and "![Examples](contact_sheet.png)" in report
  assert Image.open(tmp_path / "contact_sheet.png").width > 4 * 256
  assert not (tmp_path / "store").exists()


def test_the_store_and_the_records_equal_what_they_are_made_of(stored, scenes_folder):
  for split, count in (("train", 64), ("validation", 32), ("test", 32)):
    given = JsonlSource(
      scenes_folder / f"{split}.jsonl",
      scenes_folder / "images",
      scenes_folder / f"{split}.boxes.jsonl",
    )
    written = (stored / f"{split}.jsonl").read_text()
    assert written == (scenes_folder / f"{split}.jsonl").read_text()
    store = StoreSource(stored / "store", split)
    assert len(store) == len(given) == count
    by_name = {example.record.image: example for example in store}
    for example in given:
      other = by_name[example.record.image]
      assert other.record == example.record and other.boxes == example.boxes
      np.testing.assert_array_equal(other.image, example.image)
  assert statistics(stored)["store"]["test"] == {"records": 32, "skipped": []}
  assert sum("array_record" in name for name in content(stored)) == 9


def test_a_second_run_writes_nothing_again(stored, run, changes, monkeypatch):
  before = content(stored)
  monkeypatch.setattr(store._Writer, "_write_shard", lambda *_: pytest.fail("written"))
  assert run("data", stored, {**changes, "store.shards": 3}).code == 0
  assert content(stored) == before


def test_an_interrupted_run_resumes(stored, tmp_path, run, changes, stopped_at):
  for call in (2, 3, 5):
    with stopped_at(store._Writer, "_write_shard", call):
      run("data", tmp_path, {**changes, "store.shards": 3})
  assert run("data", tmp_path, {**changes, "store.shards": 3}).code == 0
  assert content(tmp_path) == content(stored)


def test_broken_records_are_reported_with_place_and_reason(tmp_path, run, broken):
  files, path, reasons = broken("records", "train.jsonl")
  changes = {
    "data.folder": path.parent,
    "data.images": files["data.images"],
    "data.splits": "train",
    "data.max_bad_share": 0.1,
    "store.shards": 2,
  }
  workdir = tmp_path / "workdir"
  assert run("data", workdir, changes).code == 0
  found = statistics(workdir)
  train = found["splits"]["train"]
  assert {bad["line"]: bad["file"] for bad in train["skipped"]} == dict.fromkeys(
    range(2, 7), str(path)
  )
  assert train["records"] == 64 - 5
  for bad in train["skipped"]:
    assert reasons[bad["line"]] in bad["reason"]
  assert train["missing_images"]["count"] == 2
  assert train["missing_images"]["first"] == ["../train.jsonl", "absent.png"]
  (unreadable,) = found["store"]["train"]["skipped"]
  assert "torn.png" in unreadable["reason"] and found["store"]["train"]["records"] == 58
  report = (workdir / "report.md").read_text()
  assert "train: 5, of which the first:" in report and "torn.png" in report
  assert len(JsonlSource(workdir / "train.jsonl", files["data.images"])) == 59


def test_too_many_broken_records_stop_it(tmp_path, run, broken, capsys):
  files, path, _ = broken("records", "train.jsonl")
  changes = {
    "data.folder": path.parent,
    "data.images": files["data.images"],
    "data.splits": "train",
    "data.max_bad_share": 0.05,
  }
  assert run("data", tmp_path / "workdir", changes).code == 2
  printed = capsys.readouterr()
  assert "|      59 |" in printed.out, "what was found is shown all the same"
  assert "5 of 64 records (7.8%) cannot be used" in printed.err and f"{path}:2:" in printed.err
  assert not (tmp_path / "workdir").exists()


def test_images_may_come_from_an_archive(tmp_path, run, changes, scenes_folder):
  archive = tmp_path / "images.zip"
  with zipfile.ZipFile(archive, "w") as file:
    for path in (scenes_folder / "images").iterdir():
      file.write(path, f"train2017/{path.name}")
  places = f"{tmp_path / 'empty'},{archive}"
  (tmp_path / "empty").mkdir()
  from_zip = {**changes, "data.images": places, "store.shards": 3}
  assert run("data", tmp_path / "zip", from_zip).code == 0
  from_folder = {**changes, "store.shards": 3}
  assert run("data", tmp_path / "folder", from_folder).code == 0
  assert content(tmp_path / "zip") == content(tmp_path / "folder")


def test_training_sets_that_share_evaluation_pairs_are_refused_or_filtered(
  tmp_path, run, changes, scenes_folder, capsys
):
  lines = (scenes_folder / "train.jsonl").read_text().splitlines(keepends=True)
  evaluation = tmp_path / "held_out.jsonl"
  evaluation.write_text("".join(lines[:3]) + (scenes_folder / "test.jsonl").read_text())
  shared = {**changes, "evaluation": evaluation}
  assert run("data", tmp_path / "run", shared).code == 2
  printed = capsys.readouterr()
  assert "3 of the 35 pairs" in printed.out
  assert "3 of the 35 evaluation pairs" in printed.err and "drop_shared" in printed.err
  assert not (tmp_path / "run").exists()
  assert run("data", tmp_path / "run", {**shared, "drop_shared": True}).code == 0
  assert (tmp_path / "run" / "train.jsonl").read_text() == "".join(lines[3:])
  assert statistics(tmp_path / "run")["overlap"]["shared"] == 3
  assert statistics(tmp_path / "run")["splits"]["train"]["records"] == 61
  own = {**changes, "evaluation": scenes_folder / "train.jsonl", "drop_shared": True}
  assert run("data", tmp_path / "own", own).code == 2
  assert "all training records are in the evaluation set" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"data.splits": "train,other"}, "other.jsonl"),
    ({"data.folder": "nowhere"}, "nowhere (data.folder) does not exist"),
    ({"data.images": "nowhere.zip"}, "nowhere.zip (data.images) does not exist"),
    ({"data.splits": ""}, "data.splits is (); it must be a tuple of 1"),
    ({"sheet": 0}, "sheet is 0; it must be at least 1"),
    ({"data.max_bad_share": 3}, "max_bad_share is 3"),
    ({"store.shards": -1}, "store.shards is -1; it must be from 0 to 99999"),
    ({"data.images": "", "store.shards": 2}, "a store holds images, but images is empty"),
    ({"evaluation": "nowhere.jsonl"}, "nowhere.jsonl"),
    ({"data.published": "easy"}, "data.published is 'easy'; choose one of random, zeroshot, ''"),
  ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
  tmp_path, run, changes, capsys, change, message
):
  assert run("data", tmp_path / "refused", {**changes, **change}).code == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "refused").exists()


@needs_vsr
def test_real_vsr_annotations_without_images(tmp_path, run, capsys):
  options = ["--config", "configs/data.py:8b"]
  changes = {
    "data.folder": VSR / "random",
    "data.images": "",
    "data.splits": "train,dev",
    "store.shards": 0,
  }
  assert run("data", tmp_path / "random", changes, *options).code == 0
  found = statistics(tmp_path / "random")["splits"]
  assert found["train"]["images"] == 4968 and len(found["dev"]["by_relation"]) == 60
  assert not (tmp_path / "random" / "contact_sheet.png").exists()
  assert "![Examples]" not in (tmp_path / "random" / "report.md").read_text()
  guarded = {**changes, "evaluation": VSR / "zeroshot" / "dev.jsonl"}
  assert run("data", tmp_path / "guarded", guarded, *options).code == 2
  assert "236 of the 340 evaluation pairs" in capsys.readouterr().err
  wrong = {**changes, "data.published": "zeroshot"}
  assert run("data", tmp_path / "wrong", wrong, *options).code == 2
  assert "train: 7680 records" in capsys.readouterr().err


def test_the_presets_name_the_published_splits():
  for preset, name in (("8b", "random"), ("zeroshot", "zeroshot")):
    given = ["--config.data.folder=f", "--config.data.images=i"]
    loaded = config.load(f"configs/data.py:{preset}", given)
    assert loaded.data.published == name and loaded.data.splits == ("train", "dev", "test")


@pytest.mark.slow
def test_ten_kills_leave_no_trace(tmp_path):
  source = SceneSource("train", 0, 600)
  folder = tmp_path / "scenes"
  (folder / "images").mkdir(parents=True)
  for example in source:
    Image.fromarray(example.image).save(folder / "images" / example.record.image)
  lines = (json.dumps(source.describe(index)[0].to_json()) for index in range(len(source)))
  (folder / "train.jsonl").write_text("\n".join(lines))
  changes = {
    "data.folder": folder,
    "data.images": folder / "images",
    "data.splits": "train",
    "store.shards": 100,
  }
  settings = [f"--config.{name}={value}" for name, value in changes.items()]
  arguments = [sys.executable, "-m", "spatial_vlm.cli", "data", *settings, "--workdir"]
  environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}

  def start(workdir):
    return subprocess.Popen([*arguments, str(workdir)], env=environment, stderr=subprocess.DEVNULL)

  assert start(tmp_path / "whole").wait() == 0
  store = tmp_path / "killed" / "store"
  kills = 0
  for enough in sorted(random.Random(0).sample(range(90), 10)):
    process = start(tmp_path / "killed")
    while process.poll() is None and len(list(store.glob("*-of-00100.json"))) <= enough:
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    kills += process.wait() == -signal.SIGKILL
  assert kills == 10
  assert start(tmp_path / "killed").wait() == 0
  assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_on_gcs_it_writes_the_same_and_refuses_a_store_before_reading(
  gcs_folder, tmp_path, run, changes, scenes_folder, capsys
):
  address, store = gcs_folder
  absent = {**changes, "data.folder": "nowhere", "store.shards": 2}
  assert run("data", f"{address}/refused", absent).code == 2
  error = capsys.readouterr().err
  assert "written to a local disk" in error and error.count("\n") == 1
  assert not store.files.exists(f"{address}/refused")

  assert run("data", tmp_path / "local", changes).code == 0
  there = store.upload(scenes_folder, f"{address}/scenes")
  moved = {**changes, "data.folder": there, "data.images": f"{there}/images"}
  assert run("data", f"{address}/run", moved).code == 0
  found = content(store.download(f"{address}/run", tmp_path / "found"))
  assert found == content(tmp_path / "local")
