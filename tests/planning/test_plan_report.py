"""Tables, verdict and JSON of a plan."""

import dataclasses
import json

import pytest

from spatial_vlm.planning.chips import GIB, Chip
from spatial_vlm.planning.compiled import ProgramCost, ProgramKind
from spatial_vlm.planning.plan_report import as_json, ranking_table, tables, verdict
from spatial_vlm.planning.search import Candidate, Trial

CHIP = Chip(
  "toy",
  hbm_bytes=16 * GIB,
  peak_flops=1e12,
  hbm_bytes_per_s=1e9,
  ici_bytes_per_s=1e8,
  dcn_bytes_per_s=1e7,
)


@pytest.fixture
def cost():
  return ProgramCost(
    name="sampling",
    kind=ProgramKind.SAMPLING,
    chip="toy",
    chips=4,
    fits=True,
    peak_bytes=10 * GIB,
    resident_bytes={"rollout weights": 2 * GIB, "prompts": GIB},
    kv_cache_bytes=4 * GIB,
    lost_donation_bytes=0,
    flops=5e11,
    model_flops=1e12,
    memory_bytes=2 * 10**9,
    collectives={"tensor": {"all-reduce": 3 * 10**9}, "data+tensor": {"all-gather": 10**6}},
    loop_collective_bytes={},
    seconds={"compute": 0.5, "memory": 2.0, "network tensor": 1.5},
  )


def cells(text, first):
  """The cells of the row that begins with `first`."""
  [row] = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
  return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_memory_adds_up_to_the_peak(cost):
  shown = tables(cost, CHIP)
  parts = ["rollout weights", "prompts", "keys and values", "activations"]
  assert [float(cells(shown, part)[0]) for part in parts] == [2.0, 1.0, 4.0, 3.0]
  assert cells(shown, "peak") == ["10.00 of 16.00"]


def test_traffic_and_bounds(cost):
  shown = tables(cost, CHIP)
  assert cells(shown, "tensor") == ["all-reduce", "3.000"]
  assert cells(shown, "total") == ["", "3.001"]
  assert cells(shown, "compute") == ["0.500 TFLOP", "1 TFLOP/s", "500.0"]
  assert cells(shown, "time with full overlap")[-1] == "2000.0"
  assert cells(shown, "time without overlap")[-1] == "4000.0"
  assert "MFU 6% to 12%" in shown  # 1e12 of 4 chips × 1e12 × 4 s, or × 2 s


def test_a_program_that_moves_arrays_has_no_utilisation(cost):
  shown = tables(dataclasses.replace(cost, kind=ProgramKind.OTHER), CHIP)
  assert "MFU" not in shown and cells(shown, "time with full overlap")[-1] == "2000.0"


def test_verdict(cost):
  assert verdict(cost, CHIP) == "sampling fits, with 6.00 GiB of 16.00 to spare."
  large = dataclasses.replace(cost, fits=False, peak_bytes=20 * GIB)
  assert (
    verdict(large, CHIP) == "sampling does not fit: it needs 20.00 GiB of the 16.00 GiB of a toy."
  )


def test_json_has_all_figures(cost):
  written = json.loads(json.dumps(as_json([cost], [], CHIP, topology="toy:2x2")))
  [program] = written["programs"]
  assert written["topology"] == "toy:2x2" and written["chip"]["hbm_bytes"] == 16 * GIB
  assert program["collective_bytes"] == 3 * 10**9 + 10**6
  assert (program["fastest_s"], program["slowest_s"]) == (2.0, 4.0)
  assert program["mfu"] == pytest.approx([1 / 16, 1 / 8])


def test_ranking_names_settings_and_bounds(cost):
  small = Trial(Candidate((1, 2, 4, 1), 2, "full"), [cost])
  large = dataclasses.replace(cost, fits=False, peak_bytes=20 * GIB)
  shown = ranking_table([small, Trial(Candidate((1, 1, 8, 1), 1, "dots"), [cost, large])])
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()[2:]]
  assert rows[0] == ["1", "1", "2", "4", "1", "2", "full", "10.00", "2000–4000", "fits"]
  assert rows[1] == ["2", "1", "1", "8", "1", "1", "dots", "20.00", "–", "does not fit"]
