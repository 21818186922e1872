"""Extraction of behaviors from a policy's own correct chains.

tiny   8,000 training scenes
8b     VSR's training split
"""

from ml_collections import ConfigDict, config_dict

from .common import choose, data_parallel_mesh, photograph_shapes, tensor_parallel_mesh


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": qwen3_vl_8b})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="behaviors",  # the command that this config is for
      task="scenes",  # how records are read and asked about: scenes | vsr
      checkpoint="runs/dapo/export",  # Hugging Face folder of the aligned policy
      data=dict(
        records="runs/scenes/train.jsonl",
        images="runs/scenes/images",
        max_bad_share=0.01,
      ),
      limit=8000,  # number of records, from the first; 0: all
      batch_size=128,
      in_flight=2,  # batches answered at a time; 1 on several devices
      mesh=data_parallel_mesh(),
      # Padded (tokens, patches) of prompts: a batch takes the smallest that holds its prompts.
      prompt_shapes=((64, 64),),
      max_new_tokens=128,
      min_support=5,  # correct chains that must agree on a procedure
      max_entries=64,  # most behaviors of the handbook
      max_handbook_tokens=4096,
      behavior_tokens=48,  # most tokens of a behavior in a question; longer ones are not trained on
      min_similarity=0.8,  # below it no behavior is recalled
      # results.json of `evaluate` runs on training records, e.g. ("runs/evaluate/results.json",): when the handbook is
      # full, behaviors that these runs recalled more often are kept.
      recalls=(),
      full_share=0.1,  # share of the verified answers that stay full chains in the fine-tuning set
    )
  )


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.task = "vsr"
  for leaf in ("records", "images"):
    config.data[leaf] = config_dict.required_placeholder(str)
  config.checkpoint = config_dict.required_placeholder(str)
  config.limit = 0
  config.batch_size = 64
  config.in_flight = 1
  config.mesh = tensor_parallel_mesh()
  config.prompt_shapes = photograph_shapes()
  config.max_new_tokens = 1024
  config.max_entries = 1000
  config.max_handbook_tokens = 65_536
  config.behavior_tokens = 64
  return config
