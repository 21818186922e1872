"""Export of a training run's newest checkpoint.

tiny   as it was trained, bit for bit
8b     bfloat16, as serving expects; the sizes come from the run
"""

from ml_collections import ConfigDict

from .common import choose


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": qwen3_vl_8b})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="export",  # the command that this config is for
      run="runs/dapo",  # workdir of `sft` or `dapo`
      dtype="float32",
      adapter=False,  # for a run that trains LoRA: write the adapter alone, as PEFT reads it
      results="",  # workdir of `evaluate`, whose table goes into the model card; empty: none
      license="",  # license in the model card, e.g. "apache-2.0"; empty: that of the base's README.md
      # Name of the base on the Hugging Face Hub, in the model card, e.g. "Qwen/Qwen3-VL-8B-Instruct"; empty: that in
      # the README.md of the folder that the run started from.
      base_model="",
      max_file_bytes=5_000_000_000,  # a larger checkpoint is split into several files
    )
  )


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.dtype = "bfloat16"
  return config
