"""How a mini-batch of answers is cut over time and devices."""

import jax
import numpy as np
import pytest

from spatial_vlm import sharding
from spatial_vlm.config import UsageError
from spatial_vlm.train.answer_scores import Answers, Parts, cut_answers, join_answers, parts_of


@pytest.mark.parametrize(
  ("groups", "group_size", "micro_batches", "expected"),
  [
    (8, 16, 1, Parts(1, 1)),  # a group on each device
    (8, 16, 4, Parts(1, 4)),
    (32, 16, 4, Parts(4, 1)),
    (32, 16, 8, Parts(4, 2)),
    (4, 16, 8, Parts(1, 8)),  # two devices share a group
    (4, 4, 4, Parts(4, 1)),  # two answers of each on a device, which four parts cannot share
  ],
)
def test_groups_are_cut_until_each_device_has_one(groups, group_size, micro_batches, expected):
  with jax.set_mesh(sharding.make_mesh({"data": 4, "fsdp": 2})):
    assert parts_of(groups, group_size, micro_batches) == expected


def test_parts_that_cannot_be_cut_are_refused_with_those_that_can():
  message = "micro_batches is 5; a minibatch of 2 groups of 4 answers can be cut into 1, 2, 4, 8"
  with pytest.raises(UsageError, match=message):
    parts_of(2, 4, 5)


def test_joined_answers_are_in_their_order():
  logp = np.arange(4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
  on_two_devices = logp.reshape(8, 3, 3)
  tokens = on_two_devices.astype(np.int32)
  pieces = cut_answers(Answers(tokens, tokens > 0, logp_old=on_two_devices), 3)
  assert pieces.logp_old.shape == (3, 8, 1, 3)
  np.testing.assert_array_equal(join_answers(pieces.logp_old, 6), logp)
