"""`evaluate` on files of benchmarks: TSV and Parquet, several images, strict and extracted figures."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from benchmark_files import (
  IMAGE,
  cell,
  choice_row,
  cvbench_columns,
  encoded,
  mmbench_rows,
  png,
  write_parquet,
  write_tsv,
)

import spatial_vlm
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.tasks import find_worded_task
from spatial_vlm.tasks.benchmarks import BENCHMARKS

TINY_BASE = Path(spatial_vlm.__file__).parent / "assets" / "tiny_base"


@pytest.fixture
def changes():
  shapes = {"prompt_shapes": "((512, 64),)", "max_new_tokens": 8, "timed_questions": 0}
  data = {"data.images": "", "data.boxes": "", "checkpoint": TINY_BASE}
  return {**shapes, **data, "method": "direct", "batch_size": 4}


def predictions(workdir):
  return [
    Prediction.from_json(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()
  ]


def test_a_tsv_is_answered_and_scored_with_its_rotations(run, changes, tmp_path, capsys):
  path = write_tsv(tmp_path / "MMBench_DEV_EN.tsv", mmbench_rows())
  changes = {**changes, "task": "mmbench", "data.records": path}
  assert run("evaluate", tmp_path / "run", changes).code == 0
  stored = predictions(tmp_path / "run")
  assert [p.group for p in stored] == ["3"] * 4 + ["7"] * 3
  assert [p.label for p in stored] == [0, 3, 2, 1, 0, 2, 1]
  assert stored[0].strata == {"l2-category": "relation_reasoning", "split": "dev"}
  assert all(p.relation == "spatial_relationship" and p.text for p in stored)
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert results["split"] == "MMBench_DEV_EN" and results["rows"][0]["n"] == 7
  assert results["held_out"] and results["rows"][0]["groups"]["strict"]["n"] == 2
  assert "groups all right" in capsys.readouterr().out


def test_zero_shot_chooses_among_the_options_of_each_question(run, changes, tmp_path):
  rows = [choice_row(n, image=encoded(n)) for n in range(3)] + mmbench_rows()
  changes |= {"task": "mmbench", "method": "zero-shot"}
  changes["data.records"] = write_tsv(tmp_path / "x.tsv", rows)
  assert run("evaluate", tmp_path / "run", changes).code == 0
  stored = predictions(tmp_path / "run")
  assert len(stored) == 10
  assert all(0 <= p.verdict < n for p, n in zip(stored, [2] * 3 + [4] * 4 + [3] * 3, strict=True))


def test_parquet_shards_are_answered_and_bad_rows_left_out(run, changes, tmp_path, caplog):
  columns = cvbench_columns()
  columns["image"][2] = {"bytes": b"no image", "path": None}
  columns["answer"][3] = "(Z)"
  for shard in range(2):
    rows = slice(0, 3) if shard == 0 else slice(3, 5)
    name = f"test-{shard:05d}-of-00002.parquet"
    part = {key: values[rows] for key, values in columns.items()}
    write_parquet(tmp_path / name, part, {"image": IMAGE})
  changes |= {"task": "cvbench", "data.max_bad_share": 0.5, "prompt": "explained"}
  changes["data.records"] = tmp_path / "test-*.parquet"
  with caplog.at_level(logging.WARNING):
    assert run("evaluate", tmp_path / "run", changes).code == 0
  assert [(p.relation, p.label) for p in predictions(tmp_path / "run")] == [
    ("Count", 5),
    ("Relation", 1),
    ("Count", 0),
  ]
  assert "00000-of-00002.parquet:3: " in caplog.text and "00001-of-00002.parquet:1: " in caplog.text
  assert "'(Z)'" in caplog.text
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  skipped = [(s["id"], Path(s["file"]).name[5:10], s["line"]) for s in results["skipped"]]
  assert skipped == [(None, "00001", 1), (2, "00000", 3)] and results["rows"][0]["skipped"] == 2


def test_every_image_of_a_question_is_shown(run, changes, tmp_path):
  """BLINK asks about up to four images: each takes its tokens, and each changes what the model sees."""
  asked = {"sub_task": ["Relative_Depth"] * 4, "question": ["Which?"] * 4, "answer": ["(A)"] * 4}
  columns = {
    "image_1": [cell(n) for n in (0, 0, 0, 0)],
    "image_2": [None, cell(1), cell(2), cell(2)],
    "image_3": [None, None, None, cell(3)],
    "choices": [["a", "b"]] * 4,
    **asked,
  }
  features = dict.fromkeys(["image_1", "image_2", "image_3"], IMAGE)
  path = write_parquet(tmp_path / "val-00000-of-00001.parquet", columns, features)
  changes |= {"task": "blink", "data.records": path, "prompt_shapes": "((512, 256),)"}
  assert run("evaluate", tmp_path / "run", changes).code == 0
  tokens = [p.prompt_tokens for p in predictions(tmp_path / "run")]
  image_tokens = tokens[1] - tokens[0]
  assert image_tokens > 2 and tokens[1] == tokens[2] and tokens[3] - tokens[2] == image_tokens
  task = find_worded_task("blink", "project", "plain")
  source = task.read(path, "", None, 0.0)
  images = [example.images for example in map(source.__getitem__, range(4))]
  assert [len(found) for found in images] == [1, 2, 2, 3]
  assert not np.array_equal(images[1][1], images[2][1])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"template": "tri"}, "template is 'tri'; choose one of project, vlmevalkit"),
    ({"prompt": "long"}, "prompt is 'long'; choose one of plain, explained"),
    (
      {"task": "realworldqa", "method": "zero-shot"},
      "answers of the task realworldqa begin with any",
    ),
    (
      {"data.boxes": "boxes.jsonl", "data.records": "x.tsv"},
      "benchmarks have no true boxes: set it to ''",
    ),
    ({"data.records": "x.csv"}, "its suffix must be .tsv, .parquet, .json"),
    ({"data.records": "none.tsv"}, "none.tsv (data.records) does not exist"),
  ],
)
def test_wrong_settings_are_refused(refused, changes, change, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("x.csv", "x.tsv", "boxes.jsonl"):
    (tmp_path / name).touch()
  assert message in refused("evaluate", {**changes, "task": "mmbench", **change})


def test_too_many_bad_rows_end_the_run(refused, changes, tmp_path):
  rows = [choice_row(n, image=encoded(n), answer="AZZZ"[n]) for n in range(4)]
  changes |= {"task": "mmbench", "data.records": write_tsv(tmp_path / "x.tsv", rows)}
  assert "3 of 4 records" in refused("evaluate", changes, lines=4)


def benchmark_files(folder):
  """Writes a file of each benchmark's published schema with one bad row; returns task -> (file, folder of images)."""
  asked = {"question": "How are\ndoor and table?", "answer_options": ["a", "b", "c", "d"]}
  embspatial = [
    {**asked, "answer": n, "image": encoded(n), "data_source": "mp3d"} for n in (0, 3, 7)
  ]
  (folder / "embspatial_bench.json").write_text(json.dumps(embspatial))
  (folder / "a.jpeg").write_bytes(png(0))
  captions = [f"A mug {where} a table" for where in ("on", "under", "left of", "right of")]
  whatsup = [{"image_path": "data/a.jpeg", "caption_options": captions}, {"image_path": "a.jpeg"}]
  (folder / "controlled_images_dataset.json").write_text(json.dumps(whatsup))
  blink = [choice_row(n, image=encoded(n), category="Relative_Depth") for n in range(2)]
  write_tsv(folder / "BLINK.tsv", [*blink, blink[0] | {"index": 9, "answer": "Z"}])
  copies = [choice_row(n, image=encoded(n), qid=f"AB{end}") for n, end in enumerate(["", "-1"])]
  write_tsv(
    folder / "3dsrbench_v1_vlmevalkit_circular.tsv", [*copies, choice_row(8, image="999", qid="C")]
  )
  ends = " Please answer yes or no. Please answer strictly Yes or No."
  vsr = {"question": f"The cat is left of the mug.{ends}", "image": encoded()}
  words = enumerate(["Yes", "No", "?"])
  write_tsv(
    folder / "vsr_zeroshot.tsv", [{"index": n, **vsr, "answer": answer} for n, answer in words]
  )
  columns = {"question": ["Is there a cat?"] * 3, "answer": ["yes", "no", "perhaps"]}
  columns["image"] = [cell(n) for n in range(3)]
  write_parquet(folder / "pope.parquet", columns, {"image": IMAGE})
  letter, word = "only the letter of the correct option", "a single word or number"
  columns["question"] = [
    f"Where to?\nA. left\nB. right\nPlease answer directly with {letter} and nothing else.",
    *[f"How many cars are there?\nPlease answer directly with {word}."] * 2,
  ]
  columns["answer"] = ["B", "3", ""]
  write_parquet(folder / "realworldqa.parquet", columns, {"image": IMAGE})
  columns |= {"choices": [["left", "right"]] * 3, "answer": ["(A)", "(B)", "(C)"]}
  write_parquet(folder / "cvbench.parquet", columns, {"image": IMAGE})
  rows = [*mmbench_rows(), choice_row(99, image=encoded(), answer=None)]
  write_tsv(folder / "MMBench_DEV_EN.tsv", rows)
  return {
    "whatsup": ("controlled_images_dataset.json", folder),
    "cvbench": ("cvbench.parquet", ""),
    "blink": ("BLINK.tsv", ""),
    "embspatial": ("embspatial_bench.json", ""),
    "realworldqa": ("realworldqa.parquet", ""),
    "pope": ("pope.parquet", ""),
    "3dsrbench": ("3dsrbench_v1_vlmevalkit_circular.tsv", ""),
    "mmbench": ("MMBench_DEV_EN.tsv", ""),
    "vsr-zeroshot": ("vsr_zeroshot.tsv", ""),
  }


@pytest.mark.slow
def test_every_benchmark_is_answered_and_reported_in_both_readings(run, changes, tmp_path):
  files = benchmark_files(tmp_path)
  assert files.keys() == BENCHMARKS.keys()
  changes |= {"data.max_bad_share": 0.6, "prompt_shapes": "((256, 64),)", "batch_size": 8}
  for task, (file, images) in files.items():
    own = {"task": task, "data.records": tmp_path / file, "data.images": images}
    assert run("evaluate", tmp_path / task, changes | own).code == 0, task
    given = str((str(tmp_path / task),))
    assert run("report", tmp_path / f"{task}_report", {"runs": given}).code == 0, task
    found = json.loads((tmp_path / f"{task}_report" / "results.json").read_text())
    answered = {"whatsup": 1, "mmbench": 7}.get(task, 2)
    (row,) = found["rows"]
    assert (row["strict"]["n"], row["extracted"]["n"], row["skipped"]) == (answered, answered, 1)
    text = (tmp_path / f"{task}_report" / "report.md").read_text()
    assert "| skipped |" in text and "strict, 95 % CI | extracted, 95 % CI" in text
