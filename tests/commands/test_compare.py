"""compare: every row from stored answers, resumed after an interruption."""

import json

import pytest

from spatial_vlm import config
from spatial_vlm.inference.generation import BatchGenerator

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
  assert rows[6]["method"].startswith("reuse, ") and len(rows) == 8
  assert all(r["n"] == 16 and r["seconds_p50"] > 0 for r in rows)
  assert [r["paired"]["n"] for r in rows[1:]] == [16] * 7
  chain, reuse, none, wrong, random, everything, part, bc = rows
  assert chain["hit_rate"] is None and reuse["hit_rate"] > 0 and everything["hit_rate"] == 1
  assert everything["prompt_tokens_mean"] > wrong["prompt_tokens_mean"] > none["prompt_tokens_mean"]
  assert part["behaviors"] < reuse["behaviors"] and part["hit_rate"] <= reuse["hit_rate"]
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
    ({"bc_checkpoint": "no/such/folder"}, "no/such/folder does not exist"),
    ({"data.records": "absent.jsonl"}, "absent.jsonl"),
  ],
)
def test_wrong_settings_are_refused_on_one_line(refused, changes, wrong, message):
  assert message in refused("compare", {**changes, **wrong})
