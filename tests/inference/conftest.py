"""A policy, records, and a generator that asks about them."""

import jax
import pytest

from spatial_vlm import sharding
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.inference.generation import BatchGenerator
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import PromptShape
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.tasks import TASKS


@pytest.fixture(scope="module")
def policy(taught):
  return load_policy(str(taught))


@pytest.fixture(scope="module")
def source(scenes_folder):
  return JsonlSource(scenes_folder / "validation.jsonl", scenes_folder / "images")


@pytest.fixture
def generator(policy):
  mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  chains = QuestionBuilder(TASKS["scenes"], "chain")
  return BatchGenerator(policy, mesh, PromptShape(64, 64), 128, chains)
