"""Rows of a DAPO step and its phases."""

import itertools

import jax
import numpy as np
import pytest

from spatial_vlm import metrics
from spatial_vlm.benchmark.dapo_rows import PHASES, _Run, dapo_rows
from spatial_vlm.metrics import PhaseClock


@pytest.fixture(scope="module")
def rows(make_subject):
  subject = make_subject()
  with jax.set_mesh(subject.mesh):
    return {row.name: row for row in dapo_rows(subject)}


def test_a_step_is_the_sum_of_its_phases(rows):
  step, *phases = rows.values()
  assert [*rows] == ["DAPO step", *PHASES.values()]
  assert step.seconds.median == pytest.approx(sum(phase.seconds.median for phase in phases))
  assert step.flops == pytest.approx(sum(phase.flops for phase in phases))
  assert step.tokens == 4 * 2 * 4
  assert all(phase.compile_s > 0 and phase.peak_bytes > 1e6 for phase in phases)


def test_an_update_costs_three_scorings(rows):
  """Of both mini-batches, of which one is scored before."""
  scoring = rows["DAPO old log-probabilities"].flops
  assert rows["DAPO update"].flops / scoring == pytest.approx(2 * 3, rel=0.1)
  assert rows["DAPO sampling"].flops == pytest.approx(2 * scoring, rel=0.1)


@pytest.fixture
def run(make_subject):
  subject = make_subject("dapo.rollout_batch_size=2", "dapo.max_rollout_rounds=2")
  with jax.set_mesh(subject.mesh):
    yield _Run(subject)


def test_every_group_is_kept_and_all_answers_are_full(run):
  rollout = run._sampler(PhaseClock())(run._state.train.params, 2)
  assert rollout.ids.tolist() == [2, 3]
  assert rollout.correct.tolist() == [[True, False]] * 2
  assert rollout.mask.all() and rollout.length_tokens.tolist() == [[4, 4]] * 2


def test_rounds_fill_the_batch_before_the_update(run, monkeypatch):
  """A clock that advances by 1 s at each reading: a phase takes 1 s each time that it runs."""
  ticks = itertools.count()
  monkeypatch.setattr(metrics.time, "perf_counter", lambda: float(next(ticks)))
  assert run.phase_seconds(2) == {"sampling": [2, 2], "old_logprobs": [1, 1], "update": [1, 1]}


def test_prompts_are_taken_by_number_again_and_again(run):
  prompts = run._requests_of(run._mesh, [1, 6]).prompts
  assert prompts.ids.tolist() == [1, 2]
  np.testing.assert_array_equal(prompts.tokens, run._prompts.tokens[[1, 2]])


def test_no_program_holds_weights_as_constants(make_subject, caplog, monkeypatch):
  """Frozen weights are arguments: as constants they would be copied into each program."""
  subject = make_subject("dapo.lora.rank=4", "dapo.trainable=('.*/lora_[ab]',)")
  with jax.set_mesh(subject.mesh):
    run = _Run(subject)
    for trace in run.traces(run.settings).values():
      constants = trace().jaxpr.consts
      assert sum(np.asarray(constant).nbytes for constant in constants) < 1e5
