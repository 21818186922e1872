"""Settings of DAPO in tests."""

from spatial_vlm.train.rl_settings import RlSettings


def rl_settings(special, **changes) -> RlSettings:
  """Returns settings of one round of eight groups in float32; any of them can be changed.

  Args:
    special: the policy's ids that end and pad an answer.
  """
  return RlSettings(
    **dict(
      groups_per_batch=8,
      group_size=4,
      rollout_batch_size=8,
      max_rollout_rounds=2,
      minibatches=1,
      micro_batches=1,
      objectives=(("dapo", 1.0),),
      rewards=(("accuracy", 1.0), ("overlong", 1.0)),
      eps_low=0.2,
      eps_high=0.28,
      max_new_tokens=12,
      answer_lengths=(),
      overlong_cache_tokens=6,
      temperature=0.7,
      chunk_tokens=4096,
      remat="none",
      dtype="float32",
      eos=special.eos,
      pad=special.pad,
    )
    | changes
  )
