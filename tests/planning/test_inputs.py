"""Shapes of inputs equal those of the input pipeline's arrays."""

import jax
import numpy as np

from spatial_vlm import process_rows, sharding
from spatial_vlm.inference.policy import collate, encode_question, prompt_format
from spatial_vlm.planning.inputs import batch_shapes, prompt_shapes
from spatial_vlm.processor.chat import Processor, Size, collate_batch


def test_shapes_equal_those_of_real_rows(nano):
  processor = Processor.from_folder(nano)
  image = np.zeros((64, 64, 3), np.uint8)
  rows = [encode_question(processor, image, "Is it red?") for _ in range(8)]
  mesh = sharding.make_mesh({"fsdp": -1})
  model = processor.model_config
  batch = process_rows.make_global_batch(
    mesh, collate_batch([[row] for row in rows], processor, Size(64, 64))
  )
  shape = prompt_format([(64, 64)], "float32")
  prompts = process_rows.make_global_batch(mesh, collate(processor, rows, range(8), [1] * 8, shape))
  for real, shapes in (
    (batch, batch_shapes(mesh, model, 8, Size(64, 64), "float32")),
    (prompts, prompt_shapes(mesh, model, 8, Size(64, 64), "float32")),
  ):
    assert jax.tree.structure(real) == jax.tree.structure(shapes)
    for array, leaf in zip(jax.tree.leaves(real), jax.tree.leaves(shapes), strict=True):
      assert (array.shape, array.dtype, array.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


def test_rows_without_images(nano):
  model = Processor.from_folder(nano).model_config
  assert (
    batch_shapes(sharding.make_mesh({"data": -1}), model, 8, Size(16, 0), "float32").vision is None
  )
