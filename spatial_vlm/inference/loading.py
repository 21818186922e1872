"""Loading a policy: the model and the processor of a Hugging Face folder."""

import jax
from jax.sharding import Mesh

from spatial_vlm import sharding
from spatial_vlm.huggingface.folder import find_folder
from spatial_vlm.huggingface.weights import abstract_params, open_checkpoint
from spatial_vlm.inference.policy import Policy
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.parameters.int8 import storage_shapes
from spatial_vlm.parameters.partition import EVERYTHING, Subset
from spatial_vlm.processor.chat import Processor
from spatial_vlm.processor.tokenizer import SpecialIds
from spatial_vlm.sharding import with_param_shardings
from spatial_vlm.types import Params, Purpose


def load_policy(folder: str, mesh: Mesh | None = None) -> Policy:
  """Loads the model and the processor of a Hugging Face folder for inference, in the type of the files.

  Args:
    folder: Hugging Face folder, or the name of one.
    mesh: the weights are laid out over this mesh, and each process reads what its devices hold; None: NumPy arrays.
  """
  path = find_folder(folder)
  processor = Processor.from_folder(path)
  checkpoint = open_checkpoint(path, processor.model_config)
  shapes = checkpoint.shapes if mesh is None else with_param_shardings(mesh, checkpoint.shapes)
  return _policy(processor, checkpoint.read(shapes))


def load_policy_for_training(
  folder: str,
  mesh: Mesh,
  subset: Subset = EVERYTHING,
  from_scratch_seed: int | None = None,
) -> Policy:
  """Loads the model and the processor of a Hugging Face folder for training, laid out over the mesh.

  Args:
    folder: Hugging Face folder, or the name of one.
    mesh: each process reads what its devices hold.
    subset: the parameters that train, in float32; frozen ones have the type that it sets.
    from_scratch_seed: draws fresh weights for the folder's architecture instead of reading them.
  """
  path = find_folder(folder)
  processor = Processor.from_folder(path)
  model = processor.model_config
  if from_scratch_seed is None:
    shapes = training_shapes(mesh, model, subset)
    return _policy(processor, open_checkpoint(path, model).read(shapes))
  key = jax.random.fold_in(jax.random.key(from_scratch_seed), Purpose.WEIGHTS)
  where = sharding.param_shardings(mesh, abstract_params(model))
  draw = jax.jit(init_params, static_argnums=0, out_shardings=where)
  return _policy(processor, draw(model, key))


def _policy(processor: Processor, params: Params) -> Policy:
  model = processor.model_config
  return Policy(processor, model, params, SpecialIds.of(processor.tokenizer, model))


def training_shapes(mesh: Mesh, model: ModelConfig, subset: Subset = EVERYTHING) -> Params:
  """Returns the weights as training stores them, laid out over the mesh, as `jax.ShapeDtypeStruct`s.

  They are float32, except for frozen ones (see `parameters.int8.storage_shapes`).
  """
  return with_param_shardings(mesh, storage_shapes(abstract_params(model), subset))
