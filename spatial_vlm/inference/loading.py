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
from spatial_vlm.parameters.partition import EVERYTHING, Subset, flatten, unflatten
from spatial_vlm.processor.chat import Processor
from spatial_vlm.processor.tokenizer import SpecialIds
from spatial_vlm.sharding import with_param_shardings
from spatial_vlm.types import Params, Purpose


def load_policy(
  folder: str,
  from_scratch_seed: int | None = None,
  mesh: Mesh | None = None,
  subset: Subset = EVERYTHING,
) -> Policy:
  """Loads the model and the processor of a Hugging Face folder.

  Args:
    folder: Hugging Face folder, or the name of one.
    from_scratch_seed: draws fresh weights for the folder's architecture instead of reading them.
    mesh: None for inference: the weights are NumPy arrays in the types of the files. For training, the weights are laid
      out over this mesh, and each process reads what its devices hold.
    subset: the parameters that train, in float32; frozen ones have the type that it sets.
  """
  path = find_folder(folder)
  processor = Processor.from_folder(path)
  model = processor.model_config
  if from_scratch_seed is None:
    checkpoint = open_checkpoint(path, model)
    wanted = checkpoint.shapes if mesh is None else training_shapes(mesh, model, subset)
    params = checkpoint.read(wanted)
  else:
    key = jax.random.fold_in(jax.random.key(from_scratch_seed), Purpose.WEIGHTS)
    where = mesh and sharding.param_shardings(mesh, abstract_params(model))
    params = jax.jit(init_params, static_argnums=0, out_shardings=where)(model, key)
  return Policy(processor, model, params, SpecialIds.of(processor.tokenizer, model))


def training_shapes(mesh: Mesh, model: ModelConfig, subset: Subset = EVERYTHING) -> Params:
  """Returns the weights as training stores them, laid out over the mesh, as `jax.ShapeDtypeStruct`s.

  They are float32, except for frozen ones (see `parameters.int8.storage_shapes`).
  """
  shapes = flatten(storage_shapes(abstract_params(model), subset))
  # A model without DeepStack has stacks of zero layers, which no file contains.
  return with_param_shardings(
    mesh, unflatten({path: leaf for path, leaf in shapes.items() if leaf.size})
  )
