"""`synthesize`: has a teacher write chains of thought."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from spatial_vlm import answers, cli, config
from spatial_vlm.commands import synthesize
from spatial_vlm.data import conversations
from spatial_vlm.synthesis.local.faults import TRANSIENT, Faults
from spatial_vlm.synthesis.local.local_server import LocalServer
from spatial_vlm.synthesis.local.scene_answers import SceneAnswers
from spatial_vlm.synthesis.run.journal import Journal

SECRET = "SECRET-91ad3c"


@pytest.fixture(scope="module")
def changes(scenes_folder):
  return {
    "data.records": scenes_folder / "train.jsonl",
    "data.images": scenes_folder / "images",
    "evaluation": scenes_folder / "test.jsonl",
    "local.scenes": scenes_folder,
    "local.fault_share": 0.0,
    "examples": 4,
  }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run, changes):
  workdir = tmp_path_factory.mktemp("synthesize")
  done = run("synthesize", workdir, changes)
  assert done.code == 0
  return workdir, done.configs[0]


@pytest.fixture
def served(scenes_folder, changes, monkeypatch):
  """A server that outlives the command, and the changes that make the command ask it as Gemini."""
  answer = SceneAnswers(scenes_folder, "train", 0.3)
  with LocalServer(answer, model="local-teacher", key=SECRET) as server:
    monkeypatch.setenv("GEMINI_API_KEY", SECRET)
    yield server, {**changes, "teacher": "gemini", "base_url": server.url}


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def results(workdir):
  return json.loads((workdir / "results.json").read_text())


def sets(workdir):
  """The results that must not depend on interruptions."""
  return {
    name: (workdir / name).read_bytes()
    for name in ("chains.jsonl", "accepted.jsonl", "rejected.jsonl", "examples.png")
  }


def test_verified_chains_are_written_with_their_provenance(finished, scenes_folder):
  workdir, _ = finished
  chains = [
    conversations.parse(line) for line in (workdir / "chains.jsonl").read_bytes().splitlines()
  ]
  accepted, rejected = lines(workdir / "accepted.jsonl"), lines(workdir / "rejected.jsonl")
  labels = {(r["image"], r["caption"]): r["label"] for r in lines(scenes_folder / "train.jsonl")}
  assert len(chains) == len(accepted) > 55 and len(labels) == 64
  for chain, line in zip(chains, accepted, strict=True):
    answer = answers.STATEMENT.parse(chain.answer)
    assert answer.form == "chain" and answer.verdict == labels[chain.image, line["caption"]]
    assert line["caption"] in chain.question and line["subj"] in answer.boxes
    assert line["model_version"] == "local-teacher-001" and not line["rejections"]
  assert any(line["hinted"] for line in accepted) and not all(line["hinted"] for line in accepted)
  assert rejected and all(line["rejections"][0]["detail"] for line in rejected)
  assert len({line["key"] for line in accepted + rejected}) == len(accepted) + len(rejected)
  found = results(workdir)
  assert found["records"] == 64 and found["accepted"] == len(chains) and found["unsettled"] == 0
  assert found["ledger"]["answers"] == len(accepted) + len(rejected)
  assert "| numbers " in (workdir / "report.md").read_text()
  assert Image.open(workdir / "examples.png").width > 500


def test_a_second_start_asks_nothing_and_writes_the_same(finished, run, changes, monkeypatch):
  workdir, _ = finished
  before = sets(workdir)
  with monkeypatch.context() as patch:
    patch.setattr(Journal, "add_sent", lambda *_: pytest.fail("something was asked"))
    assert run("synthesize", workdir, changes).code == 0
    assert run("synthesize", workdir, changes, "--offline").code == 0
  assert sets(workdir) == before


def test_changed_checks_apply_to_stored_answers(tmp_path, run, changes, capsys):
  assert run("synthesize", tmp_path, changes).code == 0
  before = results(tmp_path)["accepted"]
  assert run("synthesize", tmp_path, {**changes, "checks.max_words": 30}, "--offline").code == 2
  assert "records are not settled" in capsys.readouterr().err, "hints were not asked for"
  after = results(tmp_path)
  assert 0 < after["accepted"] < before and "length" in after["rejections"]
  assert run("synthesize", tmp_path, changes).code == 0 and results(tmp_path)["accepted"] == before


def test_batches_write_the_same_set(finished, tmp_path, run, changes):
  assert (
    run("synthesize", tmp_path, {**changes, "batch.questions": 20, "batch.poll_s": 0.0}).code == 0
  )
  assert sets(tmp_path) == sets(finished[0])
  ledger = results(tmp_path)["ledger"]
  assert ledger["batch_answers"] == ledger["answers"]


def test_a_policy_gets_the_allowed_number_of_blind_attempts(tmp_path, run, changes, nano):
  """An untrained policy: all that it writes is rejected."""
  own = {
    "teacher": "policy",
    "model": nano,
    "attempts.blind": 2,
    "attempts.hinted": 0,
    "temperature": 1.0,
    "max_output_tokens": 8,
    "data.limit": 6,
    "policy.batch_size": 4,
  }
  assert run("synthesize", tmp_path, {**changes, **own}).code == 0
  found = results(tmp_path)
  assert found["questions"]["blind"]["asked"] == 12 and found["accepted"] == 0
  assert found["questions"]["hinted"]["asked"] == 0
  [version] = found["model_versions"]
  assert version.startswith(f"{Path(nano).name}@") and {*found["rejections"]} <= {
    "finish",
    "format",
  }


def test_every_setting_is_read_for_some_teacher(finished, changes, nano):
  """Settings that one teacher does not read, another reads."""
  unread = set(config.unread(finished[1]))
  for teacher, questions in (("local", 5), ("gemini", 0), ("openai", 0), ("policy", 0)):
    others = {"teacher": teacher, "model": nano, "attempts.hinted": 0}
    others["batch.questions"] = questions
    settings = [f"{name}={value}" for name, value in {**changes, **others}.items()]
    loaded = config.load("configs/synthesize.py:tiny", settings)
    synthesize.check(loaded)
    unread &= set(config.unread(loaded))
  assert not unread


def test_the_key_is_in_no_file_and_on_no_screen(served, tmp_path, run, capsys, caplog):
  server, changes = served
  assert run("synthesize", tmp_path / "right", changes).code == 0
  assert server.stats().answers
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("GEMINI_API_KEY", f"{SECRET}-wrong")
    assert run("synthesize", tmp_path / "wrong", changes).code == 2
  said = "".join(capsys.readouterr()) + caplog.text
  assert "API key not valid" in said and SECRET not in said
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert len(files) > 8 and not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_without_a_key_it_says_where_to_put_one(refused, changes, monkeypatch):
  monkeypatch.delenv("GEMINI_API_KEY", raising=False)
  monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
  assert "GEMINI_API_KEY" in refused("synthesize", {**changes, "teacher": "gemini"})


PRICED = {"prices.input_usd": 1.0, "prices.output_usd": 10.0, "confirm_usd": 0.01}


def test_a_price_above_the_limit_needs_confirmation(served, tmp_path, run, capsys):
  server, changes = served
  assert run("synthesize", tmp_path, {**changes, **PRICED}).code == 2
  error = capsys.readouterr().err
  assert "more than confirm_usd=0.01; add --yes" in error and not server.stats().requests
  assert run("synthesize", tmp_path, {**changes, **PRICED}, "--yes").code == 0
  ledger = results(tmp_path)["ledger"]
  tokens = ledger["tokens"]
  by_hand = tokens["prompt"] - tokens["cached"] + 10 * (tokens["answer"] + tokens["thoughts"])
  assert ledger["usd"] == pytest.approx(by_hand / 1e6)
  assert run("synthesize", tmp_path, {**changes, **PRICED}).code == 0, "nothing is left to pay for"


def test_a_budget_stops_the_run_with_partial_results(served, tmp_path, run, capsys):
  server, changes = served
  tight = {**changes, **PRICED, "budget_usd": 0.1}
  assert run("synthesize", tmp_path, tight, "--yes").code == 2
  error = capsys.readouterr().err
  assert "budget_usd=0.1 allows no further question" in error and "records are not settled" in error
  found = results(tmp_path)
  assert 0 < found["ledger"]["usd"] <= 0.1 and found["unsettled"] > 0
  assert len(lines(tmp_path / "accepted.jsonl")) == found["accepted"] > 0
  assert run("synthesize", tmp_path, {**tight, "budget_usd": 10.0}, "--yes").code == 0
  assert set(server.stats().answers.values()) == {1}


def test_versions_are_not_mixed_unless_asked_for(
  scenes_folder, changes, tmp_path, run, monkeypatch, capsys
):
  answer = SceneAnswers(scenes_folder, "train", 0.0)
  monkeypatch.setenv("GEMINI_API_KEY", SECRET)
  with LocalServer(
    answer, model="local-teacher", key=SECRET, faults=Faults(other_version=0.3)
  ) as server:
    asked = {**changes, "teacher": "gemini", "base_url": server.url}
    assert run("synthesize", tmp_path, asked).code == 2
    assert "allow_mixed_versions" in capsys.readouterr().err
    if (
      tmp_path / "results.json"
    ).exists():  # the run stopped before answers of another version were stored
      assert len(results(tmp_path)["model_versions_accepted"]) <= 1
    assert run("synthesize", tmp_path, {**asked, "allow_mixed_versions": True}).code == 0
    assert len(results(tmp_path)["model_versions_accepted"]) == 2
    one = {**asked, "model_version": "local-teacher-001"}
    assert run("synthesize", tmp_path, one).code == 0
    assert list(results(tmp_path)["model_versions_accepted"]) == ["local-teacher-001"]


def test_records_of_the_evaluation_set_are_refused(refused, changes, scenes_folder):
  error = refused("synthesize", {**changes, "evaluation": scenes_folder / "train.jsonl"}, lines=4)
  assert "64 of the 64 evaluation pairs" in error and "drop_shared" in error


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"teacher": "gpt"}, "choose one of local, gemini, openai, policy"),
    ({"attempts.blind": 0}, "attempts.blind is 0; it must be at least 1"),
    ({"concurrency": 0}, "concurrency is 0"),
    ({"checks.min_words": 500}, "min_words is 500"),
    (
      {"checks.decisive": "('left of', 'behind')"},
      "each one of left of, right of, above",
    ),
    ({"selection.max_label_ratio": 0.5}, "max_label_ratio is 0.5"),
    ({"prices.input_usd": -1.0}, "prices.input_usd is -1.0; it must be at least 0"),
    ({"teacher": "openai", "model": "m", "batch.questions": 5}, "has no batches"),
    ({"teacher": "policy"}, "takes no hint"),
    ({"data.limit": -1}, "data.limit is -1"),
    ({"local.fault_share": 2.0}, "local.fault_share is 2.0; it must be from 0 to 1"),
    ({"thinking_budget": 5, "thinking_level": "low"}, "give only one"),
    ({"budget_usd": -1.0}, "budget_usd is -1"),
  ],
)
def test_invalid_settings_are_refused(refused, changes, change, message):
  assert message in refused("synthesize", {**changes, **change})


def test_broken_records_are_skipped_and_listed_by_line(broken, changes, tmp_path, run, caplog):
  spoilt, path, reasons = broken("records", "train.jsonl")
  settings = {**changes, **spoilt, "data.max_bad_share": 0.2, "selection.max_label_ratio": 100.0}
  assert run("synthesize", tmp_path / "run", settings).code == 0
  skipped = results(tmp_path / "run")["skipped"]
  assert len(skipped) == 6
  for line, reason in reasons.items():
    assert any(text.startswith(f"{path}:{line}: ") and reason in text for text in skipped), line
  assert run("synthesize", tmp_path / "strict", {**settings, "data.max_bad_share": 0.01}).code == 2


@pytest.mark.slow
def test_ten_kills_cost_at_most_what_was_in_flight(tmp_path, scenes_folder, changes, run):
  """The server stays up, loses and delays a fifth of all requests, and counts what it bills."""
  faults = Faults(**dict.fromkeys(TRANSIENT, 0.2 / len(TRANSIENT)), retry_after_s=0.3, slow_s=0.5)
  answer = SceneAnswers(scenes_folder, "train", 0.3)
  with LocalServer(answer, model="local-teacher", key=SECRET, faults=faults) as server:
    asked = {
      **{**changes, "teacher": "gemini", "base_url": server.url},
      **{"requests_per_minute": 600.0, "concurrency": 4},
    }
    workdir, log = tmp_path / "killed", tmp_path / "log"
    argv = [sys.executable, "-m", "spatial_vlm.cli", "synthesize", "--workdir", str(workdir)]
    argv += [f"--config.{name}={value}" for name, value in asked.items()]
    root = str(Path(cli.__file__).parents[1])
    environment = {**os.environ, "GEMINI_API_KEY": SECRET, "PYTHONPATH": root}
    rng, hits = random.Random(0), 0
    for _ in range(10):
      journal_size = size(workdir)
      with log.open("ab") as file:
        process = subprocess.Popen(argv, env=environment, stdout=file, stderr=file)
      while process.poll() is None and size(workdir) == journal_size:
        time.sleep(0.02)
      time.sleep(rng.uniform(0, 0.8))
      process.send_signal(signal.SIGKILL)
      hits += process.wait() == -signal.SIGKILL
    assert hits >= 5, log.read_text()[-2000:]
    assert subprocess.run(argv, env=environment, check=False).returncode == 0
    stats = server.stats()
  ledger = results(workdir)["ledger"]
  surplus = stats.answers.total() - ledger["answers"]
  doubtful = len(ledger["lost"]) + len(ledger["in_flight_when_stopped"])
  assert surplus <= doubtful and len(ledger["in_flight_when_stopped"]) <= 4 * hits
  assert run("synthesize", tmp_path / "whole", changes).code == 0
  assert sets(workdir)["chains.jsonl"] == sets(tmp_path / "whole")["chains.jsonl"]


def size(workdir):
  return sum(path.stat().st_size for path in workdir.glob("journal/part-*"))


def test_a_remote_workdir_is_refused_before_anything_is_read(gcs_folder, run, changes, capsys):
  absent = {**changes, "data.records": "nowhere.jsonl"}
  assert run("synthesize", f"{gcs_folder[0]}/run", absent).code == 2
  error = capsys.readouterr().err
  assert "is remote" in error and "give a local --workdir" in error and error.count("\n") == 1
