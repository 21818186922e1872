"""Finished evaluations, compared.

tiny   the rows of the demo
8b     evaluations of one policy and its controls
"""

from ml_collections import ConfigDict

from .common import choose


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": qwen3_vl_8b})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="report",  # the command that this config is for
      # Workdirs of `evaluate`, as FOLDER or NAME=FOLDER; the last name of a path may hold "*". The first row is the
      # one that the others are compared with.
      runs=("runs/demo/evaluate_*",),
      # Workdirs of `demo` that differ in the seed alone, e.g. ("runs/demo_seed*",): their tables are joined into mean
      # and range, in place of a comparison of `runs`; empty: none.
      demos=(),
    )
  )


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.runs = ("runs/evaluate*",)
  return config
