"""Prompts of policy optimization: the stream of training, and validation."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from spatial_vlm import sharding
from spatial_vlm.config import Config, UsageError
from spatial_vlm.data.pipeline import prompt_order
from spatial_vlm.data.reading import Reader
from spatial_vlm.inference.generation import QuestionEncoder
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.processor.tokenizer import token_bytes
from spatial_vlm.rewards.verdict_automaton import compile_automaton
from spatial_vlm.rollout.sampler import Completions
from spatial_vlm.tasks import TASKS
from spatial_vlm.train import rl_data


@pytest.fixture(scope="module")
def policy(nano):
  return load_policy(str(nano))


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh({"data": 4}, jax.devices()[:4])


@pytest.fixture(scope="module")
def config(scenes_folder):
  return Config(
    ConfigDict(
      dict(
        seed=0,
        task="scenes",
        dtype="float32",
        max_new_tokens=8,
        validate_prompts=10,
        validate_batch=4,
        behaviors="",
        behavior_tokens=48,
        data=dict(
          records=str(scenes_folder / "train.jsonl"),
          images=str(scenes_folder / "images"),
          validation=str(scenes_folder / "validation.jsonl"),
          max_bad_share=0.01,
          prompt_shapes=((48, 64), (64, 64)),
        ),
      )
    )
  )


@pytest.fixture(scope="module")
def encode(config, policy):
  builder = rl_data.question_builder(config)
  return QuestionEncoder(policy.processor, rl_data.rl_format(config), builder)


def test_a_prompt_is_a_function_of_its_number(config, policy, encode, mesh):
  """An update reads the prompts of its mini-batches again, in another order and over another mesh."""
  source = rl_data.open_records(config, config.data.records)
  read = Reader(source, encode, config.data.max_bad_share)
  requests_of = rl_data.training_requests(config, policy, read)
  first = requests_of(mesh, range(70, 78))  # beyond the first pass over 64 records
  order = prompt_order(config.seed, len(read))
  assert first.texts == [read(order(number))[1].text for number in range(70, 78)]
  again = requests_of(sharding.make_mesh({"fsdp": 2}, jax.devices()[:2]), [77, 70, 73, 70])
  for row, number in enumerate([77, 70, 73, 70]):
    of_first, of_again = (
      jax.tree.map(lambda x, i=i: np.asarray(x)[i], requests.prompts)
      for requests, i in ((first, number - 70), (again, row))
    )
    width = min(of_first.tokens.shape[0], of_again.tokens.shape[0])
    assert of_first.ids == of_again.ids == number and of_first.label == of_again.label
    np.testing.assert_array_equal(of_first.tokens[-width:], of_again.tokens[-width:])
    jax.tree.map(np.testing.assert_array_equal, of_first.vision, of_again.vision)
  assert first.prompts.tokens.sharding == sharding.batch_sharding(mesh, first.prompts).tokens


class LabelEngine:
  """Answers Yes to everything; counts its batches."""

  def __init__(self, policy):
    yes = [*policy.processor.encode_text("Yes."), policy.special.eos]
    self.yes, self.batches, self.published = yes, [], []

  def publish(self, weights):
    self.published.append(weights)

  def generate(self, requests, key, sampling):
    rows = requests.prompts.label.shape[0]
    self.batches.append(np.asarray(requests.prompts.label))
    tokens = jnp.tile(jnp.array(self.yes, jnp.int32), (rows, 1))
    return Completions(tokens, jnp.ones(tokens.shape, bool), jnp.zeros(tokens.shape))

  def release(self):
    self.published.append(None)


def test_the_last_validation_batch_is_filled_up_and_counted_once(config, policy, encode, mesh):
  engine = LabelEngine(policy)
  pieces = token_bytes(policy.processor.tokenizer)
  automaton = compile_automaton(TASKS["scenes"].grammar, pieces, policy.special.eos)
  accuracy = rl_data.validation(config, policy, encode, mesh, automaton, engine)
  lines = config.data.validation
  labels = [json.loads(line)["label"] for line in open(lines).read().splitlines()[:10]]
  found = accuracy("weights")
  assert [len(batch) for batch in engine.batches] == [4, 4, 4]
  assert np.concatenate(engine.batches).tolist() == labels + labels[:2]
  assert found == np.mean(labels)
  assert engine.published == ["weights", None]


def test_a_batch_may_be_larger_than_the_split(config, policy, encode, mesh):
  engine = LabelEngine(policy)
  pieces = token_bytes(policy.processor.tokenizer)
  automaton = compile_automaton(TASKS["scenes"].grammar, pieces, policy.special.eos)
  larger = Config(ConfigDict({**config.to_dict(), "validate_batch": 64, "validate_prompts": 400}))
  accuracy = rl_data.validation(larger, policy, encode, mesh, automaton, engine)
  assert 0 < accuracy("weights") < 1
  assert [len(batch) for batch in engine.batches] == [64]


def test_validation_records_that_cannot_be_asked_about_are_refused(
  config, policy, encode, mesh, tmp_path
):
  (tmp_path / "empty.jsonl").write_text("")
  empty = config.to_dict()
  empty["data"]["validation"] = str(tmp_path / "empty.jsonl")
  with pytest.raises((UsageError, ValueError), match="empty.jsonl"):
    nothing = Config(ConfigDict(empty))
    rl_data.validation(nothing, policy, encode, mesh, None, types.SimpleNamespace())


def test_a_checkpoint_goes_on_with_the_same_behaviors_only():
  """An update reads the prompts of stored answers again: with other behaviors they would be other prompts."""
  data = rl_data.RlData(None, None, None, {"embedder": "lexical", "behavior_left_of": "1a"})
  saved = {"skipped": [[]], "behaviors": {"embedder": "lexical", "behavior_left_of": "1a"}}
  data.restore(saved)
  with pytest.raises(UsageError, match="different: behavior_left_of"):
    data._replace(behaviors={"embedder": "lexical", "behavior_left_of": "2b"}).restore(saved)
  with pytest.raises(UsageError, match="different: behavior_left_of, embedder"):
    data.restore({"skipped": [[]]})
