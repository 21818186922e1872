"""Finished evaluations are read from their workdirs and paired by their settings."""

import json
import re

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.evaluation.runs import (
  FinishedRun,
  differing_settings,
  direct_and_reasoned,
  of_several_templates,
  read_runs,
  with_their_controls,
)

SETTINGS = {"method": "chain", "checkpoint": "p", "task": "vsr", "control": "", "batch_size": 8}


def finished(name="run", predictions=(), **settings):
  return FinishedRun(name, {**SETTINGS, **settings}, predictions)


@pytest.fixture
def workdir(tmp_path, predict):
  """Writes the workdir of a finished evaluation."""

  def write(name, answers=None, **settings):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {**SETTINGS, **settings}}))
    answers = [predict(i, i % 2, 1) for i in range(4)] if answers is None else answers
    (folder / "results.json").write_text(json.dumps({"rows": [{"skipped": 3}]}))
    (folder / "predictions.jsonl").write_text("".join(p.to_json() + "\n" for p in answers))
    return folder

  return write


def test_runs_are_named_by_folder_or_by_name(workdir, tmp_path):
  for name in ("evaluate_b", "evaluate_a", "other"):
    workdir(name)
  (tmp_path / "evaluate_unfinished").mkdir()
  runs = read_runs([f"my run={tmp_path / 'other'}", str(tmp_path / "evaluate_*")])
  assert [run.name for run in runs] == ["my run", "evaluate_a", "evaluate_b"]
  assert [p.id for p in runs[0].predictions] == [0, 1, 2, 3] and runs[0].skipped == 3
  assert runs[0].settings["method"] == "chain" and runs[0].control == ""
  assert read_runs([f"old={tmp_path / 'evaluate_*'}"])[0].name == "old evaluate_a"


def test_what_cannot_be_compared_is_refused(workdir, tmp_path, predict):
  good = workdir("good")
  cases = {
    str(tmp_path / "absent"): "absent holds no finished evaluation",
    str(tmp_path / "none*"): "are no folders",
    str(workdir("empty", answers=[])): "holds no answer",
    str(
      workdir("others", answers=[predict(1, 0, 1)])
    ): "number 1 is 'The cat is left of the mug.' (1)",
    f"good={good}": "'good'",
  }
  torn = workdir("torn")
  (torn / "predictions.jsonl").write_text('{"id": 1')
  foreign = workdir("foreign")
  (foreign / "config.json").write_text('{"config": {"epochs": 3}}')
  cases |= {str(torn): "not a stored prediction", str(foreign): "holds no finished evaluation"}
  for given, message in cases.items():
    first = [] if given.endswith("none*") else [str(good)]
    with pytest.raises(UsageError, match=re.escape(message)):
      read_runs([*first, given])


def test_a_control_belongs_to_the_run_with_the_same_settings():
  seen, other = finished("seen"), finished("other", checkpoint="q")
  blank, text = (
    finished("blank", control="blank"),
    finished("text", control="text_only", batch_size=4),
  )
  foreign = finished("foreign", control="blank", method="direct")
  found = with_their_controls([blank, seen, other, text, foreign])
  assert [(a.name, b.name) for a, b in found] == [("seen", "blank"), ("seen", "text")]
  older = FinishedRun("older", {k: v for k, v in SETTINGS.items() if k != "control"}, ())
  assert with_their_controls([older, blank]) == [(older, blank)]


def test_reasoned_answers_are_paired_with_direct_ones_of_any_policy_under_the_same_control():
  direct, chain = finished("d", method="direct", checkpoint="q"), finished("c")
  blind = finished("b", control="blank")
  majority = finished("m", method="majority")
  found = direct_and_reasoned([chain, direct, blind, majority])
  assert [(a.name, b.name) for a, b in found] == [("d", "c")]


def test_templates_are_grouped_where_nothing_else_differs():
  runs = [finished(t, template=t) for t in "abc"] + [finished("d", template="a", method="direct")]
  assert [[run.name for run in group] for group in of_several_templates(runs)] == [["a", "b", "c"]]


def test_settings_that_differ_in_kind():
  runs = [finished("a"), finished("b", control="blank", batch_size=16, **{"mesh.data": 2})]
  assert differing_settings(runs) == ["control"]
