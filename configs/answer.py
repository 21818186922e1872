"""One question about one photograph.

tiny   up to 144 tokens, enough for the chain of the tiny model
8b     up to 1,024 tokens, and a photograph of about a megapixel
"""

from ml_collections import ConfigDict


def get_config(preset: str) -> ConfigDict:
  presets = {
    "tiny": dict(max_new_tokens=144, max_patches=1024),
    "8b": dict(max_new_tokens=1024, max_patches=4096),
  }
  if preset not in presets:
    raise ValueError(f"no preset {preset!r}; there are {', '.join(presets)}")
  return ConfigDict(presets[preset])  # larger photographs are scaled down to max_patches
