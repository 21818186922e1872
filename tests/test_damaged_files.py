"""Every reader of a file that a user gives or that a run left: damaged files are one error that names them.

Damaged lines of records are counted. Files of which a run can do without are left out.
"""

import dataclasses
import json
import logging
import random
from types import SimpleNamespace

import pytest
from etils import epath
from json_changes import places, replaced

from spatial_vlm import config, jsonl, metrics
from spatial_vlm.data import conversations, records, vsr
from spatial_vlm.data.benchmarks.json_table import JsonTable
from spatial_vlm.demo import schedule
from spatial_vlm.evaluation import results, runs, seed_report
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.huggingface import model_card
from spatial_vlm.inference import stored_answers
from spatial_vlm.planning import cache
from spatial_vlm.reuse.embedding.encoder_embedder import read_min_similarity
from spatial_vlm.reuse.handbook import review_file
from spatial_vlm.reuse.index import vector_files
from spatial_vlm.train import policy_folder, policy_knowledge

DAMAGED = {
  "empty": lambda data: b"",
  "half": lambda data: data[: len(data) // 2],
  "Latin-1": lambda data: data.replace(b'"', b'"\xe9', 3),
  "UTF-16": lambda data: data.decode().encode("utf-16"),
  "zeros": lambda data: bytes(100),
  "null": lambda data: b"null\n",
  "list": lambda data: b"[]\n",
  "number": lambda data: b"5\n",
  "text": lambda data: b'"x"\n',
  "deep list": lambda data: b"[" * 20_000 + b"\n",
  "deep object": lambda data: b'{"a":' * 20_000 + b"\n",
  "huge number": lambda data: b"1" * 5000 + b"\n",
  "NaN": lambda data: b"NaN\n",
  "half a surrogate pair": lambda data: data.replace(b'": "', b'": "\\ud800'),
}
ODD = (None, [], {}, -1, float("inf"), float("nan"), "x", True, 10**12, 1.5, [[]])


def changed(data, most):
  """Other JSON values at some places, and a key that is given twice, in the first line of a file."""
  first, _, rest = data.partition(b"\n")
  value = json.loads(first)
  cases = [(place, odd) for place in places(value) for odd in ODD]
  for place, odd in random.Random(0).sample(cases, min(most, len(cases))):
    yield json.dumps(replaced(value, place, odd)).encode() + b"\n" + rest
  if isinstance(value, dict):
    key = json.dumps(next(iter(value)))
    yield first[:-1] + f", {key}: 1}}\n".encode() + rest


ANSWER = Prediction(
  *(0, "The cat is left of the dog.", "left of", 1, 1, "Yes.", {"cat": (0, 0, 5, 5)}, 3, 40, False),
  seconds=0.5,
  strata={"votes": "unanimous"},
)
SETTINGS = {"config": {"method": "generate", "seed": 0}, "command": "x evaluate"}
ROW = {"method": "SFT", "n": 1, "accuracy": 0.5, "skipped": 0}
KNOWLEDGE = {
  **{"tasks": ["vsr"], "forms": ["chain"], "image_height": [9, 99], "image_width": None},
  "vocabulary_size": 433,
  "stages": [{"algorithm": "sft", "checkpoint": "base", "data": "chains.jsonl"}],
}
RECORD = {
  **{"image": "1.jpg", "image_link": "http://h/1.jpg", "caption": "The cat is left of the dog."},
  **{"label": 1, "relation": "left of", "annotator_id": 3, "vote_true_validator_id": [1, 2]},
  **{"vote_false_validator_id": [], "subj": "cat", "obj": "dog"},
}
CHAIN = {"image": "1.jpg", "question": "Is it left?", "answer": "Yes."}


def lines(*values):
  return "".join(json.dumps(value) + "\n" for value in values).encode()


def read_report(file):
  """Reads a workdir of `evaluate`, of which one file is damaged."""
  write_missing(file, {"config.json": lines(SETTINGS), "results.json": lines({"rows": [ROW]})})
  write_missing(file, {"predictions.jsonl": lines(dataclasses.asdict(ANSWER))})
  return runs.read_run("run", epath.Path(file.parent))


def read_demo(file):
  write_missing(file, {"config.json": lines(SETTINGS), "results.json": lines({"rows": [ROW]})})
  demos = seed_report.read_demos([str(file.parent)])
  json.dumps(seed_report.joined_rows(demos), allow_nan=False)
  return seed_report.seed_table(demos)


def write_missing(file, contents):
  for name, data in contents.items():
    if name != file.name:
      (file.parent / name).write_bytes(data)


def read_workdir(file):
  (file.parent / "results.json").write_text("{}")  # of a run: its settings are not written again
  return config.read_snapshot(epath.Path(file.parent))


def folder(read):
  return lambda file: read(epath.Path(file.parent))


REFUSED = {
  "predictions.jsonl": (lines(dataclasses.asdict(ANSWER)), read_report),
  "results.json": (lines({"rows": [ROW]}), read_report),
  "config.json": (lines(SETTINGS), read_report),
  "demo/results.json": (lines({"rows": [ROW]}), read_demo),
  "demo/config.json": (lines(SETTINGS), read_demo),
  "run/config.json": (lines(SETTINGS), read_workdir),
  "recalls/results.json": (
    lines(
      {"recalls": {"b": {"recalls": 2, "successes": 1, "saved_tokens": 1.5}}, "split": "train"}
    ),
    lambda file: results.read_recalls([file]),
  ),
  "metrics/part-00000.jsonl": (
    lines({"step": 1, "loss": 2.5}, {"step": 2}),
    lambda file: metrics.read_metrics(file.parent.parent),
  ),
  "part.jsonl": (
    lines(dataclasses.asdict(ANSWER), {"answers": 1}),
    lambda file: stored_answers.read_part(epath.Path(file)),
  ),
  "origin.json": (
    lines({"a": "b"}),
    folder(lambda path: stored_answers.refuse_other_origin(path, {"a": "b"}, "setting")),
  ),
  "similarity.json": (lines({"min_similarity": 0.6}), folder(read_min_similarity)),
  "boxes.jsonl": (lines({"image": "a", "boxes": {"cat": [0, 0, 5, 5]}}), records.read_boxes),
  "index-00001.json": (lines({"version": 1}), folder(vector_files.newest)),
  "behaviors.yaml": (
    lines(
      [{"name": "behavior_b", "instruction": "i", "relation": "left of", "sources": ["train:1"]}]
    ),
    lambda file: review_file.read(file, len),
  ),
  "records.json": (lines([{"question": "a", "image": "b"}, ["1", "a"]]), JsonTable),
}
"""File → its content and its reader."""


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_file_is_one_error_that_names_it(tmp_path, name):
  data, read = REFUSED[name]
  file = tmp_path / name
  file.parent.mkdir(parents=True, exist_ok=True)
  refused = 0
  damaged = [damage(data) for damage in DAMAGED.values()]
  for content in (*damaged, *changed(data, 40)):
    file.write_bytes(content)
    try:
      read(file)
    except (ValueError, config.UsageError) as error:
      refused += 1
      assert str(file.parent) in str(error), content[:200]
      assert len(str(error)) < 1000 and "\x00" not in str(error)
  assert refused >= 6
  if name == "similarity.json":
    return  # without it, a number that is not calibrated holds
  file.unlink()
  file.mkdir()
  with pytest.raises((OSError, ValueError, config.UsageError), match=str(tmp_path)):
    read(file)


LEFT_OUT = {
  "spatial_vlm.json": (lines(KNOWLEDGE), folder(model_card.read_knowledge)),
  "README.md": (
    b'---\nlicense: "x"\n---\n',
    folder(lambda path: policy_folder.card_field(path, "license")),
  ),
  "generation_config.json": (
    lines({"do_sample": False, "eos_token_id": 3}),
    folder(
      lambda path: policy_folder._write_generation_config(path, SimpleNamespace(eos=3, pad=4))
    ),
  ),
  "chains.jsonl": (lines(CHAIN), lambda file: policy_knowledge._lines(str(file))),
  "finished.json": (
    lines({"begun": 1.0, "ended": 2.0}),
    lambda file: schedule.finished(file.parent, SimpleNamespace(folder="", note=file.name)),
  ),
  "record lines": (lines(RECORD), lambda file: records.read_lines(file, None, records.parse, 1.0)),
  "record.jsonl": (lines(RECORD), lambda file: vsr.read_files([epath.Path(file)])),
  "conversation lines": (
    lines(CHAIN),
    lambda file: records.read_lines(file, None, conversations.parse, 1.0),
  ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_damaged_file_or_line_is_left_out(tmp_path, name):
  """A training that has ended writes its export whatever its base's small files hold."""
  data, read = LEFT_OUT[name]
  file = tmp_path / name
  changes = changed(data, 40) if data.startswith(b"{") else ()
  for content in (*(damage(data) for kind, damage in DAMAGED.items() if kind != "empty"), *changes):
    file.write_bytes(content)
    read(file)


def test_knowledge_that_is_ignored_is_named(tmp_path, caplog):
  (tmp_path / "spatial_vlm.json").write_text(json.dumps({**KNOWLEDGE, "tasks": None}))
  assert model_card.read_knowledge(epath.Path(tmp_path)) is None
  assert "spatial_vlm.json is ignored" in caplog.text


@pytest.mark.parametrize("name", sorted({*REFUSED, *LEFT_OUT} - {"index-00001.json"}))
def test_a_whole_file_is_read_with_and_without_a_byte_order_mark(tmp_path, name, caplog):
  data, read = {**REFUSED, **LEFT_OUT}[name]
  file = tmp_path / name
  file.parent.mkdir(parents=True, exist_ok=True)
  for mark in (b"", b"\xef\xbb\xbf"):
    file.write_bytes(mark + data)
    with caplog.at_level(logging.WARNING):
      read(file)
  assert not caplog.records


def test_programs_whose_file_is_damaged_are_compiled_again(tmp_path, monkeypatch):
  monkeypatch.setattr(cache, "fingerprint", lambda *given: "x")
  monkeypatch.setattr(cache, "trace_programs", lambda *given: [])
  for damage in DAMAGED.values():
    (tmp_path / "x.json").write_bytes(damage(b'[{"name": "step"}]'))
    target = SimpleNamespace(model=None, devices=1)
    assert cache.program_costs(None, target, epath.Path(tmp_path)) == []


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(jsonl, "MAX_OBJECT_BYTES", 10)
  (tmp_path / "a.json").write_text(json.dumps({"a": 10 * "b"}))
  with pytest.raises(ValueError, match=r"a.json: 19 bytes are more than the 10 of such a file"):
    jsonl.read_object(tmp_path / "a.json")


def test_settings_of_a_first_start_that_was_killed_are_written_again(tmp_path):
  (tmp_path / "config.json").write_text('{"config": {"se')
  assert config.read_snapshot(epath.Path(tmp_path)) is None
  (tmp_path / "checkpoints" / "1").mkdir(parents=True)
  with pytest.raises(config.UsageError, match="is not the config of a run .* put it back"):
    config.read_snapshot(epath.Path(tmp_path))
