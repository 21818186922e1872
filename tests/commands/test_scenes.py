"""`scenes`: writes scenes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from spatial_vlm import answers, cli, config
from spatial_vlm.commands import scenes as command
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.data.scenes import writing
from spatial_vlm.data.scenes.source import SceneSource

SMALL = [
  "--config.counts.train=60",
  "--config.counts.validation=4",
  "--config.counts.test=6",
  "--config.chains=20",
  "--config.sheet=4",
  "--config.caption_pairs=6",
]


def run(workdir, *overrides):
  return cli.main(["scenes", "--workdir", str(workdir), *SMALL, *overrides])


def content(workdir):
  """All files of a run, without the records of when and how it was started."""
  files = (path for path in Path(workdir).rglob("*") if path.is_file())
  return {str(p.relative_to(workdir)): p.read_bytes() for p in files if p.name != "config.json"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("scenes")
  assert run(workdir) == 0
  return workdir


def test_what_is_written_can_be_read_back(finished):
  source = SceneSource("train", 0, 60)
  read = JsonlSource(
    finished / "train.jsonl", finished / "images", finished / "train.boxes.jsonl", 0.0
  )
  assert len(read) == 60
  for expected, example in zip(source, read, strict=True):
    assert example.record == expected.record
    assert example.boxes == expected.boxes
    np.testing.assert_array_equal(example.image, expected.image)
  assert len(content(finished)) == 60 + 4 + 6 + 3 * 2 + 2 + 1 + 1


def test_caption_pairs_are_true_and_false_of_one_image(finished):
  images, boxes = finished / "images", finished / "test.boxes.jsonl"
  read = JsonlSource(finished / "test_captions.jsonl", images, boxes, 0.0)
  assert len(read) == 12
  for index in range(0, 12, 2):
    own, other = read[index], read[index + 1]
    assert own.record == SceneSource("test", 0, 6)[index // 2].record
    assert other.record.image == own.record.image and other.boxes == own.boxes
    assert other.record.label == 1 - own.record.label
    assert {own.record.subj, own.record.obj} == {other.record.subj, other.record.obj}
    relation = RELATIONS[other.record.relation]
    names = other.record.subj, other.record.obj
    assert relation.holds(*(other.boxes[name] for name in names)) is bool(other.record.label)
    assert other.record.caption == relation.caption(*names)


def test_conversations_are_the_teachers(finished):
  records = [json.loads(line) for line in (finished / "train.jsonl").read_text().splitlines()]
  for name, form, count in (("chains", "chain", 20), ("direct", "direct", 60)):
    rows = [json.loads(line) for line in (finished / f"{name}.jsonl").read_text().splitlines()]
    assert len(rows) == count
    for record, row in zip(records, rows, strict=False):
      answer = answers.STATEMENT.parse(row["answer"])
      assert (answer.form, answer.verdict) == (form, record["label"])
      assert row["image"] == record["image"] and row["question"].startswith(record["caption"])


def test_an_interrupted_run_resumes_and_rewrites_partial_files(finished, tmp_path):
  assert run(tmp_path) == 0
  whole = content(tmp_path)
  assert whole == content(finished)
  (tmp_path / "test.jsonl").unlink()
  for path in ("images/test_000003.png", "train.jsonl", "images/train_000001.png", "chains.jsonl"):
    (tmp_path / path).write_bytes(whole[path][: len(whole[path]) // 2])
  lines = whole["validation.jsonl"].splitlines(keepends=True)
  (tmp_path / "validation.jsonl").write_bytes(b"".join(lines[:2]))
  (tmp_path / "images" / "test_000001.png").unlink()
  kept = tmp_path / "images" / "test_000002.png"
  before = kept.stat().st_mtime_ns
  assert run(tmp_path) == 0
  assert content(tmp_path) == whole
  assert kept.stat().st_mtime_ns == before


def test_finished_splits_are_not_drawn_again(finished, monkeypatch):
  described = []
  describe = SceneSource.describe
  monkeypatch.setattr(writing, "render", lambda *_: pytest.fail("drawn again"))
  monkeypatch.setattr(
    SceneSource, "describe", lambda self, i: described.append(i) or describe(self, i)
  )
  assert run(finished) == 0
  assert len(described) == 60 + 4  # conversations and contact sheet


def test_another_config_in_the_same_folder_is_refused(finished, capsys):
  assert run(finished, "--config.seed=1") == 2
  assert "seed" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.counts.train=61", "even number"),
    ("--config.chains=80", "counts.train is 60"),
    ("--config.objects=(1, 2)", "needs 2 objects"),
  ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
  tmp_path, capsys, override, message
):
  assert run(tmp_path, override) == 2
  assert message in capsys.readouterr().err
  assert not content(tmp_path)


def test_every_leaf_is_read(tmp_path):
  settings = config.load("configs/scenes.py:8b", ["--config.image_size=32", *SMALL])
  command.run(settings, epath.Path(tmp_path), None)
  assert not config.unread(settings)
  assert Image.open(tmp_path / "images" / "train_000000.png").size == (32, 32)


def test_unknown_preset_lists_the_known_ones(tmp_path, capsys):
  assert cli.main(["scenes", "--config", "configs/scenes.py:70b", "--workdir", str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert "tiny" in error and "8b" in error


@pytest.mark.slow
def test_ten_kills_leave_no_trace(tmp_path):
  overrides = [*SMALL[1:], "--config.counts.train=600"]
  arguments = [sys.executable, "-m", "spatial_vlm.cli", "scenes", *overrides, "--workdir"]
  environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}

  def start(workdir):
    return subprocess.Popen([*arguments, str(workdir)], env=environment, stderr=subprocess.DEVNULL)

  assert start(tmp_path / "whole").wait() == 0
  images = tmp_path / "killed" / "images"
  for enough in sorted(random.Random(0).sample(range(400), 10)):
    process = start(tmp_path / "killed")
    while process.poll() is None and len(list(images.glob("*.png"))) <= enough:
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  assert start(tmp_path / "killed").wait() == 0
  assert content(tmp_path / "killed") == content(tmp_path / "whole")
