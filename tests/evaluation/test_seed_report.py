"""Demos with several seeds, joined."""

import json

import pytest
from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.evaluation.seed_report import joined_rows, read_demos, seed_report, seed_table


@pytest.fixture
def demos(tmp_path):
  """Writes a finished demo: (name, seed, accuracy, further settings) -> folder."""

  def write(name, seed, accuracy, **settings):
    folder = tmp_path / name
    folder.mkdir()
    config = {"seed": seed, "chains": 4000, **settings}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    chain = {"method": "SFT, chain of thought", "accuracy": accuracy, "parse_rate": 1.0}
    chain |= {"generated_tokens_mean": 99.0, "total_tokens_mean": 149.0, "box_iou": None}
    (folder / "results.json").write_text(json.dumps({"rows": [chain]}))
    return folder

  return write


def test_mean_and_range_of_three_seeds(demos, tmp_path):
  for seed, accuracy in enumerate([0.82, 0.85, 0.88]):
    demos(f"seed{seed}", seed, accuracy, stages_at_once=1 + seed % 2)
  read = read_demos([f"{tmp_path}/seed*"])
  (row,) = joined_rows(read)
  assert row["accuracy"] == pytest.approx({"mean": 0.85, "min": 0.82, "max": 0.88})
  assert row["box_iou"] is None
  assert "| 85.0 (82.0–88.0) |" in seed_table(read)
  assert "the seeds 0, 1, 2" in seed_report(read, {"date": "today"})


def test_demos_that_differ_in_more_than_the_seed_are_refused(demos, tmp_path):
  first = demos("a", 0, 0.8)
  shorter, twin = demos("b", 1, 0.8, chains=100), demos("c", 0, 0.9)
  with pytest.raises(UsageError, match="differ in chains; give demos that differ in the seed"):
    read_demos([str(first), str(shorter)])
  with pytest.raises(UsageError, match="have the same seed, 0"):
    read_demos([str(first), str(twin)])
  with pytest.raises(UsageError, match="holds no finished demo"):
    read_demos([str(epath.Path(tmp_path) / "missing")])
  with pytest.raises(UsageError, match="no folders"):
    read_demos([f"{tmp_path}/x*"])
