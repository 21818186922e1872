"""`dapo`: aligns a policy by DAPO."""

import json
import logging

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from spatial_vlm import config, metrics
from spatial_vlm.answers import render_short
from spatial_vlm.data import conversations
from spatial_vlm.data.conversations import Conversation
from spatial_vlm.inference.questions import QuestionBuilder, load_recall
from spatial_vlm.rollout import engine
from spatial_vlm.tasks import TASKS
from spatial_vlm.train import policy_optimization, rl_data, rollout_buffer


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run, dapo_changes):
  workdir = tmp_path_factory.mktemp("dapo")
  done = run("dapo", workdir, dapo_changes)
  assert done.code == 0
  return workdir, done.configs[0]


def test_what_it_writes(finished, taught):
  workdir, settings = finished
  records = metrics.read_metrics(workdir)
  assert [record["step"] for record in records] == [0, 1, 2, 3]
  assert [record["step"] for record in records if "validation/accuracy" in record] == [0, 2, 3]
  for record in records[1:]:
    assert record["kept/groups"] > 0 and np.isfinite(list(record.values())).all()
    assert 2 <= record["rounds"] <= 4  # 6 prompts a round for 8 groups
    assert {
      "ratio",
      "clip_high",
      "entropy",
      "kept/reward",
      "sampled/accuracy",
      "grad_norm",
    } <= record.keys()
    assert record["sampled/mixed_outcomes"] >= record["kept/groups"] / (record["rounds"] * 6) - 1e-6
    assert record["rollout_logprob_gap"] < 1e-4
    some = 1 - record["sampled/all_right"] - record["sampled/all_wrong"]
    np.testing.assert_allclose(record["sampled/mixed_outcomes"], some, atol=1e-6)
  before, after = (load_file(f / "model.safetensors") for f in (taught, workdir / "export"))
  assert before.keys() == after.keys()
  assert not any(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_on_eight_devices_it_draws_the_same(finished, run, dapo_changes, tmp_path):
  """The first batch is drawn from the same weights on any number of devices."""
  mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
  assert run("dapo", tmp_path, {**dapo_changes, **mesh, "steps": 1}, devices=8).code == 0
  found, expected = (metrics.read_metrics(workdir)[1] for workdir in (tmp_path, finished[0]))
  for name in ("rounds", "kept/groups", "sampled/accuracy", "sampled/length_tokens", "kept/reward"):
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)


SLOTS = {"engine.kind": "slots", "engine.prompt_slots": 3, "engine.samples_per_slot": 2}


@pytest.mark.slow
def test_an_interrupted_run_in_slots_equals_an_uninterrupted_one(
  tmp_path, run, dapo_changes, outcome, before_saving
):
  changes = {**dapo_changes, **SLOTS, "steps": 2}
  assert run("dapo", tmp_path / "whole", changes).code == 0
  with before_saving(2):
    run("dapo", tmp_path / "cut", changes)
  assert run("dapo", tmp_path / "cut", changes).code == 0
  assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_in_slots_it_draws_the_same(finished, run, dapo_changes, tmp_path):
  """The next prompts of a round take slots as they become free; the answers are those that start together."""
  assert run("dapo", tmp_path, {**dapo_changes, **SLOTS, "steps": 1}).code == 0
  found, expected = (metrics.read_metrics(workdir)[1] for workdir in (tmp_path, finished[0]))
  for name in ("rounds", "kept/groups", "sampled/accuracy", "sampled/length_tokens", "kept/reward"):
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
  assert found["rollout_logprob_gap"] < 1e-4


OF_OTHER_ENGINES = {
  f"engine.{name}"
  for name in (
    *("prompt_slots", "samples_per_slot", "transfer", "checksums", "dtype", "in_flight"),
    "timeout_s",
  )
}
"""Settings that the engine in this process has no use for; `train/engines.py` reads them for the others."""


def test_every_leaf_of_every_preset_is_read(finished):
  assert {*config.unread(finished[1])} <= OF_OTHER_ENGINES | {"behavior_tokens"}
  for preset in ("tiny", "reuse", "8b"):
    leaves = config.leaves(config.read_preset(f"configs/dapo.py:{preset}"))
    assert leaves.keys() == config.leaves(finished[1]).keys()


