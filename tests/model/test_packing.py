"""Several sequences with images in one row: each is computed as if it were alone."""

import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp

from spatial_vlm.model import qwen3_vl
from spatial_vlm.parameters.paths import path_name
from spatial_vlm.types import Batch, Vision

ROWS = [[3, (8, 6), 10], [30], [2, (4, 10), 4, (6, 6), 4], [5, (4, 4), 9]]
"""Text and grids of each sequence; the second has no image, the third has two."""


@pytest.fixture(scope="module")
def case(reference, make_case):
  return make_case(reference("tiny"), ROWS)


@pytest.fixture(scope="module")
def packed(case) -> Batch:
  """All of them in one row, between padding."""
  alone = case.batch
  counts = case.real.sum(axis=1)
  patches = (alone.vision.segments > 0).sum(axis=1)
  frames = np.concatenate([[0], np.cumsum(alone.vision.segments.max(axis=1))])

  def in_a_row(x, lengths, ends=(5, 11)):
    row = np.concatenate([x[b, :length] for b, length in enumerate(lengths)])
    return np.pad(row, [ends] + [(0, 0)] * (row.ndim - 1))[None]

  numbers = case.real * (1 + np.arange(len(ROWS), dtype=np.int32))[:, None]
  of_vision = jax.tree.map(lambda x: in_a_row(x, patches, (0, 12)), alone.vision)
  frame_numbers = alone.vision.segments + frames[:-1, None].astype(np.int32)
  return Batch(
    tokens=in_a_row(alone.tokens, counts),
    segments=in_a_row(numbers.astype(np.int32), counts),
    targets=in_a_row(alone.targets, counts),
    positions=in_a_row(alone.positions, counts),
    vision=of_vision.replace(segments=in_a_row(frame_numbers, patches, (0, 12))),
  )


@pytest.fixture(scope="module")
def run(reference):
  """Logits, and the gradient of the summed cross-entropy of each token given those before it in its sequence."""
  config = reference("tiny").config

  def loss(params, batch):
    logits = qwen3_vl.logits(params, config, qwen3_vl.forward(params, config, batch))
    logp = jax.nn.log_softmax(logits[:, :-1])
    chosen = jnp.take_along_axis(logp, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    inside = (batch.segments[:, 1:] > 0) & (batch.segments[:, 1:] == batch.segments[:, :-1])
    return -jnp.sum(jnp.where(inside, chosen, 0.0)), logits

  compiled = jax.jit(jax.grad(loss, has_aux=True))

  def run(batch) -> tuple[dict, np.ndarray]:
    gradient, logits = compiled(reference("tiny").params, batch)
    return jax.device_get(gradient), np.asarray(logits)

  return run


@pytest.fixture(scope="module")
def of_packed(run, packed):
  return run(packed)


def _difference(reference, case, packed, logits) -> float:
  """Largest difference of a logit from what transformers gives for the sequence alone."""
  with torch.no_grad():
    expected = reference.model(**case.hf).logits.numpy()[case.real]
  return float(np.abs(logits[packed.segments > 0] - expected).max())


def test_packed_logits_equal_the_reference_of_each_alone(reference, case, packed, of_packed):
  assert packed.segments.max() == 4 and packed.vision.segments.max() == 4
  assert _difference(reference("tiny"), case, packed, of_packed[1]) <= 1e-5


def test_packed_gradients_equal_those_of_each_alone(run, case, of_packed):
  """Of every parameter, including DeepStack's, to 1e-5 of its largest entry."""
  expected = run(case.batch)[0]
  largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(of_packed[0]), jax.tree.leaves(expected), strict=True
  ):
    name = path_name(path)
    scale = float(np.abs(b).max())
    if not name.endswith("k_proj/bias"):  # has no gradient, but for rounding
      assert scale > 1e-4 * largest, name
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(scale, 1e-2 * largest), err_msg=name)


def _one_segment(batch: Batch) -> Batch:
  return batch.replace(segments=np.minimum(batch.segments, 1))


def _one_frame(batch: Batch) -> Batch:
  vision: Vision = batch.vision
  return batch.replace(vision=vision.replace(segments=np.minimum(vision.segments, 1)))


def _positions_that_go_on(batch: Batch) -> Batch:
  """One count of positions for the whole row. Only differences matter inside a segment, so images get one position."""
  line = np.arange(batch.tokens.shape[1], dtype=np.int32)
  return batch.replace(positions=np.repeat(line[None, :, None], 3, axis=2))


@pytest.mark.parametrize("change", [_one_segment, _one_frame, _positions_that_go_on])
def test_removing_any_sequence_boundary_changes_the_logits(reference, case, packed, run, change):
  assert _difference(reference("tiny"), case, packed, run(change(packed))[1]) > 0.01
