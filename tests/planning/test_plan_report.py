"""Tables, verdict and JSON of what programs need."""

import dataclasses
import json

import pytest

from spatial_vlm.planning.chips import GIB, Chip
from spatial_vlm.planning.compiled import Needs
from spatial_vlm.planning.plan_report import as_json, ranking, tables, verdict
from spatial_vlm.planning.search import Candidate, Ranked

CHIP = Chip("toy", hbm_bytes=16 * GIB, flops=1e12, hbm=1e9, ici=1e8, dcn=1e7)


@pytest.fixture
def found():
  return Needs(
    program="sampling",
    chip="toy",
    chips=4,
    fits=True,
    peak_bytes=10 * GIB,
    held_bytes={"parameters to sample": 2 * GIB, "prompts": GIB},
    cache_bytes=4 * GIB,
    lost_donation_bytes=0,
    flops=5e11,
    useful_flops=1e12,
    memory_bytes=2 * 10**9,
    collectives={"tensor": {"all-reduce": 3 * 10**9}, "data+tensor": {"all-gather": 10**6}},
    in_loops={},
    seconds={"compute": 0.5, "memory": 2.0, "network tensor": 1.5},
  )


def cells(text, first):
  """The cells of the row that begins with `first`."""
  [row] = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
  return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_memory_adds_up_to_the_peak(found):
  shown = tables(found, CHIP)
  parts = ["parameters to sample", "prompts", "keys and values", "activations"]
  assert [float(cells(shown, part)[0]) for part in parts] == [2.0, 1.0, 4.0, 3.0]
  assert cells(shown, "at most at a time") == ["10.00 of 16.00"]


def test_traffic_and_bounds(found):
  shown = tables(found, CHIP)
  assert cells(shown, "tensor") == ["all-reduce", "3.000"]
  assert cells(shown, "all") == ["", "3.001"]
  assert cells(shown, "compute") == ["0.500 TFLOP", "1 TFLOP/s", "500.0"]
  assert cells(shown, "in all, all of it overlapping")[-1] == "2000.0"
  assert cells(shown, "in all, one after the other")[-1] == "4000.0"
  assert "MFU 6% to 12%" in shown  # 1e12 of 4 chips × 1e12 × 4 s, or × 2 s


def test_verdict(found):
  assert verdict(found, CHIP) == "sampling fits, with 6.00 GiB of 16.00 to spare."
  large = dataclasses.replace(found, fits=False, peak_bytes=20 * GIB)
  assert (
    verdict(large, CHIP) == "sampling does not fit: it needs 20.00 GiB of the 16.00 GiB of a toy."
  )


def test_json_has_all_figures(found):
  written = json.loads(json.dumps(as_json([found], [], CHIP, topology="toy:2x2")))
  [program] = written["programs"]
  assert written["topology"] == "toy:2x2" and written["chip"]["hbm_bytes"] == 16 * GIB
  assert program["collective_bytes"] == 3 * 10**9 + 10**6
  assert (program["fastest_s"], program["slowest_s"]) == (2.0, 4.0)
  assert program["mfu"] == pytest.approx([1 / 16, 1 / 8])


def test_ranking_names_settings_and_bounds(found):
  small = Ranked(Candidate((1, 2, 4, 1), 2, "full"), [found])
  large = dataclasses.replace(found, fits=False, peak_bytes=20 * GIB)
  shown = ranking([small, Ranked(Candidate((1, 1, 8, 1), 1, "dots"), [found, large])], CHIP)
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()[2:]]
  assert rows[0] == ["1", "1", "2", "4", "1", "2", "full", "10.00", "2000–4000", "fits"]
  assert rows[1] == ["2", "1", "1", "8", "1", "1", "dots", "20.00", "–", "does not fit"]
