"""Held-out evaluation of one method.

tiny   the scenes' test split
8b     Qwen3-VL-8B on VSR; `data.boxes` is empty, since VSR has none
"""

from ml_collections import ConfigDict, config_dict

from .common import choose, data_parallel_mesh, photograph_shapes, tensor_parallel_mesh


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": qwen3_vl_8b})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="evaluate",  # the command that this config is for
      # How records are read, asked about and scored: scenes | vsr | vsr-zeroshot | whatsup | cvbench | blink |
      # embspatial | realworldqa | pope | 3dsrbench | mmbench (docs/tasks.md lists the files of each).
      task="scenes",
      # Wording of the question: project | vlmevalkit (vsr, multiple choice) | tri | instructblip | minigpt_v2 (vsr).
      template="project",
      prompt="plain",  # plain | explained (the answer's form with an example, for models that were not tuned on it)
      method="chain",  # majority | zero-shot | direct | chain | short (without a behavior) | reuse
      # What is shown in place of the image: blank (white) | cannot_tell (grey; the question offers "Cannot tell.") |
      # other_image (that of another record) | text_only (no image in the prompt). Empty: the image.
      control="",
      checkpoint="runs/dapo/export",  # Hugging Face folder (majority reads none)
      behaviors="runs/behaviors/index",  # folder of the index; only reuse reads it
      behavior_tokens=48,  # most tokens of a recalled behavior in the question
      data=dict(
        records="runs/scenes/test.jsonl",  # file of records, or a pattern such as FOLDER/test-*.parquet
        images="runs/scenes/images",  # locations of the images; empty where the records hold them
        boxes="runs/scenes/test.boxes.jsonl",  # file of the true boxes; empty: none are known
        training_records="runs/scenes/train.jsonl",  # records whose majority label the method majority answers
        max_bad_share=0.01,  # stop when more than this share of the records is broken
      ),
      limit=0,  # number of records, from the first; 0: all
      batch_size=128,  # questions of one batch
      in_flight=2,  # batches answered at a time; without slots, 1 on several devices
      # Slots that the questions of all batches in flight take as they become free (continuous batching), which pays
      # where answers differ in length; 0: the answers of a batch start together.
      prompt_slots=0,
      mesh=data_parallel_mesh(),
      # Padded (tokens, patches) of prompts: a batch takes the smallest that holds its prompts. A recalled behavior,
      # whose keys and values are computed once, takes none of them.
      prompt_shapes=((64, 64),),
      max_new_tokens=128,  # longest answer, in tokens
      timed_questions=64,  # questions asked one at a time, to measure seconds per answer
    )
  )


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.task = "vsr"
  config.checkpoint = config_dict.required_placeholder(str)
  config.data.records = config_dict.required_placeholder(str)
  config.data.images = config_dict.required_placeholder(str)
  config.data.training_records = config_dict.required_placeholder(str)
  config.data.boxes = ""
  config.behavior_tokens = 64
  config.batch_size = 64
  config.in_flight = 3
  config.prompt_slots = 64
  config.mesh = tensor_parallel_mesh()
  config.prompt_shapes = photograph_shapes()
  config.max_new_tokens = 1024
  return config
