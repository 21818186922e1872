"""Policies are loaded from folders, whole or over a mesh, or drawn from scratch."""

import jax
import numpy as np
from checkpoint_folders import read_checkpoint

from spatial_vlm import sharding
from spatial_vlm.inference.loading import load_policy, load_policy_for_training


def test_weights_are_read_or_drawn(nano):
  stored = read_checkpoint(nano)[1]
  policy = load_policy(str(nano))
  jax.tree.map(np.testing.assert_array_equal, policy.params, stored)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  first, again, other = (
    load_policy_for_training(str(nano), mesh, from_scratch_seed=seed) for seed in (1, 1, 2)
  )
  jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
  table = [p.params["text"]["embed"]["embedding"] for p in (policy, first, other)]
  assert table[0].shape == table[1].shape and not np.array_equal(table[0], table[1])
  assert not np.array_equal(table[1], table[2])
  assert first.model == policy.model


def test_forbidden_are_all_special_tokens_but_the_end_of_a_turn(nano):
  policy = load_policy(str(nano))
  tokenizer = policy.processor.tokenizer
  special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
  assert {*np.flatnonzero(policy.forbidden_tokens)} == special - {policy.special.eos}
  assert policy.forbidden_tokens.shape == (policy.model.text.vocab_size,)


def test_weights_are_read_to_where_they_are_used(nano):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  whole = load_policy(str(nano))
  where = sharding.param_shardings(mesh, whole.params)
  for cut in (load_policy(str(nano), mesh), load_policy_for_training(str(nano), mesh)):
    jax.tree.map(np.testing.assert_array_equal, cut.params, whole.params)
    assert jax.tree.map(lambda leaf: leaf.sharding, cut.params) == where
  alone = sharding.make_mesh({}, jax.devices()[:1])
  drawn = [
    load_policy_for_training(str(nano), mesh, from_scratch_seed=1).params for mesh in (alone, mesh)
  ]
  jax.tree.map(np.testing.assert_array_equal, *drawn)
  assert jax.tree.map(lambda leaf: leaf.sharding, drawn[1]) == where
