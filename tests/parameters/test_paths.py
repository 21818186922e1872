"""The table of parameters: its rows as recorded, and paths that fit no row or two."""

import json
from pathlib import Path

import pytest
from jax.sharding import PartitionSpec as P

from spatial_vlm.huggingface.weights import abstract_params
from spatial_vlm.model.config import PRESETS
from spatial_vlm.parameters import paths
from spatial_vlm.parameters.partition import flatten
from spatial_vlm.parameters.paths import ADAPTER, INT8, MATRIX, ParameterRow, parameter_row, sibling

RECORDED = json.loads(Path(__file__).with_name("parameter_rows.json").read_text())


def test_rows_of_all_parameters_are_as_recorded():
  """Another row shards, orthogonalizes or decays a parameter differently: results of runs change."""
  names = {path for preset in ("tiny", "8b") for path in flatten(abstract_params(PRESETS[preset]))}
  kernels = {path for path in names if path.endswith("/kernel")}
  names |= {sibling(path, name) for path in kernels for name in (*ADAPTER, *INT8)}
  rows = {path: parameter_row(path) for path in names}
  found = {
    path: {
      "spec": list(row.spec),
      "matrix": row.matrix and [list(axes) for axes in row.matrix],
      "decays": row.decays,
    }
    for path, row in rows.items()
  }
  assert found == RECORDED


@pytest.mark.parametrize(
  "path",
  [
    "text/layers/mlp/gate/kernel",
    "text/layers/mlp/gate/lora_a",
    "text/layers/mlp/gate/kernel_int8",
    "kernel",
    "text/embed/table",
  ],
)
def test_an_unknown_path_is_refused(path):
  with pytest.raises(ValueError, match="matches 0 rows of parameters.paths.PARAMETERS.*Add a row"):
    parameter_row(path)


def test_a_path_in_two_rows_is_refused(monkeypatch):
  second = ParameterRow(".*/mlp/up_proj/kernel", P("fsdp"), MATRIX, True)
  monkeypatch.setattr(paths, "PARAMETERS", (*paths.PARAMETERS, second))
  for name in ("kernel", "lora_b", "kernel_scale"):
    with pytest.raises(ValueError, match="up_proj/kernel' matches 2 rows"):
      parameter_row(f"text/layers/mlp/up_proj/{name}")
