"""`sft`: fine-tunes a policy."""

import json
import logging
import signal

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from spatial_vlm import config, metrics
from spatial_vlm.commands import sft as command

PRETRAIN = {
  "from_scratch": True,
  "data.pretrain.scenes": "(8, 8)",
  "data.pretrain.objects": "(1, 2)",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run, sft_changes):
  workdir = tmp_path_factory.mktemp("sft")
  done = run("sft", workdir, sft_changes)
  assert done.code == 0
  return workdir, done.configs[0]


def test_what_it_writes(finished, nano):
  workdir, _ = finished
  records = metrics.read_metrics(workdir)
  assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
  assert all({"loss", "grad_norm", "target_tokens"} <= record.keys() for record in records)
  assert records[-1]["loss"] < records[0]["loss"]
  assert list((workdir / "tensorboard").iterdir())
  export = workdir / "export"
  written = {path.name for path in export.iterdir()}
  assert written == {path.name for path in nano.iterdir()} | {"README.md", "spatial_vlm.json"}
  before, after = (load_file(folder / "model.safetensors") for folder in (nano, export))
  assert before.keys() == after.keys()
  assert not any(np.array_equal(before[name], after[name]) for name in before)
  assert (export / "tokenizer.json").read_bytes() == (nano / "tokenizer.json").read_bytes()
  assert [path.name for path in (workdir / "checkpoints").iterdir()] == [
    "6"
  ]  # keep_checkpoints is 1


def test_a_finished_run_is_unchanged_by_another_start(finished, run, sft_changes, outcome):
  workdir, _ = finished
  before = outcome(workdir)
  assert run("sft", workdir, sft_changes).code == 0
  assert outcome(workdir) == before


@pytest.mark.slow
def test_on_eight_devices_it_learns_the_same(finished, run, sft_changes, tmp_path):
  mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
  assert run("sft", tmp_path, {**sft_changes, **mesh}, devices=8).code == 0
  for found, expected in zip(*map(metrics.read_metrics, (tmp_path, finished[0])), strict=True):
    assert found["target_tokens"] == expected["target_tokens"]
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-4)


def test_every_leaf_of_every_preset_is_read(finished, run, sft_changes, tmp_path):
  """Training on conversations reads some leaves, on rendered images the others."""
  pretrained = run("sft", tmp_path, {**sft_changes, **PRETRAIN})
  assert pretrained.code == 0
  unread = [set(config.unread(c)) for c in (finished[1], pretrained.configs[0])]
  assert unread[0] & unread[1] <= {"task"}  # `write_trained` reads it from the recorded settings
  names = [
    config.leaves(config.read_preset(f"configs/sft.py:{preset}"))
    for preset in ("tiny", "direct", "reuse", "bc", "pretrain", "8b")
  ]
  assert all(leaves.keys() == config.leaves(finished[1]).keys() for leaves in names)


