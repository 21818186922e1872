"""`behaviors`: distils behaviors from a policy's own answers."""

import json
import logging

import pytest

from spatial_vlm import answers, config
from spatial_vlm.data.conversations import ConversationSource
from spatial_vlm.evaluation.results import RecallCount, recalls_json
from spatial_vlm.inference import generation
from spatial_vlm.reuse.index.index_folder import load_index


def test_the_index_names_procedures_and_where_they_come_from(extracted):
  index = load_index(extracted / "index")
  stored = [
    json.loads(line)
    for line in (extracted / "predictions" / "part-00000.jsonl").read_text().splitlines()
  ]
  assert len(index.handbook) > 0 and len(stored) == 17  # 16 answers and the mark of the end
  for behavior in index.handbook.behaviors:
    assert len(behavior.provenance) >= 2 and all(
      record.startswith("train:") for record in behavior.provenance
    )
    assert index.search([behavior.questions[0]], k=1)[0][0][0].name == behavior.name


def test_training_examples_are_verified_and_most_of_them_short(extracted, scenes_folder):
  source = ConversationSource(extracted / "conversations.jsonl", scenes_folder / "images", 0.0)
  labels = {
    json.loads(line)["image"]: json.loads(line)["label"]
    for line in (scenes_folder / "train.jsonl").read_text().splitlines()
  }
  rows = [json.loads(line) for line in (extracted / "conversations.jsonl").read_text().splitlines()]
  parsed = [answers.STATEMENT.parse(row["answer"]) for row in rows]
  assert len(source) == len(rows) > 8
  assert all(
    answer.verdict == labels[row["image"]] for answer, row in zip(parsed, rows, strict=True)
  )
  forms = [answer.form for answer in parsed]
  assert forms.count("chain") >= len(rows) // 4 and forms.count("short") > 0
  for row, form in zip(rows, forms, strict=True):
    assert row.get("system", "").startswith("Use behavior_") == (form == "short")
    assert "behavior_" not in row["question"]


def test_every_leaf_of_every_preset_is_read(run, behaviors_changes, tmp_path):
  """Those of `ask` are read with the extractor `teacher` (test_behaviors_of_a_file)."""
  done = run("behaviors", tmp_path, behaviors_changes)
  assert done.code == 0
  assert {name.partition(".")[0] for name in config.unread(done.configs[0])} == {"ask"}
  for preset in ("tiny", "8b", "chains"):
    leaves = config.leaves(config.read_preset(f"configs/behaviors.py:{preset}"))
    assert leaves.keys() == config.leaves(done.configs[0]).keys()


@pytest.mark.parametrize("call", [1, 2, 4])
def test_an_interrupted_run_equals_an_uninterrupted_one(
  extracted, tmp_path, run, behaviors_changes, outcome, stopped_at, call
):
  with stopped_at(generation.BatchGenerator, "answer", call):
    run("behaviors", tmp_path, {**behaviors_changes, "in_flight": 1})
  assert not (tmp_path / "index").exists()
  assert run("behaviors", tmp_path, behaviors_changes).code == 0
  assert outcome(tmp_path) == outcome(extracted)


def test_settings_applied_after_generation_reuse_stored_answers(
  tmp_path, run, behaviors_changes, capsys, monkeypatch
):
  """A lower min_support takes the stored answers."""
  assert run("behaviors", tmp_path, {**behaviors_changes, "min_support": 1000}).code == 2
  assert "lower min_support" in capsys.readouterr().err
  monkeypatch.setattr(generation.BatchGenerator, "answer", lambda *_: pytest.fail("asked again"))
  assert run("behaviors", tmp_path, behaviors_changes).code == 0


def test_recalled_behaviors_are_kept_when_the_handbook_is_full(
  extracted, tmp_path, run, behaviors_changes
):
  """A handbook limited to one behavior keeps the recalled one, not the one with the most chains."""

  def kept(**changes):
    changes = {**behaviors_changes, "max_entries": 1, **changes}
    assert run("behaviors", tmp_path / "run", changes).code == 0
    (behavior,) = load_index(tmp_path / "run" / "index").handbook.behaviors
    return behavior

  names = {b.name for b in load_index(extracted / "index").handbook.behaviors}
  best = kept()
  assert best.recalls == 0 and len(names) > 1
  other = min(names - {best.name})
  results = [tmp_path / "a.json", tmp_path / "b.json"]
  for path, name, successes in zip(results, (other, best.name), (2, 0), strict=True):
    counts = {name: RecallCount(2, successes, 30.0), "behavior_forgotten": RecallCount(9, 9, 9.0)}
    path.write_text(json.dumps({"split": "train", "recalls": recalls_json(counts)}))
  recalled = kept(recalls=",".join(map(str, results)))
  assert (recalled.name, recalled.recalls, recalled.utility) == (other, 2, 60)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"min_support": 0}, "min_support is 0"),
    ({"max_entries": 0}, "max_entries is 0; it must be at least 1"),
    ({"max_handbook_tokens": 0}, "max_handbook_tokens is 0; it must be"),
    ({"min_similarity": 2}, "min_similarity is 2.0"),
    ({"task": "vrs"}, "task is 'vrs'; choose one of vsr, scenes"),
    ({"recalls": "absent.json"}, "absent.json"),
    ({"full_share": 1.5}, "full_share is 1.5"),
    ({"duplicate_similarity": -1}, "duplicate_similarity is -1"),
    ({"max_instruction_tokens": 0}, "max_instruction_tokens is 0"),
    ({"extractor": "patern"}, "extractor is 'patern'; choose one of pattern, clusters, teacher"),
    ({"embedder": "no/such/encoder"}, "no/such/encoder"),
    ({"data.split": "test"}, "data.split is 'test', a split to measure on"),
    ({"review": "absent.yaml"}, "absent.yaml (review) does not exist"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"in_flight": 0}, "in_flight is 0"),
    ({"checkpoint": "no/such/folder"}, "no/such/folder (checkpoint) does not exist"),
    ({"data.records": "absent.jsonl"}, "absent.jsonl"),
  ],
)
def test_wrong_settings_are_refused_on_one_line(refused, behaviors_changes, changes, message):
  assert message in refused("behaviors", {**behaviors_changes, **changes})


def test_broken_records_are_reported_and_skipped(
  run, refused, behaviors_changes, told_records, broken, tmp_path, caplog
):
  changes, path, reasons = broken("records", "train.jsonl", told_records.parent)
  changes = {**behaviors_changes, **changes}
  with caplog.at_level(logging.WARNING):
    assert run("behaviors", tmp_path / "run", {**changes, "data.max_bad_share": 0.2}).code == 0
  for line, reason in reasons.items():
    assert any(f"{path}:{line}: " in text and reason in text for text in caplog.messages)
  # Record numbers keep their images even if records are skipped.
  images = [json.loads(line)["image"] for line in path.read_text().splitlines()[7:]]
  rows = [
    json.loads(line) for line in (tmp_path / "run" / "conversations.jsonl").read_text().splitlines()
  ]
  assert {row["image"] for row in rows} <= {"train_000000.png", *images}
  assert "5 of 64 records" in refused("behaviors", {**changes, "data.max_bad_share": 0.05}, lines=6)


@pytest.mark.kills
def test_ten_kills_leave_no_trace(after_ten_kills, behaviors_changes):
  whole, killed = after_ten_kills("behaviors", {**behaviors_changes, "batch_size": 2})
  assert killed == whole and "index/index-00000.json" in whole and whole["conversations.jsonl"]
