import json

import pytest
from markdown_it import MarkdownIt

from spatial_vlm.config import UsageError
from spatial_vlm.evaluation.results import (
  RecallCount,
  count_recalls,
  read_recalls,
  recalls_json,
  result_row,
  results_json,
  results_table,
)
from spatial_vlm.evaluation.scores import score_statements
from spatial_vlm.evaluation.statistics import rate

FIELDS = [
  "method",
  "accuracy",
  "ci_low",
  "ci_high",
  "n",
  "extracted",
  "groups",
  "skipped",
  "generated_tokens_mean",
  "total_tokens_mean",
  "seconds_per_answer",
  "parse_rate",
  "box_iou",
]


def test_results_json_has_exactly_the_agreed_fields(predict, chain):
  text = chain(1, {"cat": (100, 100, 300, 300), "mug": (600, 600, 800, 800)})
  full = score_statements(
    [predict(0, 1, 1, text, seconds=0.25, extracted=1), predict(1, 0, 1, text, extracted=0)]
  )
  none = score_statements([predict(0, 1, 1, text="", generated_tokens=0, prompt_tokens=0)])
  written = results_json([result_row("SFT, chain of thought", full), result_row("majority", none)])
  got = json.loads(written)
  assert list(got) == ["rows"] and [list(row) for row in got["rows"]] == [FIELDS, FIELDS]
  assert got["rows"][0] | {"ci_low": 0, "ci_high": 0} == {
    "method": "SFT, chain of thought",
    "accuracy": 0.5,
    "ci_low": 0,
    "ci_high": 0,
    "n": 2,
    "extracted": rate([True, True]),
    "groups": None,
    "skipped": None,
    "generated_tokens_mean": 10,
    "total_tokens_mean": 40,
    "seconds_per_answer": 0.25,
    "parse_rate": 1,
    "box_iou": 1,
  }
  assert [got["rows"][1][name] for name in FIELDS[-3:]] == [None] * 3
  assert 0 < got["rows"][0]["ci_low"] < 0.5 < got["rows"][0]["ci_high"] < 1


def test_the_table_is_readable_in_a_terminal_and_as_markdown(predict):
  short = [predict(i, 1, int(i < 741), generated_tokens=112, extracted=1) for i in range(1000)]
  silent = [predict(i, 1, i % 2, "", generated_tokens=0, prompt_tokens=0) for i in range(9)]
  rows = [
    result_row("majority", score_statements(silent)),
    result_row("DAPO + reuse", score_statements(short)),
  ]
  lines = results_table(rows).split("\n")
  assert len({len(line) for line in lines}) == 1
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
  header = (
    "method | accuracy, 95 % CI | extracted, 95 % CI | generated tokens | total tokens | s/answer | parse rate | "
    "box IoU"
  )
  assert cells[0] == header.split(" | ")
  assert cells[2][0] == "majority" and cells[2][3:] == ["0.0", "0.0", "–", "–", "–"]
  assert cells[3] == [
    *("DAPO + reuse", "74.1 % (71.3–76.7)", "100.0 % (99.6–100.0)", "112.0", "142.0", "–"),
    *("100.0 % (99.6–100.0)", "–"),
  ]
  rows = [{name: value for name, value in row.items() if name != "extracted"} for row in rows]
  assert [line.split("|")[3].strip() for line in results_table(rows).split("\n")[2:]] == ["–", "–"]
  assert MarkdownIt().enable("table").render(results_table(rows)).count("<tr>") == 3


def test_recalls_are_counted_against_the_answers_that_recalled_nothing(predict):
  a, b = "behavior_a", "behavior_b"
  answers = [(b, 1, 10), (a, 1, 5), (b, 0, 20), (None, 1, 90), (None, 0, 110)]
  predictions = [
    predict(i, 1, verdict, retrieved=name, generated_tokens=tokens)
    for i, (name, verdict, tokens) in enumerate(answers)
  ]
  counts = count_recalls(predictions)
  assert list(counts.items()) == [(a, RecallCount(1, 1, 95)), (b, RecallCount(2, 1, 85))]
  assert count_recalls(predictions, chain_tokens=50)[b].saved_tokens == 35
  assert count_recalls(predictions[:3])[b].saved_tokens is None
  assert count_recalls([]) == {}


def test_recalls_are_written_and_summed_over_runs(tmp_path):
  runs = [
    {"behavior_a": RecallCount(1, 1, 95.0), "behavior_b": RecallCount(2, 1, 85.0)},
    {"behavior_b": RecallCount(3, 3, 60.0), "behavior_c": RecallCount(1, 0, None)},
    {"behavior_b": RecallCount(1, 0, None)},
  ]
  paths = [tmp_path / f"{i}.json" for i in range(len(runs))]
  for path, recalls in zip(paths, runs, strict=True):
    path.write_text(results_json([], split="train", recalls=recalls_json(recalls)))
  assert read_recalls(paths) == {
    "behavior_a": RecallCount(1, 1, 95),
    "behavior_b": RecallCount(6, 4, 70),  # (2 × 85 + 3 × 60) / 5: the last run measured nothing
    "behavior_c": RecallCount(1, 0, None),
  }
  assert read_recalls(()) == {}


@pytest.mark.parametrize(
  "text",
  [
    *("{", "[]", '{"rows": []}', '{"recalls": 3}', '{"recalls": {"a": 3}}'),
    '{"recalls": {"a": {"recalls": 1, "successes": 2, "saved_tokens": 1.0}}}',
  ],
)
def test_a_file_without_recalls_is_named(tmp_path, text):
  (tmp_path / "results.json").write_text(text)
  with pytest.raises(UsageError, match="results.json counts no recalls"):
    read_recalls([tmp_path / "results.json"])


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"split": "test"}, "on 'test', a split to measure on"),
    ({"split": "vsr_zeroshot_dataset_yn_strict", "held_out": True}, "a split to measure on"),
    ({"split": "vsr_dev"}, "on 'vsr_dev', a split to measure on"),
    ({}, "does not name the split of its records; start `evaluate` again in its workdir"),
  ],
)
def test_recalls_on_held_out_records_are_refused(tmp_path, fields, message):
  recalls = recalls_json({"behavior_a": RecallCount(1, 1, 95.0)})
  (tmp_path / "results.json").write_text(results_json([], **fields, recalls=recalls))
  with pytest.raises(UsageError, match=message):
    read_recalls([tmp_path / "results.json"])
