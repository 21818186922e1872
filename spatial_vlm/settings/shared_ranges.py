"""Ranges of the groups of settings that several commands share, and of the units that recur."""

from spatial_vlm.settings import names
from spatial_vlm.settings.ranges import (
  ANY,
  MOST,
  SHAPE,
  SHAPES,
  SHARE,
  above,
  at_least,
  between,
  each,
  in_group,
  one_of,
  texts,
  weighted,
  whole,
)

COUNT = whole(1)
COUNT_OR_ZERO = whole(0)
SECONDS = above(0)
BYTES = whole(1, 2**53)
TASK = one_of(*names.TASKS)
SEED = {"seed": COUNT_OR_ZERO}

MESH = {axis: whole(1, MOST, -1) for axis in ("slice", "data", "fsdp", "tensor")}

OPTIMIZER = {
  "method": one_of(*names.OPTIMIZERS),
  "moments": one_of(*names.MOMENTS),
  "learning_rate": above(0),
  "schedule": one_of(*names.SCHEDULES),
  "warmup_steps": COUNT_OR_ZERO,
  "decay_steps": COUNT_OR_ZERO,
  "final_fraction": SHARE,
  "beta1": between(0, 1, with_most=False),
  "beta2": between(0, 1, with_most=False),
  "eps": above(0),
  "weight_decay": at_least(0),
  "clip_norm": above(0),
}

COMPUTATION = {
  "micro_batches": COUNT,
  "chunk_tokens": COUNT,
  "remat": one_of(*names.REMAT_POLICIES),
  "dtype": one_of(*names.DTYPES),
  "trainable": texts(1),
  **in_group("lora", {"rank": COUNT_OR_ZERO, "alpha": above(0), "targets": texts(1)}),
  **in_group("optimizer", OPTIMIZER),
}
"""Of a training step, in `sft`, `dapo` and `bench`."""

TRAINING = {
  **SEED,
  **COMPUTATION,
  **in_group("mesh", MESH),
  "checkpoint_steps": COUNT_OR_ZERO,
  "checkpoint_minutes": at_least(0),
  "max_to_keep": COUNT,
}

POLICY_OPTIMIZATION = {
  "task": TASK,
  "groups_per_batch": COUNT,
  "group_size": whole(2),
  "rollout_batch_size": COUNT,
  "max_rollout_rounds": COUNT,
  "minibatches": COUNT,
  "objectives": weighted(names.OBJECTIVES, above(0)),
  "rewards": weighted(names.REWARDS, ANY),
  "eps_low": between(0, 1),
  "eps_high": at_least(0),
  "max_new_tokens": COUNT,
  "answer_lengths": each(COUNT),
  "overlong_cache_tokens": COUNT_OR_ZERO,
  "temperature": above(0),
}
"""Of a DAPO step, in `dapo` and `bench`."""

ENGINE = {
  "kind": one_of(*names.ENGINES),
  "prompt_slots": COUNT,
  "samples_per_slot": COUNT,
  "transfer": one_of(*names.TRANSFERS),
  "dtype": one_of(*names.DTYPES),
  "in_flight": COUNT,
  "timeout_s": SECONDS,
  "max_logprob_gap": above(0),
}

RECORDS = {"max_bad_share": SHARE}
"""Of a group `data`: share of unusable records."""

ANSWERING = {
  "task": TASK,
  "behavior_tokens": COUNT,
  "max_new_tokens": COUNT,
  **in_group("mesh", MESH),
}
"""Of commands that answer questions."""

BATCHES = {
  "limit": COUNT_OR_ZERO,
  "batch_size": COUNT,
  "in_flight": COUNT,
  "prompt_shapes": SHAPES,
  **in_group("data", RECORDS),
}
"""Of commands that answer records in batches."""

TEACHER = {
  **SEED,
  "teacher": one_of(*names.TEACHERS),
  "temperature": between(0, 2),
  "max_output_tokens": COUNT,
  "thinking_budget": whole(0, MOST, -1),
  "timeout_s": SECONDS,
  "concurrency": COUNT,
  "max_concurrency": COUNT,
  "requests_per_minute": above(0),
  **in_group(
    "retry", {"max_tries": COUNT, "initial_delay_s": at_least(0), "max_delay_s": at_least(0)}
  ),
  **in_group(
    "prices",
    {
      **{name: at_least(0) for name in ("input_usd", "cached_usd", "output_usd")},
      "batch_share": SHARE,
    },
  ),
  "estimate.max_prompt_tokens": COUNT,
  "budget_usd": at_least(0),
  **in_group("policy", {"batch_size": COUNT, "prompt_shape": SHAPE, **in_group("mesh", MESH)}),
}
"""Of a teacher: in `synthesize`, and in the group `ask` of `behaviors`."""

ROW = {"tokens": COUNT, "images": COUNT, "grid": each(COUNT, 2, 2)}
"""Of a row of `bench`."""
