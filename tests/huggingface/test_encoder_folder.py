"""Folders of the encoder: the published files and those that are written here, against transformers and torch."""

import json
import pickle
import shutil
import zipfile
from collections import OrderedDict

import jax
import numpy as np
import pytest
import torch
import transformers
from encoder_reference import CONFIG, random_encoder, write_published
from etils import epath

from spatial_vlm import sharding
from spatial_vlm.huggingface.encoder_folder import (
  encoder_shapes,
  open_encoder,
  read_encoder_config,
  write_encoder,
)
from spatial_vlm.huggingface.torch_zip import torch_inventory
from spatial_vlm.model.xlm_roberta import init_encoder
from spatial_vlm.parameters.partition import flatten


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A folder with the files of BGE-M3, and its model and heads."""
  folder = tmp_path_factory.mktemp("published")
  model, heads = random_encoder()
  write_published(folder, model, heads)
  return folder, model, heads


@pytest.fixture
def copied(published, tmp_path):
  return epath.Path(shutil.copytree(published[0], tmp_path / "copied"))


def read(folder, dtype=np.float32):
  config = read_encoder_config(folder)
  return open_encoder(folder, config).read(encoder_shapes(config, dtype))


def assert_same(params, others):
  for (path, found), other in zip(flatten(params).items(), flatten(others).values(), strict=True):
    np.testing.assert_array_equal(found, other, err_msg=path)


def test_published_files_are_read_without_torch(published):
  folder, model, heads = published
  assert read_encoder_config(folder) == CONFIG
  params = read(folder)["encoder"]
  state = model.state_dict()
  query = state["encoder.layer.2.attention.self.query.weight"].numpy()
  found = params["layers"]["attention"]["q_proj"]["kernel"][2]
  np.testing.assert_array_equal(found.reshape(48, 48), query.T)
  dense = state["encoder.layer.1.attention.output.dense.weight"].numpy()
  found = params["layers"]["attention"]["out_proj"]["kernel"][1]
  np.testing.assert_array_equal(found.reshape(48, 48), dense.T)
  np.testing.assert_array_equal(
    params["embed"]["words"]["embedding"], state["embeddings.word_embeddings.weight"]
  )
  weight = heads["colbert_linear"].weight.detach().numpy()
  np.testing.assert_array_equal(params["heads"]["vectors"]["kernel"], weight.T)
  bias = heads["sparse_linear"].bias.detach().numpy()
  np.testing.assert_array_equal(params["heads"]["lexical"]["bias"], bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storages_are_read(published, tmp_path, dtype):
  _, model, heads = published
  write_published(tmp_path, model, heads, dtype)
  params = read(tmp_path)
  expected = model.state_dict()["encoder.layer.0.intermediate.dense.weight"].to(dtype).float()
  found = params["encoder"]["layers"]["mlp"]["fc1"]["kernel"][0]
  np.testing.assert_array_equal(found, expected.numpy().T)


def test_safetensors_hold_the_same(published, copied):
  _, model, _ = published
  (copied / "pytorch_model.bin").unlink()
  model.save_pretrained(copied)
  assert (copied / "model.safetensors").exists()
  assert_same(read(copied), read(published[0]))


@pytest.mark.parametrize("prefix", ["roberta.", "model."])
def test_prefixes_and_unused_tensors_are_dropped(published, copied, prefix):
  state = published[1].state_dict()
  state = OrderedDict((prefix + name, torch.nn.Parameter(t)) for name, t in state.items())
  state[prefix + "embeddings.position_ids"] = torch.arange(8194)[None]
  state["lm_head.bias"] = torch.zeros(202)
  torch.save(state, copied / "pytorch_model.bin")
  assert_same(read(copied), read(published[0]))


def test_missing_and_unknown_tensors_are_named(published, copied):
  state = OrderedDict(published[1].state_dict())
  del state["encoder.layer.1.output.dense.bias"]
  state["extra.weight"] = torch.zeros(3)
  state["embeddings.LayerNorm.bias"] = torch.zeros(47)
  torch.save(state, copied / "pytorch_model.bin")
  with pytest.raises(ValueError) as error:
    read(copied)
  assert "(3 differences)" in str(error.value)
  assert "missing: encoder.layer.1.output.dense.bias [48]" in str(error.value)
  assert "not read: extra.weight [3]" in str(error.value)
  assert "wrong shape: embeddings.LayerNorm.bias [47]" in str(error.value)


@pytest.mark.parametrize("file", ["config.json", "pytorch_model.bin", "colbert_linear.pt"])
def test_missing_files_are_named(copied, file):
  (copied / file).unlink()
  with pytest.raises(FileNotFoundError, match=file):
    read(copied)


def test_a_sharded_read_holds_the_same(published):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  config = read_encoder_config(published[0])
  checkpoint = open_encoder(published[0], config)
  params = checkpoint.read(sharding.with_param_shardings(mesh, encoder_shapes(config)))
  kernel = params["encoder"]["layers"]["mlp"]["fc1"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (3, 24, 56)
  assert_same(params, read(published[0]))


def test_a_written_folder_is_read_again_and_by_transformers(tmp_path):
  params = init_encoder(CONFIG, jax.random.key(3))
  write_encoder(tmp_path, CONFIG, params)
  assert read_encoder_config(tmp_path) == CONFIG
  assert_same(read(tmp_path), params)
  model, report = transformers.XLMRobertaModel.from_pretrained(
    tmp_path, add_pooling_layer=False, output_loading_info=True
  )
  assert not any(report.values()), report
  weight = model.encoder.layer[1].output.dense.weight.detach().numpy()
  np.testing.assert_array_equal(weight.T, params["encoder"]["layers"]["mlp"]["fc2"]["kernel"][1])


class Calls:
  """Pickles a call of a function."""

  def __init__(self, function, *arguments):
    self.reduced = (function, arguments)

  def __reduce__(self):
    return self.reduced


def write_zip(path, pickled, storages=None):
  """Writes a file as torch does, with any pickle in it."""
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("archive/data.pkl", pickled)
    for name, values in (storages or {}).items():
      archive.writestr(f"archive/{name}", values)
  return epath.Path(path)


@pytest.mark.parametrize(
  ("module", "name"),
  [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("torch", "load"),
    ("torch._utils", "_rebuild_tensor_v2.__call__"),
    ("collections", "OrderedDict.fromkeys"),
    ("torch.serialization", "FloatStorage"),
  ],
)
def test_a_pickle_that_names_a_function_is_refused(tmp_path, module, name):
  marker = tmp_path / "ran"
  call = f"c{module}\n{name}\n(V touch {marker}\ntR.".encode()
  with pytest.raises(ValueError, match=rf"names '{module}.{name}', which could run code"):
    torch_inventory(write_zip(tmp_path / "evil.bin", call))
  assert not marker.exists()


def test_a_state_dict_with_a_call_in_it_is_refused(tmp_path):
  import os

  marker = tmp_path / "ran"
  torch.save({"weight": torch.ones(2), "x": Calls(os.system, f"touch {marker}")}, tmp_path / "f.pt")
  with pytest.raises(ValueError, match="names 'posix.system', which could run code"):
    torch_inventory(epath.Path(tmp_path / "f.pt"))
  assert not marker.exists()


def state_pickle(key="0", values=4, size=(4,), stride=(1,), offset=0):
  """The pickle of {"w": tensor} whose parts may be wrong."""

  class Storage:
    pass

  class Tensor:
    def __reduce__(self):
      return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, None)

  class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
      if isinstance(thing, Storage):
        return ("storage", torch.FloatStorage, key, "cpu", values)
      return None

  import io

  written = io.BytesIO()
  Pickler(written, 2).dump({"w": Tensor()})
  return written.getvalue()


def test_the_pickles_of_these_tests_are_those_of_torch(tmp_path):
  path = write_zip(tmp_path / "f.pt", state_pickle(), {"data/0": bytes(16)})
  found = torch_inventory(path)["w"]
  assert (found.dtype, found.shape) == ("F32", (4,))


@pytest.mark.parametrize(
  ("parts", "message"),
  [
    ({"key": "../data.pkl"}, "names the storage '../data.pkl', which is not there"),
    ({"key": "../../../etc/passwd"}, "etc/passwd', which is not there"),
    ({"key": "x"}, "names the storage 'x'"),
    ({"key": "1"}, "names the storage '1'"),
    ({"values": 5}, "storage 0 has 16 bytes, 20 are expected"),
    ({"values": -1}, "which is not a storage"),
    ({"size": (5,)}, "exceeds its storage of 4 values"),
    ({"offset": 1}, "exceeds its storage of 4 values"),
    ({"offset": -1}, "not built from a storage and sizes"),
    ({"size": (2, 2), "stride": (1, 2)}, "has strides"),
    ({"size": (2, 2), "stride": (2,)}, "cannot be read|zip"),
    ({"size": 3}, "cannot be read"),
  ],
)
def test_wrong_storages_are_refused(tmp_path, parts, message):
  data = {"data/0": bytes(16), "data/x": bytes(16)}
  path = write_zip(tmp_path / "f.pt", state_pickle(**parts), data)
  with pytest.raises(ValueError, match=message):
    torch_inventory(path)


@pytest.mark.parametrize(
  "pickled",
  [
    b"ccollections\nOrderedDict\n}Vx\nI1\nsb.",  # sets an attribute of the class
    b"ctorch._utils\n_rebuild_parameter\n}V__call__\nI1\nsb.",
    b"ctorch\nFloatStorage\n}Vdtype\nI1\nsb.",
    b"ctorch\nFloatStorage\n(tR.",
    b"garbage",
    b"",
    b"]q\x00h\x00a.",
    b"}VA\nI1\ns.",
  ],
)
def test_other_pickles_are_refused(tmp_path, pickled):
  with pytest.raises(ValueError, match="f.pt"):
    torch_inventory(write_zip(tmp_path / "f.pt", pickled))
  assert not hasattr(OrderedDict, "x")


def test_compressed_entries_are_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "f.pt", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", state_pickle())
    archive.writestr("archive/data/0", bytes(16))
  with pytest.raises(ValueError, match="storage 0 is compressed or encrypted"):
    torch_inventory(epath.Path(tmp_path / "f.pt"))


def test_the_older_format_is_refused(tmp_path):
  torch.save({"w": torch.ones(2)}, tmp_path / "f.pt", _use_new_zipfile_serialization=False)
  with pytest.raises(ValueError, match="before version 1.6.*never opened"):
    torch_inventory(epath.Path(tmp_path / "f.pt"))


def test_a_file_that_ends_early_is_refused(published, tmp_path):
  data = (published[0] / "pytorch_model.bin").read_bytes()
  (tmp_path / "f.pt").write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match="f.pt is damaged"):
    torch_inventory(epath.Path(tmp_path / "f.pt"))


def test_views_of_one_storage_are_read_from_their_offset(tmp_path):
  whole = torch.arange(12.0).reshape(4, 3)
  torch.save({"whole": whole, "rows": whole[2:]}, tmp_path / "f.pt")
  found = torch_inventory(epath.Path(tmp_path / "f.pt"))
  assert found["rows"].start == found["whole"].start + 6 * 4
  data = (tmp_path / "f.pt").read_bytes()
  values = np.frombuffer(data, np.float32, 6, found["rows"].start)
  np.testing.assert_array_equal(values.reshape(2, 3), whole[2:])


def test_config_of_another_model_is_refused(copied):
  config = json.loads((copied / "config.json").read_text())
  (copied / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_vl"}))
  with pytest.raises(ValueError, match="not xlm-roberta"):
    read_encoder_config(copied)
