"""Measurements of one start: their order, failures, time limit, and settings that are refused."""

import pytest

from spatial_vlm.benchmark import measurements
from spatial_vlm.benchmark.measurements import check, measure
from spatial_vlm.benchmark.row import Row
from spatial_vlm.config import UsageError


def runs_out_of_memory(subject):
  yield Row(subject.name, "first", note="done")
  raise RuntimeError("RESOURCE_EXHAUSTED: 3 GiB\nlong explanation")


@pytest.fixture
def subject(make_subject, monkeypatch):
  known = {
    "forward": runs_out_of_memory,
    "decode": lambda subject: iter([Row(subject.name, "decode, batch 1", note="done")]),
  }
  monkeypatch.setattr(measurements, "MEASUREMENTS", known)
  return make_subject("measurements=('forward', 'decode')")


def test_a_failed_measurement_does_not_stop_the_others(subject):
  found = [(row and (row.name, row.error), running) for row, running in measure(subject)]
  assert found == [
    (None, "forward"),
    (("first", ""), "forward"),
    (("forward", "RuntimeError: RESOURCE_EXHAUSTED: 3 GiB"), "forward"),
    (None, ""),
    (None, "decode"),
    (("decode, batch 1", ""), "decode"),
    (None, ""),
  ]


def test_rows_have_the_limits_of_the_machine(subject):
  rows = [row for row, _ in measure(subject) if row and not row.error]
  assert [(row.limit_flops_per_s, row.limit_bytes_per_s) for row in rows] == [(1e11, 1e10)] * 2


def test_what_would_start_too_late_is_left_out(subject, monkeypatch):
  times = iter([0.0, 0.0, 2000.0])
  monkeypatch.setattr(measurements.time, "monotonic", lambda: next(times))
  *_, (last, running) = measure(subject)
  assert (last.name, last.error, running) == ("decode", "left out: 1800 s were over", "")


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("model=9b", "model is '9b'; choose one of"),
    ("dtype=int8", "dtype is 'int8'; choose one of float32, bfloat16"),
    ("measurements=('forward', 'train')", "each one of attention, parity, forward"),
    ("rounds=0", "rounds"),
    ("sft.remat=some", "remat is 'some'"),
    ("dapo.frozen_int8=True", "dapo.frozen_int8 is True"),
    ("decode.grid=(8, 7)", "decode.grid is (8, 7); give rows and columns of patches"),
    ("sft.images=3", "sft.tokens is 48; 3 images of (8, 8) patches need 69"),
  ],
)
def test_wrong_settings_are_refused(short_config, override, message):
  check(short_config())
  with pytest.raises(UsageError) as refused:
    check(short_config(override))
  assert message in str(refused.value)
