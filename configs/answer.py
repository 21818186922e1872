"""One question about one photograph.

tiny   up to 144 tokens, enough for the chain of the tiny model
8b     up to 1,024 tokens, and a photograph of about a megapixel
"""

from ml_collections import ConfigDict


def get_config(preset: str) -> ConfigDict:
  presets = {
    "tiny": dict(task="scenes", max_new_tokens=144, max_patches=1024, behavior_tokens=48),
    "8b": dict(task="vsr", max_new_tokens=1024, max_patches=4096, behavior_tokens=64),
  }
  if preset not in presets:
    raise ValueError(f"no preset {preset!r}; there are {', '.join(presets)}")
  # Larger photographs are scaled down to max_patches; behavior_tokens limits one recalled behavior, as in `evaluate`.
  return ConfigDict(presets[preset])
