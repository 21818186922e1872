"""`report`: compares finished evaluations."""

import json

import pytest

from spatial_vlm import config
from spatial_vlm.evaluation.predictions import CANNOT_TELL, Prediction
from spatial_vlm.inference.controls import CONTROLS

CONTROLLED = ("", *CONTROLS)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, run, evaluate_changes):
  """Workdirs of a direct evaluation with the image and under every control."""
  folder = tmp_path_factory.mktemp("evaluated")
  changes = {"method": "direct", "max_new_tokens": 4, "timed_questions": 0, "limit": 16}
  shapes = {"prompt_shapes": "((96, 64),)"}
  for control in CONTROLLED:
    settings = {**evaluate_changes, **changes, **shapes, "control": control}
    assert run("evaluate", folder / (control or "image"), settings).code == 0
  return folder


def answers(folder):
  lines = (folder / "predictions.jsonl").read_text().splitlines()
  return [Prediction.from_json(line) for line in lines]


def test_controls_answer_the_same_records_under_their_own_origin(evaluated):
  plain = answers(evaluated / "image")
  assert all(p.image and p.boxes_true for p in plain)
  assert not (evaluated / "image" / "origin.json").exists()
  for control in CONTROLS:
    blind = answers(evaluated / control)
    key = [(p.id, p.caption, p.label, p.image) for p in blind]
    assert key == [(p.id, p.caption, p.label, p.image) for p in plain]
    assert not any(p.boxes_true for p in blind)
    assert json.loads((evaluated / control / "origin.json").read_text()) == {"control": control}
    assert {p.verdict for p in blind} <= {0, 1, -1, CANNOT_TELL}
  shorter = zip(answers(evaluated / "text_only"), plain, strict=True)
  assert all(a.prompt_tokens < b.prompt_tokens for a, b in shorter)
  longer = zip(answers(evaluated / "cannot_tell"), plain, strict=True)
  assert all(a.prompt_tokens > b.prompt_tokens for a, b in longer)


def test_a_workdir_holds_one_control(run, evaluated, evaluate_changes, capsys):
  settings = {"method": "direct", "max_new_tokens": 4, "timed_questions": 0, "limit": 16}
  changes = {**evaluate_changes, **settings, "prompt_shapes": "((96, 64),)", "control": "blank"}
  assert run("evaluate", evaluated / "text_only", changes).code == 2
  assert "control: 'text_only' → 'blank'" in capsys.readouterr().err.replace('"', "'")


def test_the_report_compares_them(run, evaluated, tmp_path, capsys):
  runs = f"('{evaluated / 'image'}', '{evaluated}/[!i]*')"
  done = run("report", tmp_path, {"runs": runs})
  assert done.code == 0 and not config.unread(done.configs[0])
  text = (tmp_path / "report.md").read_text()
  found = json.loads((tmp_path / "results.json").read_text())
  assert [row["name"] for row in found["rows"]] == ["image", *sorted(CONTROLS)]
  assert {row["control"] for row in found["controls"]} == {*CONTROLS}
  assert "## With and without the image" in text and (tmp_path / "accuracy.png").exists()
  assert "strict, 95 % CI" in capsys.readouterr().out
  assert run("report", tmp_path, {"runs": f"('{evaluated / 'image'}',)"}).code == 0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"runs": "()"}, "runs is empty"),
    ({"runs": "('no/such/folder',)"}, "no/such/folder holds no finished evaluation"),
  ],
)
def test_wrong_settings_are_refused_on_one_line(refused, changes, message):
  assert message in refused("report", changes)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"control": "black"}, "control is 'black'; choose one of blank, cannot_tell"),
    ({"control": "blank", "method": "majority"}, "set control to ''"),
    ({"control": "cannot_tell", "method": "zero-shot"}, "choose another method or control"),
  ],
)
def test_controls_that_cannot_be_measured_are_refused(refused, evaluate_changes, changes, message):
  assert message in refused("evaluate", {**evaluate_changes, **changes})
