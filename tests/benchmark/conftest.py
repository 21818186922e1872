"""A small subject: the tiny base's shape on this machine's first device, with short rows and few rounds."""

import jax
import pytest

from spatial_vlm import config, sharding
from spatial_vlm.benchmark.limits import Limits
from spatial_vlm.benchmark.measure import Rounds
from spatial_vlm.benchmark.subject import MODELS, Subject
from spatial_vlm.config import Config

SHORT = (
  *("decode.tokens=32", "decode.batch_sizes=(2,)", "decode.new_tokens=4"),
  *("prefix.tokens=32", "prefix.prefix_tokens=16", "prefix.batch_size=16"),
  *("sft.tokens=48", "sft.batch_size=2", "dapo.tokens=32", "dapo.max_new_tokens=4"),
  *("dapo.groups_per_batch=4", "dapo.rollout_batch_size=4", "dapo.group_size=2"),
  *("dapo.overlong_cache_tokens=1", "dapo.minibatches=2", "dapo.rounds=1"),
)


@pytest.fixture(scope="session")
def short_config():
  """Returns configs/bench.py:tiny, short, with overrides of the form leaf=value."""

  def load(*overrides: str) -> Config:
    settings = [f"--config.{override}" for override in (*SHORT, *overrides)]
    return config.load("configs/bench.py:tiny", settings)

  return load


@pytest.fixture(scope="session")
def make_subject(short_config):
  """Returns a subject of the short config with overrides."""

  def make(*overrides: str) -> Subject:
    loaded = short_config(*overrides)
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    return Subject(loaded, MODELS[loaded.model], mesh, Limits(1e11, 1e10), Rounds(2, 0.0))

  return make
