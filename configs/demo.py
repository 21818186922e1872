"""The whole method at tiny scale: every row of the result table, from one command.

tiny    about 13 minutes on two cores
quick   the same stages with a fraction of the data, about two minutes: shows the method, measures little

There is no 8b preset: the steps of an 8B run are the other commands.
"""

from ml_collections import ConfigDict

from .common import choose


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "quick": quick})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      seed=0,
      base="spatial_vlm/assets/tiny_base",
      training_scenes=8000,  # labelled scenes for DAPO
      chains=4000,  # training scenes with a written chain, for SFT
      validation_scenes=1000,
      test_scenes=4000,
      sft_epochs=3,
      direct_epochs=3,  # of answers of one word, to which all training scenes have labels
      dapo_steps=30,
      behavior_scenes=8000,  # scenes that the aligned policy answers in full, to extract behaviors from
      min_support=5,  # correct chains that must agree on a procedure
      reuse_epochs=2,
      timed_questions=32,
      scenes_shown=12,
      stages_at_once=2,  # stages that run at the same time; one alone does not keep two cores busy
    )
  )


def quick() -> ConfigDict:
  config = tiny()
  config.training_scenes = 512
  config.chains = 128
  config.validation_scenes = 64
  config.test_scenes = 200
  config.sft_epochs = 10
  config.direct_epochs = 1
  config.dapo_steps = 3
  config.behavior_scenes = 256
  config.min_support = 2
  config.reuse_epochs = 4
  config.timed_questions = 4
  config.scenes_shown = 8
  return config
