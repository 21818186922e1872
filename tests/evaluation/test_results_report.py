import html.parser
import json
import re

import pytest
from markdown_it import MarkdownIt

from spatial_vlm.evaluation.results_report import (
  DAPO_CHAIN,
  DAPO_REUSE,
  METHODS,
  REUSE_FULL_CHAIN,
  SFT_CHAIN,
  aims,
  markdown_report,
  result_row,
  results_json,
  table,
)
from spatial_vlm.evaluation.scores import score

FIELDS = [
  "method",
  "accuracy",
  "ci_low",
  "ci_high",
  "n",
  "generated_tokens_mean",
  "total_tokens_mean",
  "seconds_per_answer",
  "parse_rate",
  "box_iou",
]
HOSTILE = (
  "<script>alert(1)</script> <img src=x onerror=alert(1)> [click](http://a.example) ![x](http://b.example/p.png) "
  "www.c.example **bold** `code` | cell | $x$ &lt; \\ # head ~~gone~~ \x1b[31mred \u202eabc\n\n# title\n- item"
)


def answered(predict, right, n=1000, tokens=45, relation="left of", **fields):
  """n answers, the first `right` of them right."""
  return [
    predict(
      i,
      i % 2,
      i % 2 if i < right else 1 - i % 2,
      generated_tokens=tokens,
      relation=relation,
      **fields,
    )
    for i in range(n)
  ]


def scored(runs):
  return {method: score(predictions) for method, predictions in runs.items()}


