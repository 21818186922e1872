"""The peer in transformers: it computes what our model computes, and its steps train what ours train."""

import functools
import sys

import numpy as np
import pytest
from etils import epath

from spatial_vlm.benchmark.against_transformers import Peer
from spatial_vlm.benchmark.inference_rows import forward_last, prefill
from spatial_vlm.benchmark.inputs import RowShape, random_batch, random_prompts
from spatial_vlm.config import UsageError, settings_from
from spatial_vlm.train.sft import SftSettings, sft_loss

SHAPE = RowShape(tokens=32, images=1, grid=(8, 4))


@pytest.fixture(scope="module")
def subject(make_subject):
  return make_subject("sft.tokens=32")


@pytest.fixture
def peer(subject, tmp_path):
  return Peer(subject.model, subject.params, "float32", epath.Path(tmp_path))


def test_logits_are_those_of_ours(subject, peer):
  batch = random_batch(subject.model, 2, SHAPE, seed=0)
  calls = {
    "ours": functools.partial(forward_last, subject.params, batch, model=subject.model),
    "transformers": peer.forward(batch),
  }
  assert peer.difference(calls) < 2e-4
  calls["ours"] = lambda: np.asarray(calls["transformers"]()) + 0.5
  assert peer.difference(calls) == pytest.approx(0.5, abs=1e-5)


def test_prefill_gives_the_logits_of_the_first_token(subject, peer):
  prompts = random_prompts(subject.model, 2, SHAPE, seed=0)
  ours, _ = prefill(subject.params, prompts, model=subject.model)
  theirs = peer.prefill(prompts)()
  np.testing.assert_allclose(theirs[:, -1].numpy(), ours, atol=2e-4)


def test_answers_have_all_their_tokens(subject, peer):
  prompts = random_prompts(subject.model, 2, SHAPE, seed=0)
  assert peer.generate(prompts, 3)().shape == (2, 32 + 3)


def first_loss(subject, batch):
  """Our loss of the first step, in nats a token."""
  settings = settings_from(SftSettings, subject.config.sft)
  total, count = sft_loss(subject.params, batch, subject.model, settings)
  return float(total) / int(count)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_step_trains_all_parameters_on_our_loss(make_subject, subject, peer, remat):
  config = make_subject(f"sft.remat={remat}").config.sft
  batch = random_batch(subject.model, 2, SHAPE, seed=0)
  before = [p.clone() for p in peer._model.parameters()]
  step = peer.train_step(batch, config)
  losses = [float(step()) for _ in range(3)]
  assert losses[0] == pytest.approx(first_loss(subject, batch), abs=1e-4)
  assert losses[2] < losses[0]
  moved = [
    not np.array_equal(a.detach(), b.detach())
    for a, b in zip(before, peer._model.parameters(), strict=True)
  ]
  assert all(moved)


def test_a_step_on_lora_factors_trains_these_alone(make_subject, subject, peer):
  config = make_subject(
    "sft.lora.rank=4", "sft.remat=full", "sft.optimizer.learning_rate=0.02"
  ).config.sft
  batch = random_batch(subject.model, 2, SHAPE, seed=0)
  step = peer.train_step(batch, config)
  named = dict(peer._model.named_parameters())
  before = {name: value.detach().clone() for name, value in named.items()}
  losses = [float(step()) for _ in range(4)]
  assert losses[0] == pytest.approx(first_loss(subject, batch), abs=1e-4)
  assert losses[3] < losses[0]
  moved = {
    name for name, value in named.items() if not np.array_equal(value.detach(), before[name])
  }
  factors = {name for name in named if name.rpartition(".")[2] in ("lora_a", "lora_b")}
  assert moved == factors and len(factors) == 2 * 7 * subject.model.text.num_hidden_layers


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_a_missing_library_is_an_error_that_names_it(monkeypatch, subject, tmp_path, library):
  monkeypatch.setitem(sys.modules, library, None)
  with pytest.raises(UsageError, match=f"import of {library} halted.* pip install torch"):
    Peer(subject.model, subject.params, "float32", epath.Path(tmp_path))
