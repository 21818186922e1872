"""Rows: shares of the machine's limits, and the round trip through JSON."""

import dataclasses
import json

import pytest

from spatial_vlm.benchmark.row import PENDING, Row, Spread


def row(**fields):
  return Row("tiny", "decode", limit_flops_per_s=1e12, limit_bytes_per_s=1e9, **fields)


def test_the_spread_has_the_median_and_the_extremes():
  assert Spread.of([3.0, 1.0, 10.0]) == (3.0, 1.0, 10.0)
  assert Spread.of([1.0, 2.0]) == (1.5, 1.0, 2.0)


def test_shares_of_the_limits():
  by_arithmetic = row(seconds=Spread(2.0, 1.0, 3.0), flops=1e12, bytes=1e8)
  assert by_arithmetic.of_peak == 0.5
  assert by_arithmetic.of_limit == 0.5
  by_memory = dataclasses.replace(by_arithmetic, bytes=1.5e9)
  assert by_memory.of_limit == pytest.approx(0.75)
  assert row(flops=1e12).of_peak is None
  assert row(seconds=Spread(2.0, 1.0, 3.0)).of_limit is None


def test_a_row_survives_json():
  rows = [
    row(seconds=Spread(2.0, 1.0, 3.0), ratio=Spread(1.0, 1.0, 1.0), note="8 rows"),
    row(error=PENDING),
  ]
  again = [Row.from_json(json.loads(json.dumps(dataclasses.asdict(r)))) for r in rows]
  assert again == rows
  assert [r.is_pending for r in again] == [False, True]


def test_the_summary_says_what_there_is():
  assert row(seconds=Spread(0.0123, 0.01, 0.02)).summary == "12.3 ms"
  assert row(error="no memory").summary == "ERROR: no memory"
  assert row(note="errors 1e-3").summary == "errors 1e-3"
