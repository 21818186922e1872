"""The report on sets of records."""

import pytest

from spatial_vlm.data import split_report
from spatial_vlm.data.records import Record
from spatial_vlm.data.statistics import describe


def record(image, caption, label, relation):
  return Record(image, "", caption, label, relation, 7, "[1, 2]", "[]")


@pytest.fixture
def statistics():
  sets = {
    "train": [record("a.jpg", "The cat is on the mug.", 1, "on")] * 1200,
    "a|b": [record("b.jpg", "The cat is [near](x) the mug.", 0, "[near](x)")],
  }
  bad = [{"file": "f.jsonl", "line": line, "reason": "<b>torn</b>"} for line in range(1, 13)]
  faults = {"train": bad, "a|b": []}
  return {
    name: {**describe(records), "skipped": faults[name], "missing_images": {"count": 3}}
    for name, records in sets.items()
  }


def cells(table, row):
  return [cell.strip() for cell in table.splitlines()[row].split(" | ")]


def test_each_split_is_a_row_of_sizes(statistics):
  rows = [cells(split_report.sizes_table(statistics), row) for row in (2, 3)]
  assert rows[0] == ["| train", "1,200", "1", "1", "1", "0", "100.0 %", "12", "3 |"]
  assert rows[1][:2] == [r"| a\|b", "1"]


def test_groups_are_columns_and_may_be_absent_from_a_split(statistics):
  table = split_report.group_table(statistics, "by_relation", "relation")
  assert cells(table, 0) == ["| relation", "train", "true", r"a\|b", "true |"]
  assert cells(table, 2) == ["| on", "1,200", "100.0 %", "0", "– |"]
  assert cells(table, 3) == [r"| \[near\](x)", "0", "–", "1", "0.0 % |"]


def test_the_first_faults_are_shown_with_markdown_escaped(statistics):
  text = split_report.markdown_report(statistics, None, {}, has_sheet=False)
  assert "- train: 12, of which the first:" in text and r"- a\|b: 0" in text
  assert text.count("&lt;b&gt;torn&lt;/b&gt;") == split_report.SHOWN == 10 and "<b>" not in text
  assert "## Store" not in text and "contact_sheet" not in text


def test_shared_pairs_are_reported(statistics):
  overlap = {"evaluation": "e.jsonl", "pairs": 1222, "shared": 830, "dropped": False}
  said = "830 of the 1,222 pairs of image and caption in e.jsonl are in the training set"
  assert split_report.overlap_text(overlap) == said + "."
  assert split_report.overlap_text({**overlap, "dropped": True}).startswith(said + ", from which")
  assert "No evaluation set" in split_report.summary(statistics, None)
