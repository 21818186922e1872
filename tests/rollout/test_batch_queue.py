"""Batches in slots: equal to answers that start together, over meshes, with cached prefixes, from several threads."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from spatial_vlm import sharding
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.generation import inference_engine, prefixes_at_once, slot_settings
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import (
  AskedQuestion,
  encode_question,
  make_requests,
  prompt_format,
)
from spatial_vlm.processor.chat import Size
from spatial_vlm.rollout.batch_queue import BatchQueue
from spatial_vlm.rollout.prefix_cache import PrefixCache
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.rollout.sampler import SamplingSettings
from spatial_vlm.rollout.slot_requests import Progress, SlotSettings

LINES = ("Use behavior_left_of: yes when X x < Y x", "Use it.", "")
PREFIX, TOKENS = 48, 10


@pytest.fixture(scope="module")
def policy(nano):
  loaded = load_policy(str(nano))
  table = np.array(loaded.params["text"]["embed"]["embedding"])
  table[loaded.special.eos] *= 6
  text = {**loaded.params["text"], "embed": {"embedding": table * 2}}
  return loaded._replace(params={**loaded.params, "text": text})


@pytest.fixture(scope="module")
def asked(policy):
  source = SceneSource("train", 0, 16)
  rows = []
  for number in range(8):
    caption, system = source[2 * number].record.caption, LINES[number % 3]
    encoded = encode_question(policy.processor, source[number].image, f"{caption}?", system)
    rows.append(AskedQuestion(caption, None, encoded, system))
  return rows


def asking(policy, mesh, asked, in_slots, ids=range(8)):
  """Returns an engine with or without slots, and the requests of the questions."""
  weights = jax.device_put(policy.params, sharding.param_shardings(mesh, policy.params))
  cache = PrefixCache(policy.model, mesh, 8, PREFIX)
  format = prompt_format([(96, 64)], "float32", PREFIX)
  slots = None
  if in_slots:
    slots = slot_settings(format, mesh, 4, TOKENS, policy.special.eos)
    slots = dataclasses.replace(slots, decode_tokens=3, prefill_prompts=(2,))
  engine = inference_engine(policy._replace(params=weights), mesh, cache, slots)
  return engine, make_requests(policy, mesh, asked, ids, [-1] * len(asked), format)


MESHES = {"one device": ({}, 1), "rows and heads": ({"data": 2, "fsdp": 1, "tensor": 2}, 4)}


@pytest.fixture(scope="module")
def single():
  return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def together(policy, asked, single):
  engine, requests = asking(policy, single, asked, in_slots=False)
  sampling = policy.sampling(TOKENS, temperature=1.0, group_size=2)
  return jax.device_get(engine.generate(requests, jax.random.key(3), sampling))


@pytest.mark.parametrize("mesh", MESHES)
def test_answers_equal_those_that_start_together(policy, asked, together, mesh):
  shape, devices = MESHES[mesh]
  mesh = sharding.make_mesh(shape, jax.devices()[:devices])
  engine, requests = asking(policy, mesh, asked, in_slots=True)
  sampling = policy.sampling(TOKENS, temperature=1.0, group_size=2)
  found = jax.device_get(engine.generate(requests, jax.random.key(3), sampling))
  lengths = together.mask.sum(axis=1)
  assert len(set(lengths.tolist())) > 2
  np.testing.assert_array_equal(found.tokens, together.tokens)
  np.testing.assert_array_equal(found.mask, together.mask)
  np.testing.assert_allclose(found.logp, together.logp, atol=1e-4)


def test_threads_share_the_slots(policy, asked, single, together):
  engine, _ = asking(policy, single, asked, in_slots=True)
  sampling = policy.sampling(TOKENS, temperature=1.0, group_size=2)
  format = prompt_format([(96, 64)], "float32", PREFIX)

  def answer(numbers):
    rows, labels = [asked[n] for n in numbers], [-1] * len(numbers)
    requests = make_requests(policy, single, rows, numbers, labels, format)
    return jax.device_get(engine.generate(requests, jax.random.key(3), sampling))

  parts = [(0, 1, 2), (3, 4), (5, 6, 7)]
  with ThreadPoolExecutor(3) as pool:
    found = list(pool.map(answer, parts))
  tokens = np.concatenate([part.tokens for part in found])
  np.testing.assert_array_equal(tokens, together.tokens)


def test_rows_that_fill_a_batch_are_not_asked(policy, asked, single, together):
  ids = [0, 1, 2, 3, -1, -1, -1, -1]
  engine, requests = asking(policy, single, asked, True, ids)
  sampling = policy.sampling(TOKENS, temperature=1.0, group_size=2)
  found = jax.device_get(engine.generate(requests, jax.random.key(3), sampling))
  np.testing.assert_array_equal(found.tokens[:8], together.tokens[:8])
  assert not found.mask[8:].any() and (found.tokens[8:] == policy.special.pad).all()


class WordEngine:
  """Answers each prompt (a number) with that number as its only token, one request a step."""

  def __init__(self, mesh):
    self.mesh, self.waiting = mesh, []

  @property
  def busy(self):
    return bool(self.waiting)

  def submit(self, request, key):
    if request.prompt == 13:
      raise ValueError("13 does not fit")
    self.waiting.append(request)

  def cancel(self, id):
    self.waiting = [one for one in self.waiting if one.id != id]

  def step(self):
    if not self.waiting:
      return []
    one = self.waiting.pop(0)
    return [Progress(one.id, 0, [one.prompt], [0.0], "stop")]


def words(mesh, *numbers):
  """Returns the arguments of `generate` for prompts that are numbers."""
  prompts = SimpleNamespace(ids=jax.numpy.arange(len(numbers)))
  requests = Requests(prompts, (), (), (), (), numbers)
  return requests, jax.random.key(0), SamplingSettings(1, 1, temperature=0.0, eos=0, pad=0)


def in_threads(answers, mesh, *batches):
  """Returns what each batch, asked in its own thread, was answered: its tokens or the error."""

  def answer(numbers):
    try:
      return answers.generate(*words(mesh, *numbers)).tokens[:, 0].tolist()
    except (ValueError, RuntimeError) as error:
      return error

  with ThreadPoolExecutor(len(batches)) as pool:
    return list(pool.map(answer, batches))


def test_a_request_that_does_not_fit_ends_its_own_batch_alone(single):
  answers = BatchQueue(WordEngine(single))
  first, second, third = in_threads(answers, single, (1, 2, 3), (4, 13, 5), (6, 7))
  assert (first, third) == ([1, 2, 3], [6, 7])
  assert isinstance(second, ValueError) and "13 does not fit" in str(second)
  assert answers.generate(*words(single, 8)).tokens.tolist() == [[8]]


def test_a_failed_engine_answers_no_batch(single):
  """An answer that stayed empty would be stored as a final one."""

  class FailingEngine(WordEngine):
    def step(self):
      raise RuntimeError("the engine failed")

  found = in_threads(BatchQueue(FailingEngine(single)), single, (1, 2), (3,), (4, 5))
  assert [str(error) for error in found] == ["the engine failed"] * 3


def test_answers_that_the_engine_forgot_are_an_error(single):
  """E.g. since weights were published meanwhile."""

  class ForgetfulEngine(WordEngine):
    def step(self):
      progress, self.waiting = super().step(), []
      return progress

  with pytest.raises(RuntimeError, match="2 answers of the batch are lost"):
    BatchQueue(ForgetfulEngine(single)).generate(*words(single, 1, 2, 3))


@pytest.mark.parametrize(("batch_size", "texts"), [(4, 8), (16, 16)])
def test_the_prefix_cache_holds_the_texts_of_prompts_read_together(single, batch_size, texts):
  """Prompts of several batches are read into slots together."""
  format = prompt_format([(96, 64)], "float32", PREFIX)
  assert prefixes_at_once(batch_size, single, slot_settings(format, single, 64, TOKENS, 0)) == texts
  assert prefixes_at_once(batch_size, single, None) == batch_size


def test_batches_read_prompts_in_one_number(single):
  """Programs of different numbers of prompts round differently."""
  format = prompt_format([(96, 64)], "float32")
  expected = SlotSettings(3, TOKENS, (Size(96, 64),), (0,), prefill_prompts=(1,))
  assert slot_settings(format, single, 3, TOKENS, 0) == expected
  mesh = sharding.make_mesh({"data": 4, "fsdp": 1}, jax.devices()[:4])
  for slots, on_one, on_four in ((64, 8, 2), (256, 8, 8), (16, 2, 1)):
    found = [slot_settings(format, m, slots, TOKENS, 0).prefill_prompts for m in (single, mesh)]
    assert found == [(on_one,), (on_four,)]
