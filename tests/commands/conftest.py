"""Commands at the smallest scale: how a test runs them, interrupts them, kills them and compares what they wrote."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from spatial_vlm import cli, config, metrics
from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.data.statement import read_statement


@dataclasses.dataclass(frozen=True)
class Done:
  code: int
  configs: list[config.Config]


def arguments(name, workdir, changes, *others):
  settings = [f"--config.{leaf}={value}" for leaf, value in changes.items()]
  return [name, "--workdir", str(workdir), *map(str, others), *settings]


@pytest.fixture(scope="session")
def run(on_devices):
  """Runs a command in this process, through the command line's front door: (name, workdir, changes, …) -> Done."""

  def run(name, workdir, changes, *others, devices=1):
    loaded, load = [], config.load

    def remember(*args, **options):
      loaded.append(load(*args, **options))
      return loaded[-1]

    with mock.patch.object(config, "load", remember), on_devices(devices):
      code = cli.main(arguments(name, workdir, changes, *others))
    return Done(code, loaded)

  return run


@pytest.fixture
def refused(tmp_path, capsys, run):
  """Runs a command that must be refused and returns its message.

  It exits with 2 and writes one line; no config.json stays that would block the right settings.
  """

  def refuse(name, changes, *others, lines=1):
    workdir = tmp_path / "refused"
    capsys.readouterr()
    assert run(name, workdir, changes, *others).code == 2
    error = capsys.readouterr().err
    assert error.startswith("spatial-vlm: ") and error.count("\n") == lines, error
    assert not (workdir / "config.json").exists()
    return error

  return refuse


def _forget_clocks(name, value):
  if name == "predictions.jsonl" or name.startswith("part-"):
    return [
      {k: v for k, v in json.loads(line).items() if k != "seconds"} for line in value.splitlines()
    ]
  if name == "scores.json":
    return {k: v for k, v in json.loads(value).items() if not k.startswith("seconds")}
  if name == "results.json":
    return [
      {k: v for k, v in row.items() if k != "seconds_per_answer"}
      for row in json.loads(value)["rows"]
    ]
  return value


def written_in(workdir):
  """All files that must be reproducible, by path, without clock readings and start records."""
  found = {}
  for path in sorted(Path(workdir).rglob("*")):
    parts = path.relative_to(workdir).parts
    if path.name == "metrics":
      records = metrics.read_metrics(path.parent)
      found["/".join(parts)] = [
        {k: v for k, v in r.items() if not k.startswith(metrics.CLOCK_PREFIX)} for r in records
      ]
    elif path.is_file() and not {"checkpoints", "tensorboard", "metrics"} & {*parts}:
      notes = ("config.json", "finished.json", "timed.json", "report.md")
      if path.name not in notes or "export" in parts:
        found["/".join(parts)] = _forget_clocks(path.name, path.read_bytes())
  return found


@pytest.fixture(scope="session")
def outcome():
  return written_in


class Stopped(Exception):
  """Raised in the middle of a command, in place of a kill."""


@pytest.fixture
def stopped_at(monkeypatch):
  """A context in which call number `call` (from 1) of `owner.name` raises and ends the command."""

  @contextlib.contextmanager
  def stop(owner, name, call):
    original, calls = getattr(owner, name), []

    def throwing(*args, **kwargs):
      calls.append(1)
      if len(calls) == call:
        raise Stopped
      return original(*args, **kwargs)

    with monkeypatch.context() as patch:
      patch.setattr(owner, name, throwing)
      with pytest.raises(Stopped):
        yield

  return stop


@pytest.fixture
def before_saving(stopped_at):
  """As `stopped_at`, for the saving of checkpoint number `call`."""
  return lambda call: stopped_at(Checkpoints, "save", call)