def test_preset_8b_carries_the_published_settings():
  leaves = config.leaves(config.read_preset("configs/dapo.py:8b"))
  published = {
    "groups_per_batch": 512,
    "group_size": 16,
    "minibatches": 16,
    "eps_low": 0.2,
    "eps_high": 0.28,
  }
  assert {name: leaves[name] for name in published} == published
  assert config.leaves(config.read_preset("configs/sft.py:8b"))["epochs"] == 3


@pytest.mark.slow
def test_a_prolonged_run_equals_a_longer_one(run, dapo_changes, tmp_path, outcome):
  changes = {**dapo_changes, "optimizer.schedule": "constant", "validate_steps": 1}
  for name, steps in (("prolonged", 1), ("prolonged", 2), ("longer", 2)):
    assert run("dapo", tmp_path / name, {**changes, "steps": steps}).code == 0
  assert outcome(tmp_path / "prolonged") == outcome(tmp_path / "longer")


def test_a_finished_run_is_unchanged_by_another_start(finished, run, dapo_changes, outcome):
  before = outcome(finished[0])
  assert run("dapo", finished[0], dapo_changes).code == 0
  assert outcome(finished[0]) == before


@pytest.mark.parametrize(
  ("every", "calls"),
  [
    (1, (3, 1)),
    *(pytest.param(*more, marks=pytest.mark.slow) for more in [(1, (2,)), (2, (1, 2, 2))]),
  ],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(
  finished, tmp_path, run, dapo_changes, outcome, before_saving, every, calls
):
  """Checkpoints are written between two rounds of one batch and after an update."""
  changes = {**dapo_changes, "checkpoint_steps": every}
  for call in calls:
    with before_saving(call):
      run("dapo", tmp_path, changes)
  assert run("dapo", tmp_path, changes).code == 0
  assert outcome(tmp_path) == outcome(finished[0])


@pytest.mark.parametrize(
  "stops",
  [
    (("collect", 2), ("update_policy", 2)),
    pytest.param((("update_policy", 1), ("generate", 4)), marks=pytest.mark.slow),
  ],
)
def test_interrupted_within_a_round_and_an_update(
  finished, tmp_path, run, dapo_changes, outcome, stopped_at, stops
):
  owners = {"collect": rollout_buffer, "update_policy": policy_optimization, "generate": engine}
  for name, call in stops:
    with stopped_at(owners[name], name, call):
      run("dapo", tmp_path, dapo_changes)
  assert run("dapo", tmp_path, dapo_changes).code == 0
  assert outcome(tmp_path) == outcome(finished[0])


def test_interrupted_in_a_validation(finished, tmp_path, run, dapo_changes, outcome, stopped_at):
  for call in (1, 4):  # before the first batch, and after the third round of sampling
    with stopped_at(engine, "generate", call):
      run("dapo", tmp_path, dapo_changes)
  assert run("dapo", tmp_path, dapo_changes).code == 0
  assert outcome(tmp_path) == outcome(finished[0])


@pytest.fixture(scope="module")
def taught_short(tmp_path_factory, run, extracted, taught, scenes_folder):
  """The taught model after `sft` on a short answer of each verdict to every question with a behavior."""
  folder = tmp_path_factory.mktemp("taught_short")
  records = list(map(json.loads, (scenes_folder / "train.jsonl").read_text().splitlines()))
  builder = QuestionBuilder(TASKS["scenes"], "chain", load_recall(extracted / "index", 48))
  questions = builder.build_all([record["caption"] for record in records])
  rows = 5 * [  # few statements have a behavior
    Conversation(
      record["image"],
      question.text,
      render_short(question.behavior.name, comparison, verdict),
      system=question.system,
    )
    for record, question in zip(records, questions, strict=True)
    for comparison, verdict in (("x=20 < x=40", 1), ("x=40 > x=20, so it is not left", 0))
    if question.behavior
  ]
  conversations.write(folder / "rows.jsonl", rows)
  changes = {
    "checkpoint": taught,
    "data.conversations": folder / "rows.jsonl",
    "data.images": scenes_folder / "images",
    "data.shapes": "((128, 64),)",
    "batch_size": 8,
    "optimizer.learning_rate": 5e-3,
  }
  assert run("sft", folder / "run", changes).code == 0
  return folder / "run" / "export"


def test_prompts_with_behaviors_are_trained_on_and_resume_bit_for_bit(
  run, extracted, taught_short, dapo_changes, outcome, stopped_at, tmp_path, monkeypatch
):
  """Two batches with the length reward; a start is stopped between two rounds, another within an update."""
  changes = dapo_changes | {
    "checkpoint": taught_short,
    "behaviors": extracted / "index",
    "max_new_tokens": 48,
    "data.prompt_shapes": "((112, 64),)",
    "rewards": "(('accuracy', 1.0), ('overlong', 1.0), ('length', 0.5))",
    "steps": 2,
  }
  asked = []
  original = rl_data.make_requests
  monkeypatch.setattr(
    rl_data,
    "make_requests",
    lambda p, m, rows, *more: asked.extend(rows) or original(p, m, rows, *more),
  )
  assert run("dapo", tmp_path / "whole", changes).code == 0
  recalled = [row for row in asked if row.system]
  assert recalled and all("Use behavior_" in row.system for row in recalled)
  assert all(row.text.endswith("True? Reasoning, Conclusion.") for row in recalled)
  records = metrics.read_metrics(tmp_path / "whole")
  assert [record["step"] for record in records] == [0, 1, 2]
  assert all(record["kept/groups"] > 0 for record in records[1:])
  for owner, name, call in (
    (rollout_buffer, "collect", 2),
    (policy_optimization, "update_policy", 2),
  ):
    with stopped_at(owner, name, call):
      run("dapo", tmp_path / "stopped", changes)
  assert run("dapo", tmp_path / "stopped", changes).code == 0
  assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_behaviors_from_validation_records_are_refused(refused, extracted, dapo_changes, tmp_path):
  """The handbook names its records by their split: a validation file of that name is the same split."""
  held_out = tmp_path / "train.jsonl"
  held_out.write_bytes(dapo_changes["data.validation"].read_bytes())
  changes = {"behaviors": extracted / "index", "data.validation": held_out}
  assert "evaluation records" in refused("dapo", {**dapo_changes, **changes})
  assert "no/such" in refused("dapo", {**dapo_changes, "behaviors": "no/such"})


def test_a_task_without_mixed_outcomes_ends_with_a_message(
  nano, tmp_path, run, dapo_changes, capfd
):
  """Random weights never answer: every group is wrong, and the run ends without an update.

  The settings that programs are compiled with are those of `finished`.
  """
  changes = {
    **dapo_changes,
    "checkpoint": nano,
    "max_rollout_rounds": 2,
  }
  assert run("dapo", tmp_path, changes).code == 0
  records = metrics.read_metrics(tmp_path)[1:]
  assert [r["kept/groups"] for r in records] == [0] * 3
  assert [r["rounds"] for r in records] == [2] * 3
  assert [r["sampled/all_wrong"] for r in records] == [1] * 3
  before, after = (load_file(f / "model.safetensors") for f in (nano, tmp_path / "export"))
  assert all(np.array_equal(before[name], after[name]) for name in before)
  said = capfd.readouterr().out
  assert "batch 1: after 2 rounds 0 of 8 groups" in said and "no update was made" in said


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"groups_per_batch": 9}, "groups_per_batch 9 cannot be cut into 2 minibatches"),
    (
      {"micro_batches": 3},
      "micro_batches is 3; a minibatch of 4 groups of 4 answers can be cut into 1, 2",
    ),
    ({"group_size": 1}, "group_size is 1; it must be at least 2"),
    ({"overlong_cache_tokens": 999}, "overlong_cache_tokens is 999"),
    ({"temperature": 0}, "temperature is 0.0"),
    ({"max_rollout_rounds": 0}, "max_rollout_rounds is 0"),
    ({"steps": 0}, "steps is 0"),
    ({"checkpoint_steps": 0}, "checkpoint_steps is 0 and checkpoint_minutes is 0.0; set at least"),
    ({"answer_lengths": "(0,)"}, "answer_lengths is (0,)"),
    ({"remat": "x"}, "remat is 'x'"),
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"objectives": "(('ppo', 1.0),)"}, "names are dapo, gspo, kl_reference, a weight is above 0"),
    ({"objectives": "(('dapo', -1.0),)"}, "a weight is above 0"),
    ({"objectives": "()"}, "objectives is (); it must be one or more pairs (name, weight)"),
    (
      {"rewards": "(('style', 1.0),)"},
      "names are accuracy, overlong, length",
    ),
    ({"data.prompt_shapes": "((20, 64),)"}, "the largest of prompt_shapes holds 20 and 64"),
    ({"data.prompt_shapes": "((20, 99), (64, 64))"}, "no shape of ((20, 99), (64, 64)) holds all"),
    ({"data.validation": "absent.jsonl"}, "absent.jsonl"),
    ({"checkpoint": "no/such/folder"}, "no/such/folder (checkpoint) does not exist"),
    ({"mesh.fsdp": 3}, "multiply to 1"),
    (
      {"engine.kind": "slots", "engine.prompt_slots": 1, "engine.samples_per_slot": 1},
      "hold 1 answers on each part of the mesh",
    ),
  ],
)
def test_wrong_settings_are_refused(refused, dapo_changes, changes, message):
  lines = 2 if changes.get("data.prompt_shapes") == "((20, 64),)" else 1
  assert message in refused("dapo", {**dapo_changes, **changes}, lines=lines)


