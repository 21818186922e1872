"""Export of a training run's newest checkpoint.

tiny   as it was trained, bit for bit
8b     bfloat16, as serving expects; the sizes come from the run
"""

from ml_collections import ConfigDict


def get_config(preset: str) -> ConfigDict:
  if preset not in ("tiny", "8b"):
    raise ValueError(f"no preset {preset!r}; there are tiny, 8b")
  return ConfigDict(
    dict(
      run="runs/dapo",  # workdir of `sft` or `dapo`
      dtype="bfloat16" if preset == "8b" else "float32",
      adapter=False,  # of a run that trains low-rank pairs: write them alone, as PEFT reads them
      max_file_bytes=5_000_000_000,  # a larger checkpoint is cut into several files
    )
  )
