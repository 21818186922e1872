"""Chains in teachers' words: what is read is right, and what cannot be read is left."""

import collections
import importlib
import json
import re
from pathlib import Path

import pytest

from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.data.statement import read_statement
from spatial_vlm.reuse.chains.chain_check import (
  OTHER_OBJECTS,
  UNDECIDED,
  UNREADABLE,
  read_chain,
  reading_report,
)
from spatial_vlm.reuse.chains.comparison import BLANK
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.extraction.patterns import short_from_chain
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.synthesis import draft
from spatial_vlm.synthesis.formats import GEMINI

FILE = Path(__file__).with_name("prose_chains.jsonl")
SHARED = Path(__file__).parents[3].parent / "shared" / "cases" / "teacher_prose.jsonl"
READ_SHARE = 0.88
"""Share of geometric chains that must be read; the rest has wordings that are left."""


@pytest.fixture(scope="module")
def rows():
  return [json.loads(line) for line in FILE.read_text().splitlines()]


def solution(row, number=0):
  chain = draft.chain(GEMINI.parse(json.dumps(row["answer"])))
  subj, _, obj = read_statement(row["caption"])
  return Solution(
    f"train:{number}", row["caption"], row["relation"], subj, obj, chain, row["label"]
  )


def test_the_file_is_what_its_script_writes(rows, monkeypatch):
  monkeypatch.syspath_prepend(FILE.parent)
  make_prose_chains = importlib.import_module("make_prose_chains")
  assert rows == make_prose_chains.chains()
  assert len(rows) >= 300 and {row["relation"] for row in rows} == {*META_CATEGORY}


def test_nothing_is_read_wrongly_and_most_is_read(rows):
  """Every comparison and short answer is the expected one; chains without an expected one give none."""
  read, expected = 0, 0
  for row in rows:
    s = solution(row)
    reading = read_chain(s)
    expected += row["masked"] is not None
    if reading.comparison is None:
      continue
    read += 1
    letters = dict(zip(map(str.casefold, s.names), "XY", strict=True))
    masked = " ".join(re.sub(f"=?{BLANK}", "", reading.comparison.masked(letters)).split())
    assert (masked, reading.comparison.with_names) == (row["masked"], row["short"]), row["answer"]
  assert expected > 200 and read >= READ_SHARE * expected


def test_short_answers_have_no_leftovers(rows):
  """A short answer has names, roles, numbers and signs, at most whether the relation holds, and no other word."""
  known = {"left", "right", "top", "bottom", "edge", "to", "so", "it", "they", "is", "are", "not"}
  for row in rows:
    s = solution(row)
    behavior = Behavior("behavior_b", "compare", row["relation"], ("q",), ("train:1",), 3)
    short = short_from_chain(behavior, s)
    if not short:
      continue
    comparison = short.splitlines()[0].partition("': ")[2]
    for name in sorted(s.names, key=len, reverse=True):
      assert name in comparison
      comparison = comparison.replace(name, "")
    left = {w.strip(",") for w in comparison.split() if "=" not in w and w[0].isalpha()}
    assert left <= {*known, *row["relation"].split()}, short


def test_the_report_says_what_is_read_and_why_the_rest_is_left(rows):
  report = reading_report(map(solution, rows))
  assert report.read + report.left.total() == len(rows)
  assert str(report).startswith(f"{report.read} of {len(rows)} chains read, left: ")
  assert f"{report.left[UNREADABLE]} {UNREADABLE}" in str(report)


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not beside the checkout")
def test_chains_of_real_teachers():
  """Numeric chains are read; chains that judge by what is seen are left."""
  found = collections.Counter()
  masked = {}
  for line in SHARED.read_text().splitlines():
    row = json.loads(line)
    relation = max((r for r in META_CATEGORY if r in read_statement(row["caption"])[1]), key=len)
    s = solution(row | {"relation": relation})
    reading = read_chain(s)
    found[reading.reason] += 1
    if reading.comparison:
      letters = dict(zip(map(str.casefold, s.names), "XY", strict=True))
      masked[row["caption"], row["label"]] = reading.comparison.masked(letters)
  assert found == {"": 17, UNREADABLE: 8, UNDECIDED: 4, OTHER_OBJECTS: 1}
  assert masked["The dog is at the right side of the refrigerator.", 1] == "X centre x > Y centre x"
  assert masked["The dog is under the bench.", 1] == "X centre y > Y centre y"
  assert masked["The dog is parallel to the cat.", 1] == "X w > h, Y w > h"
  assert masked["The bus is behind the person.", 1] == "X bottom edge y < Y bottom edge y"
