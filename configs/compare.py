"""Reuse compared with full chains and with other behaviors in the prompt, on held-out records.

tiny   400 of the scenes' test records
8b     Qwen3-VL-8B on VSR
"""

from ml_collections import ConfigDict, config_dict

from .common import choose, data_parallel_mesh, photograph_shapes, tensor_parallel_mesh


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": qwen3_vl_8b})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="compare",  # the command that this config is for
      task="scenes",  # how records are read, asked about and scored: scenes | vsr
      checkpoint="runs/sft_reuse/export",  # Hugging Face folder of the policy that answers in both forms
      # Policy trained on short answers without behaviors in the prompt; empty: no such row. A later start may add the
      # row, but not answer it with another policy.
      bc_checkpoint="",
      behaviors="runs/behaviors/index",  # folder of the index
      behavior_tokens=48,  # most tokens of a recalled behavior in the question
      handbook_shares=(
        0.25,
        0.5,
      ),  # shares of the handbook, the most useful behaviors: one row each
      data=dict(
        records="runs/scenes/test.jsonl",  # file of labelled records
        images="runs/scenes/images",  # folder, archive or store of the images
        boxes="runs/scenes/test.boxes.jsonl",  # file of the true boxes; empty: none are known
        max_bad_share=0.01,  # stop when more than this share of the records is broken
      ),
      limit=400,  # number of records, from the first; 0: all
      batch_size=100,  # questions of one batch
      in_flight=2,  # batches answered at a time; without slots, 1 on several devices
      # Slots that the questions of all batches in flight take as they become free (continuous batching), which pays
      # where answers differ in length; 0: the answers of a batch start together.
      prompt_slots=0,
      mesh=data_parallel_mesh(),
      # Padded (tokens, patches) of prompts without their behaviors: a batch takes the smallest that holds them.
      prompt_shapes=((64, 64),),
      max_new_tokens=128,  # longest answer, in tokens
      timed_questions=24,  # questions of each row asked one at a time, to measure seconds
    )
  )


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.task = "vsr"
  config.checkpoint = config_dict.required_placeholder(str)
  config.behaviors = config_dict.required_placeholder(str)
  config.data.records = config_dict.required_placeholder(str)
  config.data.images = config_dict.required_placeholder(str)
  config.data.boxes = ""
  config.behavior_tokens = 64
  config.limit = 0
  config.batch_size = 64
  config.in_flight = 3
  config.prompt_slots = 64
  config.mesh = tensor_parallel_mesh()
  config.prompt_shapes = photograph_shapes()
  config.max_new_tokens = 1024
  config.timed_questions = 64
  return config
