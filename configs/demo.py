"""The whole method at tiny scale: every row of the result table, from one command.

tiny    about half an hour on two cores
quick   the same stages with a fraction of the data, about five minutes: shows the method, measures little

There is no 8b preset: the steps of an 8B run are the other commands.
"""

from ml_collections import ConfigDict

from .common import choose


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "quick": quick})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="demo",  # the command that this config is for
      seed=0,  # seed of every random draw
      base="spatial_vlm/assets/tiny_base",  # Hugging Face folder of the model that the demo starts from
      training_scenes=8000,  # labelled scenes for DAPO
      chains=4000,  # training scenes with a written chain, for SFT
      validation_scenes=1000,  # scenes of the validation split
      test_scenes=4000,  # held-out scenes that every method is measured on
      sft_epochs=3,  # epochs of SFT on chains of thought
      direct_epochs=3,  # of answers of one word, to which all training scenes have labels
      dapo_steps=30,  # policy batches of DAPO
      behavior_scenes=8000,  # scenes that the aligned policy answers in full, to extract behaviors from
      min_support=5,  # correct chains that must agree on a procedure
      reuse_epochs=2,  # epochs over the model's own short answers
      timed_questions=32,  # asked one at a time at the end, to measure seconds per answer; 0: not measured
      scenes_shown=12,  # scenes drawn into the report
      stages_at_once=2,  # stages that run at the same time, each on its share of the cores
    )
  )


def quick() -> ConfigDict:
  config = tiny()
  config.training_scenes = 512
  config.chains = 128
  config.validation_scenes = 128
  config.test_scenes = 128  # one batch of the evaluations, whose program DAPO's validation compiles
  config.sft_epochs = 20
  config.direct_epochs = 1
  config.dapo_steps = 3
  config.behavior_scenes = 256
  config.min_support = 2
  config.reuse_epochs = 10
  config.timed_questions = 0  # each timing compiles another program
  config.scenes_shown = 8
  return config
