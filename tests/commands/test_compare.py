"""compare: every row from stored answers, resumed after an interruption."""

import json
import shutil

import pytest
from etils import epath

from spatial_vlm import config
from spatial_vlm.inference.generation import BatchGenerator
from spatial_vlm.reuse.handbook.handbook import Handbook
from spatial_vlm.reuse.index.index_folder import load_index, save_index

ROWS = [
  *("full chain", "reuse", "short, no behavior", "short, wrong behavior", "short, random behavior"),
  "short, all behaviors",
]


@pytest.fixture(scope="module")
def changes(taught, scenes_folder, extracted):
  return {
    "checkpoint": taught,
    "behaviors": extracted / "index",
    "data.records": scenes_folder / "test.jsonl",
    "data.images": scenes_folder / "images",
    "data.boxes": scenes_folder / "test.boxes.jsonl",
    "limit": 16,
    "batch_size": 8,
    "handbook_shares": (0.5,),
    "max_new_tokens": 48,
    "timed_questions": 2,
  }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run, changes, taught):
  workdir = tmp_path_factory.mktemp("compare")
  done = run("compare", workdir, {**changes, "bc_checkpoint": taught})
  assert done.code == 0
  return workdir, done


def test_every_arm_is_measured_on_the_same_records(finished):
  workdir, _ = finished
  rows = json.loads((workdir / "results.json").read_text())["rows"]
  assert [r["method"] for r in rows[:6]] == ROWS and rows[-1]["method"] == "BC-SFT"
  assert [r["method"][:7] for r in rows[6:8]] == ["reuse, "] * 2 and len(rows) == 9
  assert all(r["n"] == 16 and r["seconds_p50"] > 0 for r in rows)
  assert [r["paired"]["n"] for r in rows[1:]] == [16] * 8
  chain, reuse, none, wrong, random, everything, part, padded, bc = rows
  assert chain["hit_rate"] is None and reuse["hit_rate"] > 0 and everything["hit_rate"] == 1
  assert everything["prompt_tokens_mean"] > wrong["prompt_tokens_mean"] > none["prompt_tokens_mean"]
  assert everything["behaviors"] == reuse["behaviors"] > 1
  assert part["behaviors"] < reuse["behaviors"] and part["hit_rate"] <= reuse["hit_rate"]
  assert padded["behaviors"] > reuse["behaviors"] and padded["hit_rate"] >= reuse["hit_rate"]
  assert bc["accuracy"] == none["accuracy"]  # the same policy here
  report = (workdir / "report.md").read_text()
  assert "(accuracy_tokens.png)" in report and (workdir / "accuracy_tokens.png").exists()


def test_an_interrupted_comparison_resumes(finished, run, changes, taught, stopped_at, tmp_path):
  changes = {**changes, "bc_checkpoint": taught, "timed_questions": 0}
  with stopped_at(BatchGenerator, "answer", 6):  # in the third row
    run("compare", tmp_path / "run", changes)
  stored = sorted(path for path in (tmp_path / "run").rglob("part-*") if path.is_file())
  assert 4 <= len(stored) < 16
  times = [path.stat().st_mtime_ns for path in stored]
  assert run("compare", tmp_path / "run", changes).code == 0
  assert [path.stat().st_mtime_ns for path in stored] == times
  accuracies = [
    [(r["method"], r["accuracy"], r["total_tokens_mean"]) for r in json.loads(text)["rows"]]
    for text in ((f / "results.json").read_text() for f in (finished[0], tmp_path / "run"))
  ]
  assert accuracies[0] == accuracies[1]


def test_answers_of_another_policy_or_handbook_are_refused(
  finished, run, changes, taught, capsys, tmp_path
):
  """A row of BC-SFT may be added later, once; another policy would show the answers of the first."""
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  for folder in ("BC_SFT", "config.json"):
    shutil.rmtree(workdir / folder, ignore_errors=True)
  (workdir / "config.json").unlink()
  changes = {**changes, "timed_questions": 0}
  assert run("compare", workdir, changes).code == 0
  assert run("compare", workdir, {**changes, "bc_checkpoint": taught}).code == 0
  shutil.copytree(taught, tmp_path / "other")
  capsys.readouterr()
  assert run("compare", workdir, {**changes, "bc_checkpoint": tmp_path / "other"}).code == 2
  assert f"before bc_checkpoint {tmp_path / 'other'} changed" in capsys.readouterr().err
  (workdir / "config.json").unlink()
  index = tmp_path / "index"
  shutil.copytree(changes["behaviors"], index)
  other = load_index(index)
  best = other.with_handbook(Handbook(1, 9999, other.handbook.behaviors[:1]))
  save_index(best, epath.Path(index), "spatial_vlm/assets/tiny_encoder")
  assert run("compare", workdir, {**changes, "behaviors": index}).code == 2
  assert f"before behaviors {index} changed: " in capsys.readouterr().err


def test_every_leaf_of_every_preset_is_read(finished):
  (settings,) = finished[1].configs
  assert not set(config.unread(settings))
  for preset in ("tiny", "8b"):
    leaves = config.leaves(config.read_preset(f"configs/compare.py:{preset}"))
    assert leaves.keys() == config.leaves(settings).keys()


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"handbook_shares": (0.5, 1.0)}, "handbook_shares is (0.5, 1.0)"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"behaviors": "absent"}, "absent"),
    ({"bc_checkpoint": "no/such/folder"}, "no/such/folder (bc_checkpoint) does not exist"),
    ({"data.records": "absent.jsonl"}, "absent.jsonl"),
  ],
)
def test_wrong_settings_are_refused_on_one_line(refused, changes, wrong, message):
  assert message in refused("compare", {**changes, **wrong})
