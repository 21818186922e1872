"""Checking and preparing a set of records.

tiny       the rendered scenes
8b         VSR's random split with COCO's images: the training data of Qwen3-VL-8B
zeroshot   VSR's zero-shot split
"""

from ml_collections import ConfigDict, config_dict

from .common import choose


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": random, "zeroshot": zeroshot})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="data",  # the command that this config is for
      seed=0,  # seed of the store's order and of the contact sheet
      data=dict(
        folder="runs/scenes",  # folder of SPLIT.jsonl or Parquet files, as published
        images="runs/scenes/images",  # folder, .tar or .zip, or several with commas; empty: images are not looked up
        splits=("train", "validation", "test"),  # splits to read
        published="",  # random | zeroshot: check the published sizes of this split of VSR; empty: do not
        allow_subset=False,  # accept fewer records than were published
        max_bad_share=0.01,  # stop when more than this share of the records cannot be used
      ),
      evaluation="",  # file of records that must not be in `train`; empty: the split `test`
      drop_shared=False,  # drop the records of `train` that are shared instead of refusing
      sheet=24,  # examples on the contact sheet
      store=dict(
        shards=0,  # files of each split; 0: no store is written
        max_pixels=0,  # pixels to which larger images are reduced; 0: keep all as they are
      ),
    )
  )


def random() -> ConfigDict:
  config = tiny()
  config.data.folder = config_dict.required_placeholder(str)
  config.data.images = config_dict.required_placeholder(str)
  config.data.splits = ("train", "dev", "test")
  config.data.published = "random"
  config.store.shards = 16
  return config


def zeroshot() -> ConfigDict:
  config = random()
  config.data.published = "zeroshot"
  return config
