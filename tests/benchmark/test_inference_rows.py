"""Rows of the forward pass, prefill and decoding."""

import jax
import numpy as np
import pytest

from spatial_vlm.benchmark import inference_rows
from spatial_vlm.benchmark.inference_rows import (
  END,
  decode_rows,
  endless_sampling,
  forward_rows,
  never_ending,
  step_bytes,
)
from spatial_vlm.benchmark.inputs import RowShape, random_prompts
from spatial_vlm.model.config import PRESETS
from spatial_vlm.parameters.partition import flatten
from spatial_vlm.rollout.sampler import generate

MODEL = PRESETS["tiny"]


@pytest.fixture(scope="module")
def subject(make_subject):
  return make_subject()


def kernel_products(params, tower, *others):
  """Multiplications of a token with the kernels of a tower."""
  return sum(
    leaf.size
    for path, leaf in flatten(params).items()
    if path.startswith((tower, *others)) and path.endswith("/kernel")
  )


def test_the_forward_row_counts_the_products_of_all_kernels(subject):
  with jax.set_mesh(subject.mesh):
    (row,) = forward_rows(subject)
  assert row.name == "forward" and row.tokens == 2 * 48 and row.ratio is None
  assert row.compile_s > 0 and row.peak_bytes > 1e6
  text = 2 * 48 * kernel_products(subject.params, "text/layers")
  vision = 2 * 64 * kernel_products(subject.params, "vision/blocks")
  assert 2 * (text + vision) < row.flops < 3 * (text + vision)
  assert row.note == "2 rows of 48 tokens, 64 patches"


@pytest.fixture(scope="module")
def rows_of_decoding(subject):
  with jax.set_mesh(subject.mesh):
    return {row.name: row for row in decode_rows(subject)}


def test_prefill_and_decoding_have_rows(rows_of_decoding, subject):
  assert [*rows_of_decoding] == ["prefill, batch 2", "decode, batch 2"]
  prefill, decode = rows_of_decoding.values()
  assert (prefill.tokens, decode.tokens) == (2 * 32, 2)
  assert decode.note == "4 new tokens" and decode.compile_s > 0


def test_a_step_of_decoding_counts_the_decoder_alone(rows_of_decoding, subject):
  products = kernel_products(subject.params, "text/layers") + 512 * 128  # and the head
  attention = 4 * MODEL.text.num_hidden_layers * 4 * 32 * (32 + 4)
  assert rows_of_decoding["decode, batch 2"].flops == pytest.approx(
    2 * (2 * products + attention), rel=0.1
  )


def test_a_step_takes_the_time_of_generation_without_prefill(subject, monkeypatch):
  times = {"prefill": [1.0, 2.0, 3.0], "generate": [5.0, 14.0, 3.0]}
  monkeypatch.setattr(inference_rows, "alternate", lambda calls, rounds: times)
  with jax.set_mesh(subject.mesh):
    prefill, decode = decode_rows(subject)
  assert prefill.seconds.median == 2.0
  assert decode.seconds == (1.0, 1e-9, 3.0)  # four steps


def test_a_step_reads_the_decoders_weights_and_the_cache(subject):
  text = sum(leaf.nbytes for leaf in jax.tree.leaves(subject.params["text"]))
  of_token = 2 * 4 * MODEL.text.num_hidden_layers * 2 * 32  # keys and values of 2 heads, float32
  found = step_bytes(subject.params, MODEL, rows=3, slots=10)
  assert found == text + 3 * 10 * of_token  # the head is the tied embedding, read once


def test_answers_never_end_and_have_no_special_tokens(subject):
  prompts = random_prompts(MODEL, 2, RowShape(32, 1, (8, 8)), seed=0)
  forbidden = np.asarray(never_ending(MODEL))
  assert forbidden[END] and forbidden[MODEL.image_token_id] and forbidden.sum() == 5
  sampling = endless_sampling(4)
  done = generate(
    subject.params, prompts, jax.random.key(0), forbidden, model=MODEL, sampling=sampling
  )
  assert done.mask.all() and done.mask.shape == (2, 4)
