"""`evaluate`: measures a policy."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
from etils import epath

from spatial_vlm import config
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.results import count_recalls, recalls_json
from spatial_vlm.inference import generation
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import collate, encode_question, prompt_format
from spatial_vlm.model import qwen3_vl
from spatial_vlm.reuse.chains.solutions import source_record
from spatial_vlm.reuse.index.index_folder import load_index, save_index
from spatial_vlm.reuse.index.vector_index import VectorIndex
from spatial_vlm.tasks.statements import question

FIELDS = [
  *(
    "method",
    "accuracy",
    "ci_low",
    "ci_high",
    "n",
    "extracted",
    "groups",
    "skipped",
    "generated_tokens_mean",
  ),
  *("total_tokens_mean", "seconds_per_answer", "parse_rate", "box_iou"),
]
EMBEDDER = "spatial_vlm/assets/tiny_encoder"
METHODS = ("majority", "zero-shot", "direct", "chain", "short", "reuse")


def changes_of(method, evaluate_changes, extracted):
  brief = {"max_new_tokens": 16} if method in ("zero-shot", "direct") else {}
  return {**evaluate_changes, **brief, "method": method, "behaviors": extracted / "index"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run, evaluate_changes, extracted):
  """Method -> (workdir, config) of a finished evaluation."""
  runs = {}
  for method in METHODS:
    workdir = tmp_path_factory.mktemp(method)
    done = run("evaluate", workdir, changes_of(method, evaluate_changes, extracted))
    assert done.code == 0
    runs[method] = workdir, done.configs[0]
  return runs


def predictions(workdir):
  return [
    Prediction.from_json(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()
  ]


@pytest.mark.parametrize("method", METHODS)
def test_results_have_the_schema_and_follow_from_the_predictions(finished, method):
  workdir, _ = finished[method]
  results = json.loads((workdir / "results.json").read_text())
  assert list(results) == ["rows", "split", "held_out", "skipped", "recalls"]
  assert results["held_out"] and results["skipped"] == [] and len(results["rows"]) == 1
  assert results["split"] == "test"
  row = results["rows"][0]
  assert list(row) == FIELDS and row["method"] == method
  stored = predictions(workdir)
  assert [p.id for p in stored] == list(range(32)) and row["n"] == 32
  assert row["accuracy"] == sum(p.verdict == p.label for p in stored) / 32
  assert 0 <= row["ci_low"] <= row["accuracy"] <= row["ci_high"] <= 1
  if method == "majority":
    assert row["generated_tokens_mean"] == 0 and row["seconds_per_answer"] is None
    return
  assert row["generated_tokens_mean"] == np.mean([p.generated_tokens for p in stored]) > 0
  total = np.mean([p.generated_tokens + p.prompt_tokens for p in stored])
  np.testing.assert_allclose(row["total_tokens_mean"], total)
  assert [p.id for p in stored if p.seconds is not None] == [0, 1]
  assert row["seconds_per_answer"] > 0
  assert all(p.boxes_true for p in stored)


def test_every_leaf_of_every_preset_is_read(finished):
  unread = [set(config.unread(settings)) for _, settings in finished.values()]
  assert not set.intersection(*unread)
  for preset in ("tiny", "8b"):
    leaves = config.leaves(config.read_preset(f"configs/evaluate.py:{preset}"))
    assert leaves.keys() == config.leaves(finished["chain"][1]).keys()


def test_majority_takes_the_likelier_training_label(
  finished, run, evaluate_changes, scenes_folder, tmp_path
):
  """Labels of scenes are balanced in each relation, so that every tie is called true; without some, they are not."""
  assert {p.verdict for p in predictions(finished["majority"][0])} == {1}
  records = map(json.loads, (scenes_folder / "train.jsonl").read_text().splitlines())
  kept = [r for r in records if r["relation"] not in ("near", "left of") or r["label"] == 0]
  (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
  changes = {"method": "majority", "data.training_records": tmp_path / "train.jsonl"}
  assert run("evaluate", tmp_path / "run", {**evaluate_changes, **changes}).code == 0
  found = {p.relation: p.verdict for p in predictions(tmp_path / "run")}
  assert all(verdict == (name not in ("near", "left of")) for name, verdict in found.items())
  assert {*found.values()} == {0, 1}


def test_zero_shot_takes_the_likelier_first_word(finished, scenes_folder, taught):
  policy = load_policy(str(taught))
  source = JsonlSource(scenes_folder / "test.jsonl", scenes_folder / "images")
  stored = predictions(finished["zero-shot"][0])
  for i in (0, 7, 31):
    row = encode_question(
      policy.processor, source[i].image, question(source[i].record.caption, "direct")
    )
    prompts = collate(policy.processor, [row], [0], [-1], prompt_format([(96, 64)], "float32"))
    scores = np.asarray(qwen3_vl.prefill(policy.params, policy.model, prompts)[0][0])
    (yes,), (no,) = (policy.processor.encode_text(word) for word in ("Yes", "No"))
    assert stored[i].verdict == int(scores[yes] > scores[no])
  assert all(p.verdict in (0, 1) for p in stored)  # also where the text does not parse


def test_reuse_names_what_it_recalled_and_asks_for_the_short_form(finished, extracted):
  handbook = VectorIndex.load(extracted / "index").attributes["handbook"]["behaviors"]
  names = {behavior["name"] for behavior in handbook}
  stored = predictions(finished["reuse"][0])
  recalled = [p for p in stored if p.retrieved]
  results = json.loads((finished["reuse"][0] / "results.json").read_text())
  assert results["recalls"] == recalls_json(count_recalls(stored)) != {}
  assert recalled and {p.retrieved for p in recalled} <= names
  plain = {p.id: p.prompt_tokens for p in predictions(finished["chain"][0])}
  fallen_back = [p for p in stored if not p.retrieved]
  assert all(p.prompt_tokens == plain[p.id] for p in fallen_back)
  assert any(p.prompt_tokens != plain[p.id] for p in recalled)


def test_the_short_form_is_asked_for_by_name_without_a_behavior(finished, scenes_folder, taught):
  processor = load_policy(str(taught)).processor
  source = JsonlSource(scenes_folder / "test.jsonl", scenes_folder / "images")
  stored = predictions(finished["short"][0])
  for i in (0, 7):
    text = question(source[i].record.caption, "short")
    row = encode_question(processor, source[i].image, text)
    assert (stored[i].prompt_tokens, stored[i].retrieved) == (len(row.tokens), None)


def test_chains_are_parsed_and_their_boxes_measured(finished):
  row = json.loads((finished["chain"][0] / "results.json").read_text())["rows"][0]
  assert row["parse_rate"] > 0.5 and row["box_iou"] is not None
  scores = json.loads((finished["chain"][0] / "scores.json").read_text())
  assert scores["n"] == 32


@pytest.mark.slow
def test_on_eight_devices_it_writes_the_same(
  finished, run, evaluate_changes, extracted, outcome, tmp_path
):
  """With sharded weights and rows the texts are equal, though their logits may differ in the last bits."""
  mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "in_flight": 1, "timed_questions": 1}
  for method in ("chain", "zero-shot"):
    changes = {**changes_of(method, evaluate_changes, extracted), **mesh}
    assert run("evaluate", tmp_path / method, changes, devices=8).code == 0
    name = "predictions.jsonl"
    assert outcome(tmp_path / method)[name] == outcome(finished[method][0])[name]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch_size": 6, "in_flight": 1}, "a multiple of mesh.slice × mesh.data × mesh.fsdp = 8"),
    ({}, "in_flight is 2 on a mesh of 8 devices"),
  ],
)
def test_batches_that_devices_do_not_divide_are_refused(
  run, tmp_path, evaluate_changes, capsys, changes, message
):
  assert run("evaluate", tmp_path, {**evaluate_changes, **changes}, devices=8).code == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize("method", ["chain", "zero-shot", "reuse"])
@pytest.mark.parametrize("call", [1, 3, 4])
def test_an_interrupted_evaluation_ends_with_the_same_predictions(
  finished, tmp_path, run, evaluate_changes, extracted, outcome, stopped_at, method, call
):
  changes = {**changes_of(method, evaluate_changes, extracted), "in_flight": 1}
  with stopped_at(generation.BatchGenerator, "answer", call):
    run("evaluate", tmp_path, changes)
  parts = sorted((tmp_path / "predictions").glob("part-*"))
  assert len(parts) == call - 1
  if parts:  # as a kill while writing leaves it
    parts[-1].write_text(parts[-1].read_text()[:-20])
  assert run("evaluate", tmp_path, changes).code == 0
  assert outcome(tmp_path) == outcome(finished[method][0])


def test_stored_answers_are_not_asked_for_again(
  finished, run, evaluate_changes, extracted, monkeypatch, outcome
):
  changes = changes_of("chain", evaluate_changes, extracted) | {"timed_questions": 0}
  before = outcome(finished["chain"][0])
  asked = []
  original = generation.BatchGenerator.answer
  monkeypatch.setattr(
    generation.BatchGenerator,
    "answer",
    lambda self, rows, ids: asked.append(ids) or original(self, rows, ids),
  )
  assert run("evaluate", finished["chain"][0], changes).code == 0
  assert outcome(finished["chain"][0]) == before
  assert asked == []


def test_a_limit_and_a_partial_last_batch(finished, tmp_path, run, evaluate_changes, extracted):
  changes = changes_of("chain", evaluate_changes, extracted) | {"limit": 11}
  assert run("evaluate", tmp_path, changes).code == 0
  found = [(p.id, p.text) for p in predictions(tmp_path)]
  assert found == [(p.id, p.text) for p in predictions(finished["chain"][0])[:11]]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"method": "guess"},
      "method is 'guess'; choose one of majority, zero-shot, direct, chain, short, reuse",
    ),
    ({"task": "vrs"}, "task is 'vrs'; choose one of vsr, scenes"),
    ({"checkpoint": "no/such/folder"}, "no/such/folder (checkpoint) does not exist"),
    ({"data.records": "absent.jsonl"}, "absent.jsonl"),
    ({"data.boxes": "absent.boxes.jsonl"}, "absent.boxes.jsonl"),
    ({"method": "majority", "data.training_records": "absent.jsonl"}, "absent.jsonl"),
    ({"method": "reuse", "behaviors": "no/such/index"}, "no/such/index"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"in_flight": 0}, "in_flight is 0"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"mesh.data": 2}, "does not cover the 1 devices"),
  ],
)
def test_wrong_settings_are_refused_on_one_line(refused, evaluate_changes, changes, message):
  assert message in refused("evaluate", {**evaluate_changes, **changes})


def test_too_small_a_prompt_is_named_with_the_remedy(run, tmp_path, evaluate_changes, capsys):
  assert run("evaluate", tmp_path, {**evaluate_changes, "prompt_shapes": "((30, 64),)"}).code == 2
  error = capsys.readouterr().err
  assert (
    "prompt_shapes holds 30 and 64" in error and "raise it" in error and "test.jsonl:1: " in error
  )


def changed_index(folder, to, **fields):
  """Writes the index of `folder` to `to` with other fields of its first behavior."""
  index = load_index(folder)
  first, *others = index.handbook.behaviors
  changed = (dataclasses.replace(first, **fields), *others)
  save_index(
    index.with_handbook(dataclasses.replace(index.handbook, behaviors=changed)), to, EMBEDDER
  )


@pytest.mark.parametrize("split", ["test", "other"])
def test_behaviors_from_held_out_records_that_are_measured_are_refused(
  split, refused, evaluate_changes, extracted, tmp_path
):
  """By the name of their split, or by their contents under another name."""
  pair = JsonlSource(evaluate_changes["data.records"], evaluate_changes["data.images"]).pairs[1]
  seen = (source_record(split, 1, pair if split == "other" else ("", "")),)
  changed_index(extracted / "index", epath.Path(tmp_path / "index"), provenance=seen)
  changes = {"method": "reuse", "behaviors": tmp_path / "index"}
  assert "evaluation records" in refused("evaluate", {**evaluate_changes, **changes})


def test_a_handbook_is_measured_on_its_own_training_records_and_its_recalls_are_read(
  run, refused, evaluate_changes, told_records, behaviors_changes, extracted, finished, tmp_path
):
  """The results name the split; recalls on the test split are refused."""
  changes = changes_of("reuse", evaluate_changes, extracted)
  train = {"data.records": told_records, "data.boxes": "", "limit": 8, "timed_questions": 0}
  assert run("evaluate", tmp_path / "run", {**changes, **train}).code == 0
  file = tmp_path / "run" / "results.json"
  content = json.loads(file.read_text())
  assert content["split"] == told_records.stem and content["recalls"]
  assert run("behaviors", tmp_path / "again", {**behaviors_changes, "recalls": file}).code == 0
  counted = {b.name: b.recalls for b in load_index(tmp_path / "again" / "index").handbook.behaviors}
  assert all(counted[name] == count["recalls"] for name, count in content["recalls"].items())
  held_out = finished["reuse"][0] / "results.json"
  message = refused("behaviors", {**behaviors_changes, "recalls": held_out})
  assert "'test', a split to measure on" in message


def test_answers_of_another_handbook_are_refused(
  run, evaluate_changes, extracted, tmp_path, capsys
):
  """The index is rebuilt in its folder, as after a review."""
  shutil.copytree(extracted / "index", tmp_path / "index")
  changes = changes_of("reuse", evaluate_changes, extracted)
  changes |= {"behaviors": tmp_path / "index", "limit": 8, "timed_questions": 0}
  assert run("evaluate", tmp_path / "run", changes).code == 0
  assert run("evaluate", tmp_path / "run", changes).code == 0
  changed_index(extracted / "index", epath.Path(tmp_path / "index"), instruction="look twice")
  name = load_index(tmp_path / "index").handbook.behaviors[0].name
  capsys.readouterr()
  assert run("evaluate", tmp_path / "run", changes).code == 2
  error = capsys.readouterr().err
  assert f"before behaviors {tmp_path / 'index'} changed: {name}. Give another --workdir" in error


def test_broken_records_are_reported_and_skipped(
  run, refused, evaluate_changes, broken, tmp_path, caplog
):
  changes, path, reasons = broken("records", "test.jsonl")
  changes = {**evaluate_changes, **changes}
  with caplog.at_level(logging.WARNING):
    assert run("evaluate", tmp_path / "run", {**changes, "data.max_bad_share": 0.5}).code == 0
  for line, reason in reasons.items():
    assert any(f"{path}:{line}: " in text and reason in text for text in caplog.messages)
  # The second of the 27 readable lines has the unreadable image.
  assert [p.id for p in predictions(tmp_path / "run")] == [0, *range(2, 27)]
  assert "5 of 32 records" in refused("evaluate", {**changes, "data.max_bad_share": 0.1}, lines=6)


@pytest.mark.parametrize("method", ["majority", "zero-shot"])
def test_an_unreadable_image_is_skipped_by_every_method(
  run, evaluate_changes, broken, tmp_path, method
):
  changes, _, _ = broken("records", "test.jsonl")
  changes = {**evaluate_changes, **changes, "method": method, "data.max_bad_share": 0.5}
  assert run("evaluate", tmp_path / "run", changes).code == 0
  assert [p.id for p in predictions(tmp_path / "run")] == [0, *range(2, 27)]


@pytest.mark.kills
def test_ten_kills_leave_no_trace(after_ten_kills, evaluate_changes):
  whole, killed = after_ten_kills(
    "evaluate", {**evaluate_changes, "batch_size": 1, "method": "chain"}
  )
  assert killed == whole and len(whole["predictions.jsonl"]) == 32