class Tags(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.tags, self.text = [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)

  def handle_data(self, data):
    self.text += data


def rendered(markdown) -> Tags:
  """HTML of a strict GitHub-like renderer that lets raw HTML through and links bare addresses."""
  return Tags(
    MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
  )


def test_method_names_are_those_of_the_result_table():
  assert METHODS == (
    "majority",
    "tiny base, zero-shot",
    "SFT, direct answer",
    "SFT, chain of thought",
    "DAPO, chain of thought",
    "DAPO + reuse",
  )


def test_results_json_has_exactly_the_agreed_fields(predict, chain):
  text = chain(1, {"cat": (100, 100, 300, 300), "mug": (600, 600, 800, 800)})
  full = score([predict(0, 1, 1, text, seconds=0.25), predict(1, 0, 1, text)])
  none = score([predict(0, 1, 1, text="", generated_tokens=0, prompt_tokens=0)])
  written = results_json([result_row(SFT_CHAIN, full), result_row("majority", none)])
  got = json.loads(written)
  assert list(got) == ["rows"] and [list(row) for row in got["rows"]] == [FIELDS, FIELDS]
  assert got["rows"][0] | {"ci_low": 0, "ci_high": 0} == {
    "method": "SFT, chain of thought",
    "accuracy": 0.5,
    "ci_low": 0,
    "ci_high": 0,
    "n": 2,
    "generated_tokens_mean": 10,
    "total_tokens_mean": 40,
    "seconds_per_answer": 0.25,
    "parse_rate": 1,
    "box_iou": 1,
  }
  assert [got["rows"][1][name] for name in FIELDS[-3:]] == [None] * 3
  assert 0 < got["rows"][0]["ci_low"] < 0.5 < got["rows"][0]["ci_high"] < 1


def test_table_reads_in_a_terminal_and_as_markdown(predict):
  rows = [
    result_row(
      "majority",
      score([predict(i, 1, i % 2, "", generated_tokens=0, prompt_tokens=0) for i in range(9)]),
    ),
    result_row(DAPO_REUSE, score(answered(predict, 741, tokens=112))),
  ]
  lines = table(rows).split("\n")
  assert len({len(line) for line in lines}) == 1
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
  header = (
    "method | accuracy, 95 % CI | generated tokens | total tokens | s/answer | parse rate | box IoU"
  )
  assert cells[0] == header.split(" | ")
  assert cells[2][0] == "majority" and cells[2][2:] == ["0.0", "0.0", "–", "–", "–"]
  assert cells[3] == ["DAPO + reuse", "74.1 % (71.3–76.7)", "112.0", "142.0", "–", "100.0 %", "–"]
  assert rendered(table(rows)).tags.count("tr") == 3


@pytest.mark.parametrize("gain, met", [(29, False), (30, True), (31, True)])
def test_dapo_aim_is_three_points(predict, gain, met):
  runs = {SFT_CHAIN: answered(predict, 700), DAPO_CHAIN: answered(predict, 700 + gain)}
  (aim,) = aims(runs, scored(runs))
  assert aim.met is met
  assert (
    f"DAPO answers {70 + gain / 10:.1f} % rightly, SFT 70.0 %: +{gain / 10:.1f} points"
    in aim.figures
  )


@pytest.mark.parametrize(
  "loss, tokens, met, said",
  [
    (5, 13, True, r"−0\.5 points.*\(met\).*13\.0 tokens in place of 45\.0, 3\.46 times.*\(met\)"),
    (5, 14, False, r"\(met\).*3\.21 times fewer, where 3\.4 is asked \(missed\)"),
    (15, 13, False, r"above −2\.\d points, where −2\.0 is allowed \(missed\).*\(met\)"),
    (-10, 13, True, r"\+1\.0 points.*\(met\).*\(met\)"),
  ],
)
def test_reuse_aim_needs_both_the_bound_and_the_ratio(predict, loss, tokens, met, said):
  """15 of 1,000 lost is less than 2 points, but its one-sided bound is not."""
  runs = {
    DAPO_CHAIN: answered(predict, 740),
    DAPO_REUSE: answered(predict, 740 - loss, tokens=tokens),
  }
  (aim,) = aims(runs, scored(runs))
  assert aim.met is met
  assert re.search(said, aim.figures), aim.figures


def test_aims_without_their_rows(predict):
  runs = {SFT_CHAIN: answered(predict, 5, 10)}
  assert aims(runs, scored(runs)) == []
  assert "were not measured" in markdown_report(runs, scored(runs), {}, {}, {})


def whole_report(predict, **fields):
  runs = {method: answered(predict, 500 + 40 * i, **fields) for i, method in enumerate(METHODS)}
  runs[REUSE_FULL_CHAIN] = answered(predict, 690, **fields)
  return markdown_report(
    runs,
    scored(runs),
    {"left of": "Projective"},
    {"Training curves": "training_curves.png"},
    {"Config": "configs/demo.py:tiny", "Hardware": "two cores"},
  )


def test_report_holds_every_part(predict):
  text = whole_report(predict)
  page = rendered(text)
  assert page.tags.count("table") == 5  # results, paired tests, beyond accuracy, category, relation
  assert page.tags.count("img") == 1 and "](training_curves.png)" in text
  for i in range(len(METHODS) - 1):
    assert f"{METHODS[i]} → {METHODS[i + 1]}" in text
  assert f"{DAPO_CHAIN} → {REUSE_FULL_CHAIN}" in text
  assert re.search(r"\| left of\s+\| Projective\s+\| +1,000 \|", text)
  assert "- Config: configs/demo.py:tiny" in text
  results = text.split("## Aims")[0]
  assert REUSE_FULL_CHAIN not in results and DAPO_REUSE in results


def test_boxes_of_chains_are_reported(predict, chain):
  text = chain(1, {"cat": (100, 100, 300, 300), "mug": (0, 0, 20, 20)})
  runs = {SFT_CHAIN: [predict(i, 1, 1, text) for i in range(10)]}
  page = markdown_report(runs, scored(runs), {}, {}, {})
  assert re.search(r"\| SFT, chain of thought \| +10 \| +0\.500 \| +100\.0 % \| +50\.0 % \|", page)


def test_nothing_untrusted_is_interpreted(predict):
  """Caption, relation and answer reach the page letter by letter, and add no element to it."""
  plain = rendered(whole_report(predict, text="Summary: x"))
  hostile = rendered(
    whole_report(
      predict, text=f"{HOSTILE}\n````\n</code></pre><b>", caption=HOSTILE, relation=HOSTILE
    )
  )
  assert hostile.tags == plain.tags
  assert "<script>alert(1)</script> <img src=x onerror=alert(1)>" in hostile.text
  assert (
    "[click](http://a.example)" in hostile.text
    and "**bold** `code` | cell | $x$ &lt; \\" in hostile.text
  )
  assert "\x1b" not in hostile.text and "\u202e" not in hostile.text
