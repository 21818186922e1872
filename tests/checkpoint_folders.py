"""Reads and writes whole checkpoint folders, for models that fit into the memory."""

import numpy as np

from spatial_vlm.huggingface.folder import read_model_config
from spatial_vlm.huggingface.weights import MAX_FILE_BYTES, open_checkpoint, stream_checkpoint
from spatial_vlm.parameters.partition import flatten


def read_checkpoint(folder):
  """Returns a folder's configuration, and its parameters as NumPy arrays in the type of the files."""
  checkpoint = open_checkpoint(folder, read_model_config(folder))
  return checkpoint.config, checkpoint.read(checkpoint.shapes)


def write_checkpoint(folder, config, params, dtype=None, max_file_bytes=MAX_FILE_BYTES):
  """Writes a Hugging Face folder, by default in the type of the parameters."""
  flat = flatten(params)
  dtype = np.dtype(flat["text/embed/embedding"].dtype if dtype is None else dtype)
  stream_checkpoint(folder, config, flat.__getitem__, dtype, max_file_bytes)
