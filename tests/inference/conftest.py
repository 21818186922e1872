"""A policy, records, and a generator that asks about them."""

import jax
import pytest

from spatial_vlm import sharding
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.inference.generation import (
  BatchGenerator,
  QuestionEncoder,
  inference_engine,
  parsed_verdicts,
)
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import prompt_format
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.tasks import TASKS


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def policy(taught, mesh):
  return load_policy(str(taught), mesh)


@pytest.fixture(scope="module")
def source(scenes_folder):
  return JsonlSource(scenes_folder / "validation.jsonl", scenes_folder / "images")


@pytest.fixture
def generator(policy, mesh):
  chains = QuestionBuilder(TASKS["scenes"], "chain")
  encode = QuestionEncoder(policy.processor, prompt_format([(64, 64)], "float32"), chains)
  return BatchGenerator(policy, inference_engine(policy, mesh), encode, 128, parsed_verdicts)
