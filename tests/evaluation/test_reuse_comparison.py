"""Rows, tables and report of a comparison of reuse."""

import pytest

from spatial_vlm.answers import STATEMENT
from spatial_vlm.config import UsageError
from spatial_vlm.evaluation import reuse_comparison
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.reuse_comparison import Arm
from spatial_vlm.evaluation.scores import score


def prediction(id, right, generated, prompt, retrieved=None, seconds=None):
  return Prediction(
    id=id,
    caption="The a is left of the b.",
    relation="left of" if id % 2 else "above|x",
    label=1,
    verdict=int(right),
    text="",
    boxes_true={},
    generated_tokens=generated,
    prompt_tokens=prompt,
    truncated=False,
    retrieved=retrieved,
    seconds=seconds,
  )


@pytest.fixture
def rows():
  chain = Arm(
    [prediction(i, i != 3, 120, 60, seconds=1.0 if i < 2 else None) for i in range(8)], {}, 0
  )
  reuse = Arm(
    [
      prediction(
        i,
        i not in (3, 4, 5),
        20 if i < 6 else 100,
        100,
        "b" if i < 6 else None,
        0.5 if i < 2 else None,
      )
      for i in range(8)
    ],
    {0: 0.1, 1: 0.2},
    5,
  )
  measured = {"full chain": chain, "reuse": reuse}
  return [
    reuse_comparison.comparison_row(name, arm, chain, score(arm.predictions, STATEMENT))
    for name, arm in measured.items()
  ]


def test_rows_follow_from_the_answers(rows):
  chain, reuse = rows
  assert "paired" not in chain and chain["hit_rate"] is None and chain["token_ratio"] == 1
  assert (reuse["accuracy"], reuse["hit_rate"], reuse["fallback_rate"]) == (5 / 8, 0.75, 0.25)
  assert reuse["generated_tokens_mean"] == 40 and reuse["prompt_tokens_mean"] == 100
  assert reuse["token_ratio"] == 3 and reuse["total_token_ratio"] == pytest.approx(180 / 140)
  assert reuse["seconds_p50"] == 0.5
  assert reuse["answer_seconds_p50"] == pytest.approx(0.35)
  assert (reuse["paired"]["only_a"], reuse["paired"]["only_b"]) == (2, 0)
  assert reuse["paired"]["difference"] == -0.25
  assert reuse["paired"]["lower_bound"] < -0.25


def test_tables_show_the_rows(rows):
  table = reuse_comparison.comparison_table(rows)
  assert "| reuse " in table and "3.00×" in table and "75.0 %" in table and "0.350" in table
  paired = reuse_comparison.paired_table(rows)
  assert paired.count("\n") == 2 and "−25.0" in paired
  assert "above\\|x" in reuse_comparison.relation_table(rows)


def test_the_report_has_every_part_and_the_figure_is_drawn(rows, tmp_path):
  reuse_comparison.draw_comparison(rows, tmp_path / "f.png")
  assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
  report = reuse_comparison.comparison_report(rows, 2, "f.png", {"records": "a_b"})
  assert (
    "(f.png)" in report and "a\\_b" in report and "same 8 held-out statements; 2 others" in report
  )
  for table in (reuse_comparison.comparison_table, reuse_comparison.paired_table):
    assert table(rows) in report


def test_arms_are_compared_on_the_examples_that_all_answered():
  """The second arm skipped the only example of one relation; the first has three times its tokens on the others."""
  chain = Arm([prediction(i, True, 300 if i == 2 else 60, 60) for i in (0, 2, 1)], {}, 0)
  reuse = Arm([prediction(i, True, 20, 60) for i in (0, 2, 4)], {}, 5)
  arms = reuse_comparison.on_common_examples({"full chain": chain, "reuse": reuse})
  assert {name: [p.id for p in arm.predictions] for name, arm in arms.items()} == {
    "full chain": [0, 2],
    "reuse": [0, 2],
  }
  rows = [
    reuse_comparison.comparison_row(n, a, arms["full chain"], score(a.predictions, STATEMENT))
    for n, a in arms.items()
  ]
  assert [row["n"] for row in rows] == [2, 2] and rows[1]["token_ratio"] == 9
  assert "left of" not in reuse_comparison.relation_table(rows)
  other = Arm([prediction(9, True, 1, 1)], {}, 0)
  with pytest.raises(UsageError, match="full chain: 3, reuse: 1"):
    reuse_comparison.on_common_examples({"full chain": chain, "reuse": other})
