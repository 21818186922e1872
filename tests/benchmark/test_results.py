"""Files of results: rows of several starts, and what a killed start leaves."""

import json

import pytest
from etils import epath

from spatial_vlm.benchmark.limits import Limits
from spatial_vlm.benchmark.results import Results, cells, report
from spatial_vlm.benchmark.row import Row, Spread

TIMED = Row(
  "tiny",
  "forward",
  seconds=Spread(0.5, 0.4, 0.7),
  tokens=1000,
  flops=1e11,
  limit_flops_per_s=1e12,
  limit_bytes_per_s=1e10,
  ratio=Spread(1.5, 1.4, 1.6),
  note="8 rows | 64 patches",
)


@pytest.fixture
def workdir(tmp_path):
  return epath.Path(tmp_path / "bench")


def names(workdir):
  rows = json.loads((workdir / "results.json").read_text())["rows"]
  return [(row["model"], row["name"], row["error"]) for row in rows]


def test_a_row_is_written_as_soon_as_it_is_there(workdir):
  results = Results(workdir)
  results.start("tiny", "float32", Limits(1e12, 1e10))
  results.add(None, ("tiny", "forward"))
  assert names(workdir) == [("tiny", "forward", "did not finish")]
  results.add(TIMED, ("tiny", "forward"))
  results.add(None, None)
  assert names(workdir) == [("tiny", "forward", "")]
  results.add(None, ("tiny", "sft"))
  assert names(workdir) == [("tiny", "forward", ""), ("tiny", "sft", "did not finish")]


def test_what_a_killed_start_left_is_kept_until_it_is_measured(workdir):
  Results(workdir).add(None, ("tiny", "sft"))
  later = Results(workdir)
  later.add(None, ("8b", "decode"))
  later.add(Row("8b", "decode, batch 1", note="x"), ("8b", "decode"))
  later.add(None, None)
  assert names(workdir) == [("tiny", "sft", "did not finish"), ("8b", "decode, batch 1", "")]
  later.add(None, ("tiny", "sft"))
  later.add(Row("tiny", "training step", note="y"), ("tiny", "sft"))
  later.add(None, None)
  assert [name for _, name, _ in names(workdir)] == ["decode, batch 1", "training step"]


def test_a_later_start_replaces_rows_of_the_same_name(workdir):
  first = Results(workdir)
  first.start("tiny", "float32", Limits(1e12, 1e10))
  first.add(TIMED, None)
  second = Results(workdir)
  second.start("tiny", "float32", Limits(1e12, 1e10))
  assert second.rows == [TIMED]
  second.add(Row("tiny", "forward", error="no memory"), None)
  assert names(workdir) == [("tiny", "forward", "no memory")]
  assert len(second.starts) == 2


def test_the_report_names_the_machine_and_all_rows(workdir):
  results = Results(workdir)
  results.start("tiny", "float32", Limits(1e12, 1e10))
  results.add(TIMED, None)
  results.add(Row("tiny", "training step", error="RESOURCE_EXHAUSTED: 3 GiB"), None)
  text = (workdir / "results.md").read_text()
  assert text == report(results.starts, results.rows) + "\n"
  assert "1 TFLOP/s, 10 GB/s" in text and "jax " in text and "cpu" in text.lower()
  assert "ERROR: RESOURCE\\_EXHAUSTED" in text
  assert "8 rows \\| 64 patches" in text


def test_the_cells_of_a_row():
  model, name, ms, tokens, rate, of_peak, of_limit, *_, ratio = cells(TIMED)
  assert (model, name, ms, tokens) == ("tiny", "forward", "500 (400–700)", "2,000")
  assert (rate, of_peak, of_limit) == ("0.2", "20.0 %", "20.0 %")
  assert ratio == "1.5 (1.4–1.6)"
