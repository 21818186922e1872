"""Candidates of the search, and the order of its trials."""

import types

from spatial_vlm.planning.search import Candidate, Trial, meshes, rank, search


def result(fits, seconds=1.0, peak=1):
  return types.SimpleNamespace(fits=fits, fastest_s=seconds, slowest_s=seconds, peak_bytes=peak)


def test_meshes_shard_parameters_as_far_as_their_widths_allow():
  assert meshes(8, 1) == [(1, 1, 8, 1), (1, 1, 4, 2), (1, 1, 2, 4), (1, 1, 1, 8)]
  assert meshes(512, 2)[:2] == [(2, 2, 128, 1), (2, 1, 128, 2)]
  assert meshes(1, 1) == [(1, 1, 1, 1)]


def test_each_mesh_gets_the_fewest_micro_batches_that_fit():
  tried = []

  def attempt(candidate):
    tried.append(candidate)
    return Trial(candidate, [result(candidate.micro_batches >= 4 or candidate.remat == "full")])

  found = list(search([(1, 1, 2, 1)], 16, attempt))
  assert [(c.remat, c.micro_batches) for c in tried] == [
    *((policy, count) for policy in ("dots", "attention", "context") for count in (1, 2, 4)),
    ("full", 1),
  ]
  assert [trial.fits for trial in found] == [False, False, True] * 3 + [True]


def test_meshes_that_rows_do_not_fill_are_skipped():
  shapes = [(1, 1, 32, 1), (1, 1, 16, 2)]
  found = search(shapes, 16, lambda candidate: Trial(candidate, [result(False)]))
  assert {(trial.candidate.mesh, trial.candidate.micro_batches) for trial in found} == {
    ((1, 1, 16, 2), 1)  # a row for each device: no micro-batch can be smaller
  }


def test_fast_trials_that_fit_come_first():
  def trial(name, *costs):
    return Trial(Candidate((1, 1, 1, 1), 1, name), costs)

  found = rank(
    [
      trial("large", result(False, 0.0, peak=9)),
      trial("slow", result(True, 2.0), result(True, 3.0)),
      trial("small", result(False, 0.0, peak=3)),
      trial("half", result(True, 0.1), result(False, 0.1, peak=4)),
      trial("fast", result(True, 1.0)),
    ]
  )
  assert [trial.candidate.remat for trial in found] == ["fast", "slow", "small", "large", "half"]


def test_settings_are_leaves_of_a_config():
  assert Candidate((2, 1, 4, 8), 3, "full").settings() == {
    "mesh.slice": 2,
    "mesh.data": 1,
    "mesh.fsdp": 4,
    "mesh.tensor": 8,
    "micro_batches": 3,
    "remat": "full",
  }
