"""Export of a training run's newest checkpoint.

tiny, 8b   the same: sizes come from the run
"""

from ml_collections import ConfigDict


def get_config(preset: str) -> ConfigDict:
  if preset not in ("tiny", "8b"):
    raise ValueError(f"no preset {preset!r}; there are tiny, 8b")
  return ConfigDict(dict(run="runs/dapo"))  # workdir of `sft` or `dapo`
