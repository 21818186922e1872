"""One question about one photograph.

tiny   up to 144 tokens, enough for the chain of the tiny model
8b     up to 1,024 tokens, and a photograph of about a megapixel
"""

from ml_collections import ConfigDict

from .common import choose, tensor_parallel_mesh


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": qwen3_vl_8b})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="answer",  # the command that this config is for
      task="scenes",  # how the question is put and its answer parsed: scenes | vsr
      behavior_tokens=48,  # most tokens of a recalled behavior in the question, as in `evaluate`
      max_new_tokens=144,  # longest answer, in tokens
      max_patches=1024,  # larger photographs are scaled down to this
      mesh=tensor_parallel_mesh(),
    )
  )


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.task = "vsr"
  config.behavior_tokens = 64
  config.max_new_tokens = 1024
  config.max_patches = 4096
  return config
