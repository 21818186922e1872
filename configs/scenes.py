"""Rendered scenes as VSR records.

tiny   64 × 64 pixels, for the tiny model: the data of the demo
8b     448 × 448 pixels, a few hundred: to try the 8B model's path on scenes
"""

from ml_collections import ConfigDict

from .common import choose


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": qwen3_vl_8b})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="scenes",  # the command that this config is for
      seed=0,  # seed of every random draw
      image_size=64,  # pixels of width and height
      objects=(2, 3),  # smallest and largest number of objects in a scene
      counts=dict(  # even numbers: examples come in contrastive pairs
        train=8000,  # examples of the training split
        validation=1000,  # of the validation split
        test=4000,  # of the test split
      ),
      chains=4000,  # training examples, from the first, for which the teacher writes chains
      # Test scenes, from the first, about each of which test_captions.jsonl has a true and a false statement.
      caption_pairs=0,
      sheet=24,  # examples on the contact sheet
    )
  )


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.image_size = 448
  config.counts.train, config.counts.validation, config.counts.test = 400, 100, 200
  config.chains = 400
  return config
