"""The report of several evaluations: its parts, its figures in words, and untrusted names."""

import html.parser
import re

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from spatial_vlm.evaluation.runs import FinishedRun
from spatial_vlm.evaluation.runs_comparison import compare_runs
from spatial_vlm.evaluation.runs_report import draw_runs, runs_report

HOSTILE = (
  "<script>alert(1)</script> [click](http://a.example) ![x](http://b.example/p.png) **b** | $x$"
)
PARTS = (
  "How the rows differ",
  "Against seen, paired",
  "With and without the image",
  "Reasoning against direct answers",
  "Spread over templates",
  "Contrastive pairs",
  "Right verdicts through wrong boxes",
  "By relation and stratum",
  "How it was made",
)


@pytest.fixture
def found(predict, chain):
  """What five runs show: one with two controls, one with another template, one of direct answers."""
  boxes = {"cat": (100, 100, 300, 300), "mug": (0, 0, 20, 20)}

  def run(name, right, seen=True, **settings):
    answers = []
    for i in range(100):
      verdict = i % 2 if i < right else 1 - i % 2
      text, image = chain(verdict, boxes), f"{i // 2}.png"
      fields = {} if seen else {"boxes_true": {}}
      answers.append(predict(i, i % 2, verdict, text, extracted=verdict, image=image, **fields))
    known = {"method": "chain", "checkpoint": "p", "task": "vsr", "control": "", "template": "a"}
    return FinishedRun(name, known | settings, answers)

  def make(first="seen", template="b"):
    runs = [
      run(first, 80),
      run("blank", 52, seen=False, control="blank"),
      run("text only", 75, seen=False, control="text_only"),
      run("other wording", 70, template=template),
      run("direct", 84, method="direct"),
    ]
    return compare_runs(runs, True)

  return make


class Tags(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.tags = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)


def tags(markdown):
  return Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)).tags


def test_the_report_has_every_part_and_says_what_it_found(found):
  text = runs_report(found(), "accuracy.png", {"records": "test.jsonl"})
  assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(PARTS)
  assert (
    "- **seen, text\\_only, strict: right without seeing** (75.0 % of 100 verdicts without" in text
  )
  assert "- seen, blank, strict: no better than guessing (52.0 % of 100 verdicts" in text
  rows = {
    line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| direct ")
  }
  reasoning = [line for line in text.splitlines() if re.match(r"\| direct +\| seen ", line)]
  assert rows and len(reasoning) == 1 and "−4.0" in reasoning[0] and "| yes " in reasoning[0]
  spread = [
    line for line in text.splitlines() if re.match(r"\| seen, other wording +\| strict", line)
  ]
  assert len(spread) == 1 and "75.0 %" in spread[0] and "70.0 % (" in spread[0]


def test_every_accuracy_in_a_table_has_its_interval(found):
  text = runs_report(found(), "accuracy.png", {})
  table = text.split("\n\n")[2]
  assert "strict, 95 % CI" in table
  for line in table.splitlines()[2:]:
    assert len(re.findall(r"\d+\.\d % \(\d+\.\d–\d+\.\d\)", line)) == 4


def test_right_verdicts_through_wrong_boxes_are_counted(found):
  text = runs_report(found(), "accuracy.png", {}).partition("## Right verdicts")[2]
  line = next(line for line in text.splitlines() if line.startswith("| seen "))
  assert "100.0 % (95.4–100.0)" in line and " 50.0 % (43.1–56.9)" in line


def test_parts_without_rows_are_left_out(found):
  content = found() | {"controls": [], "reasoning": [], "templates": [], "pairs": [], "boxes": []}
  content["strata"] = []
  content["rows"] = [row | {"settings": {}} for row in content["rows"][:1]]
  text = runs_report(content, "accuracy.png", {})
  assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["How it was made"]


def test_untrusted_text_is_escaped(found):
  plain = tags(runs_report(found(), "accuracy.png", {"records": "a"}))
  text = runs_report(found(HOSTILE, HOSTILE), "accuracy.png", {"records": HOSTILE})
  assert tags(text) == plain and "<script>" not in text


def test_the_figure_is_an_image_and_the_same_each_time(found, tmp_path):
  draw_runs(found("$x$ " * 30), tmp_path / "a.png")
  draw_runs(found("$x$ " * 30), tmp_path / "b.png")
  assert Image.open(tmp_path / "a.png").width > 1000
  assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