@pytest.mark.parametrize(
  ("every", "call"),
  [
    (1, 4),
    (3, 2),
    *(pytest.param(*more, marks=pytest.mark.slow) for more in [(1, 1), (1, 6), (3, 1)]),
  ],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(
  finished, tmp_path, run, sft_changes, outcome, before_saving, every, call
):
  changes = {**sft_changes, "checkpoint_steps": every}
  with before_saving(call):
    run("sft", tmp_path, changes)
  assert not (tmp_path / "export").exists()
  assert run("sft", tmp_path, changes).code == 0
  assert outcome(tmp_path) == outcome(finished[0])


def test_ctrl_c_saves_a_checkpoint(
  finished, tmp_path, run, sft_changes, outcome, monkeypatch, capsys
):
  changes, original, steps = {**sft_changes, "checkpoint_steps": 6}, command.sft_step, []

  def step(*args, **kwargs):
    steps.append(1)
    if len(steps) == 2:
      signal.raise_signal(signal.SIGINT)
    return original(*args, **kwargs)

  monkeypatch.setattr(command, "sft_step", step)
  with pytest.raises(SystemExit) as ended:
    run("sft", tmp_path, changes)
  assert ended.value.code == 130
  assert "a checkpoint is saved; run the same command again" in capsys.readouterr().err
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
  assert run("sft", tmp_path, changes).code == 0
  assert len(steps) == 6 and outcome(tmp_path) == outcome(finished[0])


def test_pretraining_resumes_too(tmp_path, run, sft_changes, outcome, stopped_at):
  """Images are drawn from (seed, number): stages, order and requests continue where they were."""
  changes = {**sft_changes, **PRETRAIN, "checkpoint_steps": 2}
  assert run("sft", tmp_path / "whole", changes).code == 0
  for call in (4, 3):
    with stopped_at(command, "sft_step", call):
      run("sft", tmp_path / "parts", changes)
  assert run("sft", tmp_path / "parts", changes).code == 0
  assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch_size": 6, "micro_batches": 4}, "batch_size 6 is no multiple of micro_batches 4"),
    ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ({"micro_batches": 0}, "micro_batches is 0"),
    ({"log_steps": 4, "checkpoint_steps": 6}, "checkpoint_steps 6 is no multiple of log_steps 4"),
    ({"log_steps": 0}, "log_steps is 0"),
    ({"batch_size": 64, "epochs": 1}, "do not fill one batch"),
    (
      {"remat": "some"},
      "remat is 'some'; choose one of offload, full, context, attention, dots, none",
    ),
    ({"dtype": "float8"}, "dtype is 'float8'; choose one of float32, bfloat16"),
    ({"optimizer.schedule": "linear"}, "schedule is 'linear'"),
    ({"optimizer.warmup_steps": 9}, "warmup_steps is 9"),
    ({"mesh.data": 3}, "does not cover the 1 devices"),
    ({"checkpoint": "no/such/folder"}, "no/such/folder (checkpoint) does not exist"),
    ({"data.conversations": "absent.jsonl"}, "absent.jsonl"),
    ({"data.max_bad_share": 2}, "max_bad_share is 2"),
    ({**PRETRAIN, "data.pretrain.objects": "(1,)"}, "shorter"),
  ],
)
def test_wrong_settings_are_refused_on_one_line(refused, sft_changes, changes, message):
  assert message in refused("sft", {**sft_changes, **changes})


def test_evaluation_records_are_refused_as_training_data(
  refused, sft_changes, scenes_folder, tmp_path
):
  trained, held_out = scenes_folder / "train.jsonl", scenes_folder / "test.jsonl"
  message = refused("sft", {**sft_changes, "data.evaluation": trained}, lines=4)
  assert "16 of the 64 evaluation pairs" in message and str(trained) in message
  more = json.loads(trained.read_text().splitlines()[20])
  row = {"image": more["image"], "question": f"Is this so: {more['caption']}", "answer": "Yes."}
  mixed = tmp_path / "more.jsonl"
  mixed.write_text(json.dumps(row))
  mix = repr(((str(mixed), str(scenes_folder / "images"), 0.1),))
  message = refused("sft", {**sft_changes, "data.evaluation": trained, "data.mix": mix}, lines=4)
  assert "17 of the 64 evaluation pairs" in message
  later = {"data.evaluation": held_out, "batch_size": 64, "epochs": 1}
  assert "do not fill one batch" in refused("sft", {**sft_changes, **later})


def test_another_config_cannot_resume_the_run(finished, run, sft_changes, capsys):
  assert run("sft", finished[0], {**sft_changes, "optimizer.learning_rate": 1e-5}).code == 2
  assert "optimizer.learning_rate" in capsys.readouterr().err


def test_a_run_that_would_have_been_another_is_not_prolonged(finished, run, sft_changes, capsys):
  """The cosine schedule ends with the run."""
  assert run("sft", finished[0], {**sft_changes, "epochs": 4}).code == 2
  assert "epochs 3 → 4: the learning rates so far belong to a cosine" in capsys.readouterr().err


