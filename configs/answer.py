"""One question about one photograph.

tiny   up to 144 tokens, enough for the chain of the tiny model
8b     up to 1,024 tokens
"""

from ml_collections import ConfigDict


def get_config(preset: str) -> ConfigDict:
  presets = {"tiny": 144, "8b": 1024}
  if preset not in presets:
    raise ValueError(f"no preset {preset!r}; there are {', '.join(presets)}")
  return ConfigDict(dict(max_tokens=presets[preset]))
