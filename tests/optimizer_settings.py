"""AdamW's settings in tests."""

from spatial_vlm.optim.optimizers import OptimizerSettings


def adamw_settings(**changes) -> OptimizerSettings:
  """Returns settings with a constant learning rate and float32 moments; any of them can be changed."""
  return OptimizerSettings(
    **dict(
      method="adamw",
      moments="float32",
      learning_rate=1e-3,
      schedule="constant",
      warmup_steps=0,
      total_steps=10,
      final_fraction=1.0,
      beta1=0.9,
      beta2=0.95,
      eps=1e-8,
      weight_decay=0.1,
      clip_norm=1.0,
    )
    | changes
  )