class Killer:
  """Runs a command in processes of its own, which are killed."""

  def __init__(self, name, changes, seed):
    self.name, self.changes = name, changes
    self.environment = {
      **os.environ,
      "PYTHONPATH": str(Path(cli.__file__).parents[1]),
      "OMP_NUM_THREADS": "2",
      # Every start takes as long as the first, and no kill truncates a file that other tests read.
      "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    self.random = random.Random(seed)

  def start(self, workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "spatial_vlm.cli", *arguments(self.name, workdir, self.changes)]
    log = workdir.with_suffix(".log").open("ab")
    return subprocess.Popen(argv, env=self.environment, stdout=log, stderr=log)

  def finish(self, workdir):
    """Seconds until work began, and until the end."""
    begun = time.monotonic()
    process = self.start(workdir)
    working = self._await_work(process, workdir) - begun
    assert process.wait() == 0, workdir.with_suffix(".log").read_text()[-2000:]
    return working, time.monotonic() - begun

  def kill(self, workdir, working, whole, kills=10):
    """Ten kills: two at any moment of the start, the others while it works; returns how many hit a live process."""
    hits = 0
    for number in range(kills):
      process = self.start(workdir)
      if number % 5 == 0:
        time.sleep(self.random.uniform(0, working))
      else:
        self._await_work(process, workdir)
        time.sleep(self.random.uniform(0, (whole - working) / 4))
      process.send_signal(signal.SIGKILL)
      hits += process.wait() == -signal.SIGKILL
    return hits

  def _await_work(self, process, workdir):
    """Waits for the first output of this process, its first progress bar."""
    log = workdir.with_suffix(".log")
    size = log.stat().st_size if log.exists() else 0
    while process.poll() is None and log.stat().st_size <= size:
      time.sleep(0.02)
    return time.monotonic()


@pytest.fixture
def killer():
  """(name, changes) -> a `Killer`."""
  return lambda name, changes: Killer(name, changes, seed=0)


@pytest.fixture
def after_ten_kills(tmp_path):
  """(name, changes) -> what an uninterrupted run wrote, and what one wrote that was killed ten times."""

  def compare(name, changes, seed=0, at_least=7):
    killer = Killer(name, changes, seed)
    working, whole = killer.finish(tmp_path / "whole")
    hits = killer.kill(tmp_path / "killed", working, whole)
    assert hits >= at_least, f"{hits} kills hit; the run is too short for this test"
    killer.finish(tmp_path / "killed")
    return written_in(tmp_path / "whole"), written_in(tmp_path / "killed")

  return compare


@pytest.fixture(scope="session")
def sft_changes(nano, scenes_folder):
  """Six updates on 16 chains."""
  return {
    "checkpoint": nano,
    "data.conversations": scenes_folder / "chains.jsonl",
    "data.images": scenes_folder / "images",
    "epochs": 3,
    "batch_size": 8,
    "optimizer.method": "adamw",  # compiles faster than Muon
    "optimizer.warmup_steps": 2,
    "log_steps": 1,
    "checkpoint_steps": 1,
  }


@pytest.fixture(scope="session")
def dapo_changes(taught, scenes_folder):
  """Three batches of 8 groups, collected in two or more rounds each."""
  return {
    "checkpoint": taught,
    "data.records": scenes_folder / "train.jsonl",
    "data.images": scenes_folder / "images",
    "data.validation": scenes_folder / "validation.jsonl",
    "steps": 3,
    "groups_per_batch": 8,
    "group_size": 4,
    "rollout_batch_size": 6,
    "max_rollout_rounds": 4,
    "minibatches": 2,
    "micro_batches": 1,
    "optimizer.warmup_steps": 1,
    "validate_steps": 2,
    "validate_prompts": 16,
    "validate_batch": 16,
    "checkpoint_steps": 1,
  }


@pytest.fixture(scope="session")
def told_records(tmp_path_factory, scenes_folder):
  """Training records whose statements are about the two objects that the chains of `taught` compare."""
  records = [json.loads(row) for row in (scenes_folder / "train.jsonl").read_text().splitlines()]
  x, _, y = read_statement(records[0]["caption"])
  told = (
    (f"The {x} is left of the {y}.", "left of"),
    (f"The {y} is right of the {x}.", "right of"),
  )
  path = tmp_path_factory.mktemp("told") / "train.jsonl"
  rows = []
  for number, record in enumerate(records):
    caption, relation = told[number // 2 % 2]
    subj, _, obj = read_statement(caption)
    changed = {"caption": caption, "relation": relation, "subj": subj, "obj": obj}
    rows.append({**record, **{key: changed[key] for key in changed if key in record}})
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture(scope="session")
def behaviors_changes(taught, told_records, scenes_folder):
  return {
    "checkpoint": taught,
    "data.records": told_records,
    "data.images": scenes_folder / "images",
    "batch_size": 16,
    "min_support": 2,
    "full_share": 0.25,
  }


@pytest.fixture(scope="session")
def extracted(tmp_path_factory, run, behaviors_changes):
  """Workdir of a finished `behaviors`."""
  workdir = tmp_path_factory.mktemp("behaviors")
  assert run("behaviors", workdir, behaviors_changes).code == 0
  return workdir


@pytest.fixture(scope="session")
def evaluate_changes(taught, scenes_folder):
  return {
    "checkpoint": taught,
    "data.records": scenes_folder / "test.jsonl",
    "data.images": scenes_folder / "images",
    "data.boxes": scenes_folder / "test.boxes.jsonl",
    "data.training_records": scenes_folder / "train.jsonl",
    "batch_size": 8,
    "timed_questions": 2,
  }


@pytest.fixture
def broken(tmp_path, scenes_folder):
  """Copies a file of records or conversations and breaks the lines 2 … 7, each in another way.

  Returns the changes of `data.<leaf>` and `data.images`, the file, and what each report has to say.
  """

  def spoil(leaf, file, folder=scenes_folder):
    images = tmp_path / "images"
    images.mkdir()
    for path in (scenes_folder / "images").iterdir():
      (images / path.name).write_bytes(path.read_bytes())
    lines = (folder / file).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    is_record = "label" in records[0]
    broken = images / "torn.png"
    broken.write_bytes((images / records[6]["image"]).read_bytes()[:60])
    lines[1] = lines[1][:-9]
    lines[2] = json.dumps({**records[2], "surprise": 1})
    lines[3] = json.dumps({**records[3], **({"label": 2} if is_record else {"answer": ""})})
    lines[4] = json.dumps({**records[4], "image": "../train.jsonl"})
    lines[5] = json.dumps({**records[5], "image": "absent.png"})
    lines[6] = json.dumps({**records[6], "image": "torn.png"})
    path = tmp_path / file
    path.write_text("\n".join(lines) + "\n")
    reasons = {
      2: "Unterminated" if is_record else "",
      3: "surprise" if is_record else "with the fields",
      4: "label is 2" if is_record else "answer must be non-empty text",
      5: "leaves the image folder",
      6: "absent.png' is not in",
      7: "torn.png",
    }
    return {f"data.{leaf}": path, "data.images": images}, path, reasons

  return spoil
