"""The comparison of a DAPO step with TRL's: the parts that need neither TRL nor a model."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rl_settings import rl_settings

from spatial_vlm.benchmark.dapo_rows import half_right
from spatial_vlm.train.policy_optimization import shaped_reward
from spatial_vlm.train.rollout_buffer import rollout_shapes

GROUPS, SIZE, LENGTH, PATCHES = 2, 2, 3, 4


@pytest.fixture(scope="module")
def scripts():
  """The scripts of the comparison as modules."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[1] / "launch"))
    return SimpleNamespace(
      bench=importlib.import_module("bench_trl"), trl=importlib.import_module("trl_trainer")
    )


def settings(**changes):
  sizes = dict(groups_per_batch=2 * GROUPS, minibatches=2, group_size=SIZE, max_new_tokens=LENGTH)
  return rl_settings(SimpleNamespace(eos=1, pad=0), **sizes, overlong_cache_tokens=2, **changes)


def test_trl_gets_the_rewards_that_our_answers_get(scripts):
  chosen = settings()
  rollout = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), rollout_shapes(GROUPS, chosen))
  lengths = np.array([[1, 3], [2, 3]], np.int32)
  ours = half_right(rollout.replace(label=np.array([1, 0], np.int32), length_tokens=lengths))
  assert ours.verdict.tolist() == [[1, 0], [0, 1]]
  reward = scripts.trl.reward_function(chosen)
  answers = [[7] * length for length in lengths.ravel()]
  theirs = reward(completion_ids=answers, prompts=[], completions=[])
  assert theirs == shaped_reward(ours, chosen).ravel().tolist() == [1.0, -2.0, 0.5, -2.0]


class Ours:
  """Prompts of two and of three tokens with four patches each, and log-probabilities."""

  settings = settings()
  tokens = np.array([[5, 6, 0, 0], [7, 8, 9, 0]])
  patches = np.arange(GROUPS * PATCHES * 2.0).reshape(GROUPS, PATCHES, 2)
  logp = -np.arange(GROUPS * SIZE * LENGTH * 1.0).reshape(GROUPS, SIZE, LENGTH)

  def prompts(self, groups):
    assert groups == GROUPS
    return SimpleNamespace(
      tokens=self.tokens, segments=self.tokens > 0, vision=SimpleNamespace(patches=self.patches)
    )

  def logprobs(self, answers):
    assert answers.shape == self.logp.shape and answers.tolist()[1] == [[3, 3, 3], [4, 4, 4]]
    return self.logp


def first_answers(scripts):
  """What TRL computes from the same prompts, padded at their left; another mini-batch follows."""
  prompts = np.array([[0, 5, 6], [7, 8, 9]])
  answers = np.arange(1, 5)[:, None].repeat(LENGTH, axis=1)
  tokens = np.concatenate([prompts.repeat(SIZE, axis=0), answers], axis=1)
  arrays = (tokens, tokens > 0, Ours.patches.repeat(SIZE, axis=0), Ours.logp.reshape(-1, LENGTH))
  twice = [np.concatenate([array, array]) for array in arrays]
  twice[2] = twice[2].reshape(-1, 2)
  return scripts.trl.FirstAnswers(*twice)


def test_equal_inputs_are_said_to_be_equal(scripts):
  said = scripts.bench.compare_inputs(first_answers(scripts), Ours())
  assert said.startswith("2 prompts have the same tokens; patches differ by at most 0.0e+00; log-")


@pytest.mark.parametrize(
  ("field", "place", "message"),
  [
    ("tokens", (SIZE, 2), r"prompt 1 has the tokens \[7, 8, 10\] in TRL and \[7, 8, 9\] here"),
    ("mask", (SIZE, 0), r"prompt 1 has the tokens \[8, 9\] in TRL"),
    ("patches", (PATCHES * SIZE, 1), "patches of TRL and ours differ by 1.0e.00"),
    ("logp", (3, 2), "log-probabilities of TRL and ours differ by 1.0e.00; rounding is at most"),
  ],
)
def test_different_inputs_end_the_script(scripts, field, place, message):
  first = first_answers(scripts)
  array = getattr(first, field)
  array[place] = array[place] + 1 if field != "mask" else False
  with pytest.raises(SystemExit, match=message):
    scripts.bench.compare_inputs(first, Ours())


def test_rows_of_images_of_other_sizes_end_the_script(scripts):
  with pytest.raises(SystemExit, match=r"have the shape \(2, 4\) in TRL and \(2, 3\) here"):
    scripts.bench.difference("patches", np.zeros((2, 4)), np.zeros((2, 3)))


def test_phases_add_up_to_the_step_and_ratios_are_of_rounds(scripts):
  bench = scripts.bench
  readings = {bench.SAMPLING: 5.0, bench.OLD_LOGPROBS: 2.0}
  theirs = bench.phases_of(readings, 9.0)
  assert [*theirs.values()] == [9.0, 3.0, 2.0, 4.0]
  double, half = ({name: x * f for name, x in theirs.items()} for f in (2.0, 0.5))
  text = bench.table([(theirs, half), (double, half), (theirs, theirs)])
  assert "| DAPO step             |       9.00 |        4.50 |     2.00 (1.00 … 4.00) |" in text
  assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == [*bench.ROWS.values()]


def test_the_config_is_that_of_the_command_with_a_constant_rate(scripts):
  config = scripts.bench.read_config("some/folder", "/tmp/scenes", ["--config.group_size=4"])
  assert config.data.records == "/tmp/scenes/train.jsonl" and config.checkpoint == "some/folder"
  assert (config.optimizer.schedule, config.group_size) == ("constant", 4)