@pytest.mark.parametrize("leaf", ["data.validation", "data.evaluation"])
def test_evaluation_records_are_refused_as_training_records(refused, dapo_changes, leaf):
  message = refused("dapo", {**dapo_changes, leaf: dapo_changes["data.records"]}, lines=4)
  assert "64 of the 64 evaluation pairs" in message and "drop_shared" in message


@pytest.mark.slow
def test_broken_records_are_reported_and_skipped(
  run, refused, dapo_changes, broken, tmp_path, caplog
):
  changes, path, reasons = broken("records", "train.jsonl")
  changes = {
    **dapo_changes,
    **changes,
    "steps": 6,
    "rollout_batch_size": 16,
    "max_rollout_rounds": 1,
  }
  with caplog.at_level(logging.WARNING):
    assert run("dapo", tmp_path / "run", {**changes, "data.max_bad_share": 0.2}).code == 0
  for line, reason in reasons.items():
    reports = [text for text in caplog.messages if f"{path}:{line}: " in text and reason in text]
    assert len(reports) == 1, (line, caplog.messages)
  error = refused("dapo", {**changes, "data.max_bad_share": 0.05}, lines=6)
  assert "5 of 64 records" in error


@pytest.mark.slow
def test_unreadable_images_count_towards_the_limit(run, dapo_changes, broken, tmp_path, capsys):
  changes, path, _ = broken("validation", "validation.jsonl")
  lines = path.read_text().splitlines()
  path.write_text("\n".join([lines[6], *lines[7:]]))
  changes = {**dapo_changes, **changes, "steps": 1}
  assert run("dapo", tmp_path / "run", {**changes, "data.max_bad_share": 0.1}).code == 0
  capsys.readouterr()
  assert run("dapo", tmp_path / "other", {**changes, "data.max_bad_share": 0.01}).code == 2
  error = capsys.readouterr().err
  assert "1 of 26 records" in error and f"{path}:1: " in error


@pytest.mark.kills
def test_ten_kills_leave_no_trace(after_ten_kills, dapo_changes):
  whole, killed = after_ten_kills("dapo", {**dapo_changes, "steps": 25})
  assert killed == whole and "export/model.safetensors" in whole and len(whole["metrics"]) == 26


def test_skipped_records_are_counted_by_the_process_that_read_them(monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert rl_data.own_skipped([[3, 5], [7]]) == [7]
  assert rl_data.own_skipped([[3, 5], [7], [5]]) == [3, 5, 7]