def test_a_run_is_not_prolonged_if_its_last_batch_was_made_of_leftovers(
  run, sft_changes, tmp_path, capsys
):
  changes = {**sft_changes, "optimizer.schedule": "constant", "batch_size": 5}
  overrides = [f"{leaf}={value}" for leaf, value in changes.items()]
  config.snapshot(config.load("configs/sft.py:tiny", overrides), epath.Path(tmp_path))
  (tmp_path / "results.json").touch()  # without any result, a run is just begun anew
  assert run("sft", tmp_path, {**changes, "epochs": 4}).code == 2
  assert "the last batches so far were made of what was left" in capsys.readouterr().err
  assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_a_prolonged_run_equals_a_longer_one(run, sft_changes, tmp_path, outcome):
  """The learning rate falls over 3 updates and stays; the run is prolonged from 4 to 6."""
  changes = {**sft_changes, "optimizer.decay_steps": 3}
  for name, epochs in (("prolonged", 2), ("prolonged", 3), ("longer", 3)):
    assert run("sft", tmp_path / name, {**changes, "epochs": epochs}).code == 0
  assert outcome(tmp_path / "prolonged") == outcome(tmp_path / "longer")
  assert len(outcome(tmp_path / "longer")["metrics"]) == 6


def test_a_checkpoint_of_another_optimizer_is_refused(finished, run, sft_changes, tmp_path, capsys):
  (tmp_path / "checkpoints").mkdir()
  (tmp_path / "checkpoints" / "6").symlink_to(finished[0] / "checkpoints" / "6")
  other = {
    **sft_changes,
    "checkpoint": without_deepstack(sft_changes["checkpoint"], tmp_path / "other"),
  }
  assert run("sft", tmp_path, other).code == 2
  assert "was written by another model or optimizer" in capsys.readouterr().err


def without_deepstack(folder, to):
  """The same folder, without DeepStack."""
  to.mkdir()
  for path in folder.iterdir():
    (to / path.name).write_bytes(path.read_bytes())
  sizes = json.loads((to / "config.json").read_text())
  sizes["vision_config"]["deepstack_visual_indexes"] = []
  (to / "config.json").write_text(json.dumps(sizes))
  tensors = load_file(folder / "model.safetensors")
  kept = {name: value for name, value in tensors.items() if "deepstack" not in name}
  save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
  return to


def test_broken_conversations_are_reported_and_skipped(
  run, refused, sft_changes, broken, tmp_path, caplog
):
  changes, path, reasons = broken("conversations", "chains.jsonl")
  changes = {**sft_changes, **changes, "epochs": 2, "optimizer.warmup_steps": 1}
  with caplog.at_level(logging.WARNING):
    assert run("sft", tmp_path / "run", {**changes, "data.max_bad_share": 0.5}).code == 0
  for line, reason in reasons.items():
    assert any(f"{path}:{line}: " in text and reason in text for text in caplog.messages)
  # 11 records are usable when the run begins: 22 rows in batches of 8, of which the last has two empty ones.
  assert len(metrics.read_metrics(tmp_path / "run")) == 3
  # Above the share: at once for what a look at the lines shows, …
  error = refused("sft", {**changes, "data.max_bad_share": 0.3}, lines=6)
  assert "5 of 16 records" in error and f"{path}:2: " in error


def test_too_many_unreadable_images_stop_the_run(run, sft_changes, broken, tmp_path, capsys):
  """Images are decoded, and found unreadable, in the middle of a run."""
  changes, path, _ = broken("conversations", "chains.jsonl")
  broken_line = path.read_text().splitlines()[6]
  path.write_text("\n".join([*path.read_text().splitlines()[7:], broken_line]))
  assert (
    run("sft", tmp_path / "run", {**sft_changes, **changes, "data.max_bad_share": 0.05}).code == 2
  )
  error = capsys.readouterr().err
  assert "1 of 10 records" in error and "torn.png" in error and f"{path}:10: " in error


def test_too_long_conversations_are_skipped(run, sft_changes, tmp_path, caplog):
  lengths = {"data.shapes": "((20, 64),)", "data.max_bad_share": 1.0}
  assert run("sft", tmp_path, {**sft_changes, **lengths}).code == 2
  assert "tokens and 64 patches; the largest of data.shapes holds 20 and 64" in caplog.text


@pytest.mark.kills
def test_ten_kills_leave_no_trace(after_ten_kills, sft_changes):
  whole, killed = after_ten_kills("sft", {**sft_changes, "epochs": 60, "checkpoint_steps": 3})
  assert killed == whole and "export/model.safetensors" in whole and len(whole["metrics"]) == 120
