"""Checkpoint folders: read from transformers, written for transformers, refused with reasons."""

import collections
import copy
import dataclasses
import filecmp
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from checkpoint_folders import read_checkpoint, write_checkpoint
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from safetensors.numpy import load_file, save_file

from spatial_vlm import sharding
from spatial_vlm.huggingface import safetensors_folder
from spatial_vlm.huggingface.folder import read_model_config
from spatial_vlm.huggingface.safetensors_folder import TensorPlan, write_folder
from spatial_vlm.huggingface.tensor_table import EMBEDDING, HEAD, tensor_of_parameter, tensors
from spatial_vlm.huggingface.weights import (
  MAX_FILE_BYTES,
  open_checkpoint,
  plan_tensors,
  write_tensors,
)
from spatial_vlm.model.config import PRESETS
from spatial_vlm.parameters.paths import path_name

INDEX = "model.safetensors.index.json"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def in_parts(reference, tmp_path_factory):
  """The untied model in about a dozen bfloat16 files, as transformers cuts and names them."""
  folder = tmp_path_factory.mktemp("parts")
  model = copy.deepcopy(reference("small").model)  # `to` rounds the weights where they are
  model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="3MB")
  assert len(list(folder.glob("*.safetensors"))) > 5
  return folder


@pytest.fixture
def copied(in_parts, tmp_path):
  shutil.copytree(in_parts, tmp_path / "copy")
  return tmp_path / "copy"


def paths_and_leaves(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def cut_over(mesh, shapes, dtype):
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where),
    shapes,
    sharding.param_shardings(mesh, shapes),
  )


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_export_loads_in_transformers_with_equal_tensors(reference, tmp_path, size):
  reference = reference(size)
  write_checkpoint(tmp_path, reference.config, reference.params, max_file_bytes=10**6)
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
  model, report = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  expected, got = reference.model.state_dict(), model.state_dict()
  assert expected.keys() == got.keys()
  for name, tensor in expected.items():
    assert tensor.dtype == got[name].dtype
    assert torch.equal(tensor, got[name]), name


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("max_file_bytes", [MAX_FILE_BYTES, 10**6])
def test_round_trip_is_bit_equal(reference, tmp_path, dtype, max_file_bytes):
  reference = reference("small")
  params = jax.tree.map(lambda x: x.astype(dtype), reference.params)
  write_checkpoint(tmp_path, reference.config, params, max_file_bytes=max_file_bytes)
  config, again = read_checkpoint(tmp_path)
  assert config == reference.config
  assert jax.tree.structure(again) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {np.dtype(dtype)}


def test_bfloat16_export_loads_as_bfloat16(reference, tmp_path):
  reference = reference("tiny")
  write_checkpoint(tmp_path, reference.config, reference.params, dtype=ml_dtypes.bfloat16)
  model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path)
  assert model.dtype == torch.bfloat16
  for name, tensor in reference.model.state_dict().items():
    assert torch.equal(tensor.to(torch.bfloat16), model.state_dict()[name]), name


def test_transformers_files_are_read(reference, in_parts):
  reference = reference("small")
  config, params = read_checkpoint(in_parts)
  assert config == reference.config
  expected = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), reference.params)
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("shape", [(1, 1, 8, 1), (1, 2, 2, 2), (1, 1, 1, 8)])
def test_arrays_over_a_mesh_are_those_of_the_whole(in_parts, shape):
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)))
  checkpoint = open_checkpoint(in_parts, read_model_config(in_parts))
  whole = checkpoint.read(checkpoint.shapes)
  wanted = cut_over(mesh, checkpoint.shapes, np.float32)
  for path, array in paths_and_leaves(checkpoint.read(wanted)).items():
    leaf, expected = paths_and_leaves(wanted)[path], paths_and_leaves(whole)[path]
    assert (array.sharding, array.dtype) == (leaf.sharding, np.float32)
    np.testing.assert_array_equal(array, expected.astype(np.float32), err_msg=path)


def test_any_slice_of_any_parameter_is_read(in_parts, monkeypatch):
  # several blocks a tensor, and rows that follow each other in different slices
  monkeypatch.setattr(safetensors_folder, "BLOCK_BYTES", 5000)
  checkpoint = open_checkpoint(in_parts, read_model_config(in_parts))
  draw = np.random.default_rng(0)

  def some(shape):
    starts = [int(draw.integers(size)) for size in shape]
    ends = [int(draw.integers(low, size)) + 1 for low, size in zip(starts, shape, strict=True)]
    return tuple(map(slice, starts, ends))

  whole = paths_and_leaves(checkpoint.read(checkpoint.shapes))
  for path, leaf in paths_and_leaves(checkpoint.shapes).items():
    indices = [some(leaf.shape) for _ in range(3)]
    for index, part in zip(indices, checkpoint.slices(path, leaf, indices), strict=True):
      np.testing.assert_array_equal(part, whole[path][index], err_msg=f"{path} {index}")


class Bucket(MemoryFileSystem):
  """A file system in place of gs://."""

  protocol = "gcs"


@pytest.fixture
def bucket(monkeypatch):
  """A remote folder, and the bytes that were read of each of its files."""
  fsspec.register_implementation("gcs", Bucket, clobber=True)
  count, read = collections.Counter(), MemoryFile.read

  def counted(self, *size):
    data = read(self, *size)
    count[Path(self.path).name] += len(data)
    return data

  monkeypatch.setattr(MemoryFile, "read", counted)
  yield "gs://bucket/checkpoint", count
  Bucket.store.clear()


def test_remote_folders_are_written_and_read_by_ranges(reference, bucket):
  (folder, count), reference = bucket, reference("tiny")
  write_checkpoint(folder, reference.config, reference.params, max_file_bytes=10**6)
  write_checkpoint(folder, reference.config, reference.params, max_file_bytes=2 * 10**6)
  checkpoint = open_checkpoint(folder, read_model_config(folder))
  count.clear()
  jax.tree.map(np.testing.assert_array_equal, checkpoint.read(checkpoint.shapes), reference.params)
  values = sum(leaf.nbytes for leaf in jax.tree.leaves(reference.params))
  assert sum(count.values()) == values
  # Replicas share one reading, and so do devices that hold different parts of the same rows.
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
  count.clear()
  checkpoint.read(cut_over(mesh, checkpoint.shapes, np.float32))
  assert sum(count.values()) == values


@pytest.mark.parametrize(
  ("path", "share"),
  [
    ("text/layers/mlp/down_proj/kernel", 1 / 4),
    ("text/layers/attention/o_proj/kernel", 1 / 4),
    ("vision/blocks/attention/q_proj/kernel", 1 / 3 / 2),  # of the fused matrix
    ("text/layers/mlp/gate_proj/kernel", 1 / 2),
    ("text/embed/embedding", 1),  # 601 rows cannot be halved; of each, the device has a part
  ],
)
def test_one_device_reads_its_rows_alone(reference, bucket, path, share):
  (folder, count), reference = bucket, reference("tiny")
  write_checkpoint(folder, reference.config, reference.params)
  checkpoint = open_checkpoint(folder, read_model_config(folder))
  mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
  leaf = paths_and_leaves(cut_over(mesh, checkpoint.shapes, np.float32))[path]
  device = mesh.devices[0, 0, 2, 1]
  count.clear()
  (part,) = checkpoint.on_devices(
    path, leaf, {device: leaf.sharding.devices_indices_map(leaf.shape)[device]}
  )
  tensor, _ = tensor_of_parameter(tuple(tensors(reference.config)))[path]
  layers = leaf.shape[0] if tensor.is_stacked else 1
  assert sum(count.values()) == layers * np.prod(tensor.shape) * 4 * share
  expected = paths_and_leaves(reference.params)[path]
  np.testing.assert_array_equal(
    part, expected[leaf.sharding.devices_indices_map(leaf.shape)[device]]
  )


def measured(folder, *arguments):
  script = Path(__file__).with_name("measure_loading.py")
  done = subprocess.run(
    [sys.executable, script, folder, *arguments], check=True, capture_output=True, cwd=ROOT
  )
  return json.loads(done.stdout)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="reads Linux's /proc")
def test_memory_besides_the_kept_parameters_does_not_grow_with_the_checkpoint(tmp_path):
  wide = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 20}
  tiny = PRESETS["tiny"]
  config = dataclasses.replace(
    tiny,
    text=dataclasses.replace(tiny.text, **wide),
    vision=dataclasses.replace(tiny.vision, out_hidden_size=512),
  )
  plan = plan_tensors(config, np.dtype(ml_dtypes.bfloat16))
  zeros = (np.zeros(tensor.shape, tensor.dtype) for tensor in plan)
  write_tensors(tmp_path, config, zeros, np.dtype(ml_dtypes.bfloat16), 100 * 10**6)
  total = sum(tensor.bytes for tensor in plan)
  assert total > 250 * 10**6
  result = measured(tmp_path, "--devices", "16")
  extra = result["peak_bytes"] - result["peak_before_bytes"] - result["kept_bytes"]
  assert result["kept_bytes"] < total / 12
  assert extra < 64 * 2**20, result


def test_tied_head_is_stored_once(reference, tmp_path):
  reference = reference("tiny")
  write_checkpoint(tmp_path, reference.config, reference.params)
  assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
  assert "head" not in reference.params


def test_arrays_over_a_mesh_are_written_as_the_whole(reference, tmp_path):
  reference = reference("small")
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  where = sharding.param_shardings(mesh, reference.params)
  write_checkpoint(tmp_path / "whole", reference.config, reference.params, ml_dtypes.bfloat16)
  write_checkpoint(
    *(tmp_path / "cut", reference.config, jax.device_put(reference.params, where)),
    ml_dtypes.bfloat16,
  )
  for name in ("config.json", "model.safetensors"):
    assert filecmp.cmp(tmp_path / "whole" / name, tmp_path / "cut" / name, shallow=False)


def test_files_are_cut_and_indexed(reference, tmp_path):
  reference = reference("tiny")
  write_checkpoint(tmp_path, reference.config, reference.params, max_file_bytes=2 * 10**6)
  index = json.loads((tmp_path / INDEX).read_text())
  sizes = {
    name: {t: array.nbytes for t, array in load_file(tmp_path / name).items()}
    for name in set(index["weight_map"].values())
  }
  assert {path.name for path in tmp_path.glob("*.safetensors")} == sizes.keys()
  assert sorted(sizes)[-1] == f"model-{len(sizes):05d}-of-{len(sizes):05d}.safetensors"
  assert {t: name for name in sizes for t in sizes[name]} == index["weight_map"]
  assert all(sum(tensors.values()) <= 2 * 10**6 for tensors in sizes.values())
  assert sum(sum(tensors.values()) for tensors in sizes.values()) == index["metadata"]["total_size"]
  # A model written over it deletes all of its files.
  (tmp_path / "model-extra.safetensors").write_bytes(b"of somebody")
  write_checkpoint(tmp_path, reference.config, reference.params)
  assert {path.name for path in tmp_path.iterdir()} == {
    *("config.json", "model.safetensors", "model-extra.safetensors")
  }
  jax.tree.map(np.testing.assert_array_equal, read_checkpoint(tmp_path)[1], reference.params)


def test_unplanned_tensors_are_not_written(tmp_path):
  plan = [TensorPlan("a", (2, 3), np.dtype(np.float32))]
  for wrong in (np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float64)):
    with pytest.raises(ValueError, match="the plan has .*, but the array is"):
      write_folder(safetensors_folder.epath.Path(tmp_path), plan, [wrong], 10)


def test_a_folder_of_mixed_types_is_read_in_that_of_most_values(reference, tmp_path):
  """Norms in float32 beside bfloat16 kernels are usual; one layer may differ from the others too."""
  reference = reference("tiny")
  bfloat16 = np.dtype(ml_dtypes.bfloat16)
  write_checkpoint(tmp_path, reference.config, reference.params, bfloat16)
  weights = load_file(tmp_path / "model.safetensors")
  weights |= {
    name: value.astype(np.float32)
    for name, value in weights.items()
    if "norm" in name or "layers.2.mlp" in name
  }
  save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
  _, params = read_checkpoint(tmp_path)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {bfloat16}
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(bfloat16)), params, reference.params
  )


def test_all_differences_are_listed_together(reference, tmp_path):
  reference = reference("tiny")
  write_checkpoint(tmp_path, reference.config, reference.params)
  weights = load_file(tmp_path / "model.safetensors")
  del weights["model.visual.blocks.2.attn.qkv.bias"]
  del weights["model.language_model.layers.5.mlp.up_proj.weight"]
  weights["model.visual.merger.norm.weight"] = np.ones(5, np.float32)
  weights["model.language_model.layers.6.input_layernorm.weight"] = np.ones(128, np.float32)
  name = "model.visual.pos_embed.weight"
  weights[name] = weights[name].astype(np.int64)
  save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
  with pytest.raises(ValueError, match="5 differences") as caught:
    read_checkpoint(tmp_path)
  assert str(caught.value).splitlines()[1:] == [
    "  missing: model.language_model.layers.5.mlp.up_proj.weight [320, 128]",
    "  missing: model.visual.blocks.2.attn.qkv.bias [192]",
    "  not read: model.language_model.layers.6.input_layernorm.weight [128]",
    "  wrong shape: model.visual.merger.norm.weight [5], config.json makes it [64]",
    "  wrong dtype: model.visual.pos_embed.weight I64, weights are F32, BF16, F16",
  ]


def damage(folder):
  """Breaks four files of a checkpoint and its index; returns what the error must contain."""
  index = json.loads((folder / INDEX).read_text())
  of_file = collections.Counter(index["weight_map"].values())
  last = of_file.most_common(1)[0][0]
  first, second, third, fourth, *_ = sorted(of_file.keys() - {last})
  whole = (folder / first).read_bytes()
  (folder / first).write_bytes(whole[:-1000])
  (folder / second).unlink()
  (folder / third).write_bytes(b"\xff" * 100)
  header = b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}'
  (folder / fourth).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
  tensor = next(name for name, file in index["weight_map"].items() if file == last)
  index["weight_map"][tensor] = "../outside.safetensors"
  index["weight_map"]["model.unknown"] = last
  (folder / INDEX).write_text(json.dumps(index))
  (folder.parent / "outside.safetensors").write_bytes(whole)
  of_files = {
    "../outside.safetensors": f"{INDEX} names '../outside.safetensors', which is not a safetensors file of this folder"
    " and is not opened (1 tensors)",
    first: f"{first} is damaged ({len(whole) - 1000} bytes, its header says {len(whole)}); copy it again"
    f" ({of_file[first]} tensors)",
    second: f"{second} is missing ({of_file[second]} tensors)",
    third: f"{third} is damaged (no header in its 100 bytes); copy it again ({of_file[third]} tensors)",
    fourth: f"{fourth} is damaged (header: ValueError('a F32 [3] at 0 to 8')); copy it again"
    f" ({of_file[fourth]} tensors)",
    last: f"{INDEX} puts model.unknown into {last}, which does not hold it\n"
    f"  {last} holds {tensor}, which {INDEX} does not put there",
  }
  return "\n".join(f"  {of_files[name]}" for name in sorted(of_files))


def test_damaged_files_and_index_are_named_together(copied):
  expected = damage(copied)
  with pytest.raises(ValueError, match="7 differences") as caught:
    open_checkpoint(copied, read_model_config(copied))
  assert str(caught.value).partition("\n")[2] == expected


def test_refused_files_are_read_up_to_their_headers(copied, bucket):
  damage(copied)
  folder, count = bucket
  for path in copied.iterdir():
    safetensors_folder.epath.Path(f"{folder}/{path.name}").write_bytes(path.read_bytes())
  count.clear()
  with pytest.raises(ValueError, match="7 differences"):
    read_checkpoint(folder)
  files = {name: size for name, size in count.items() if name.endswith(".safetensors")}
  assert len(files) > 3 and "outside.safetensors" not in files
  for name, size in files.items():
    header = (copied / name).read_bytes()[:8]
    assert size <= 8 + int.from_bytes(header, "little"), name


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}", b'{"weight_map": {"a": 1}}', b"\xff\xfe"])
def test_an_unreadable_index_says_so(copied, index):
  (copied / INDEX).write_bytes(index)
  with pytest.raises(ValueError, match="index.json is damaged"):
    read_checkpoint(copied)


@pytest.mark.parametrize(
  "header",
  [
    b"{",
    b"[1]",
    b'{"a": 1}',
    b'{"a": {"dtype": "F32", "shape": [2]}}',
    b'{"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}',
    b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',  # a gap
    b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2],'
    b' "data_offsets": [4, 12]}}',  # one over the other
    b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}}',
    b"\xff\xfe",
  ],
)
def test_an_unreadable_header_says_so(reference, tmp_path, header):
  shutil.copy(f"{reference('tiny').folder}/config.json", tmp_path)
  content = len(header).to_bytes(8, "little") + header + bytes(8)
  (tmp_path / "model.safetensors").write_bytes(content)
  with pytest.raises(ValueError, match="model.safetensors is damaged"):
    read_checkpoint(tmp_path)


def test_pickled_weights_are_refused(reference, tmp_path):
  shutil.copy(f"{reference('tiny').folder}/config.json", tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
  with pytest.raises(FileNotFoundError, match="pytorch_model.bin, but pickled weights"):
    read_checkpoint(tmp_path)


def test_damaged_weights_are_named(reference, tmp_path):
  for name in ("config.json", "model.safetensors"):
    shutil.copy(f"{reference('tiny').folder}/{name}", tmp_path)
  whole = (tmp_path / "model.safetensors").read_bytes()
  for content in (whole[: len(whole) // 2], whole + b"more", whole[:4], b""):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
      read_checkpoint(tmp_path)


def test_a_file_that_shrinks_after_the_check_says_so(reference, tmp_path):
  for name in ("config.json", "model.safetensors"):
    shutil.copy(f"{reference('tiny').folder}/{name}", tmp_path)
  checkpoint = open_checkpoint(tmp_path, read_model_config(tmp_path))
  os.truncate(tmp_path / "model.safetensors", 10**6)
  with pytest.raises(OSError, match="became shorter"):
    checkpoint.read(checkpoint.shapes)


def test_a_folder_without_weights_or_config_says_so(reference, tmp_path):
  with pytest.raises(FileNotFoundError, match="has no config.json"):
    read_checkpoint(tmp_path)
  shutil.copy(f"{reference('tiny').folder}/config.json", tmp_path)
  with pytest.raises(FileNotFoundError, match="lacks model.safetensors"):
    read_checkpoint(tmp_path)


def test_the_table_has_all_750_tensors_of_the_8b_checkpoint():
  names = [tensor.name for tensor in plan_tensors(PRESETS["8b"], np.dtype(np.float32))]
  assert len(names) == 750
  assert len(names) == len(set(names))


RANDOM_CHECKPOINT = str(ROOT / "launch" / "random_checkpoint.py")


def random_checkpoint(folder, *arguments):
  subprocess.run(
    [sys.executable, RANDOM_CHECKPOINT, folder, *arguments],
    check=True,
    capture_output=True,
    cwd=ROOT,
  )


def test_random_checkpoints_are_the_same_for_a_seed(tmp_path, monkeypatch):
  small = ("--max-file-bytes", "1000000")
  random_checkpoint(tmp_path / "a", "--seed", "1", *small)
  for name, seed in (("b", "1"), ("c", "2")):  # in this process, which has imported everything
    arguments = [RANDOM_CHECKPOINT, str(tmp_path / name), "--seed", seed, *small]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(RANDOM_CHECKPOINT, run_name="__main__")
  assert len(list(tmp_path.glob("a/*.safetensors"))) > 2
  first, again, other = (read_checkpoint(tmp_path / name) for name in "abc")
  assert first[0] == PRESETS["tiny"]
  jax.tree.map(np.testing.assert_array_equal, first[1], again[1])
  table = [params["text"]["embed"]["embedding"] for _, params in (first, other)]
  assert not np.array_equal(*table)
  model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "a")
  assert model.dtype == torch.bfloat16


@pytest.mark.slow  # writes and reads 4.3 GB twice
def test_the_whole_model_makes_the_round_trip_at_2b(tmp_path):
  random_checkpoint(tmp_path / "first", "--size", "2b")
  config, params = read_checkpoint(tmp_path / "first")
  write_checkpoint(tmp_path / "second", config, params, max_file_bytes=10**9)
  names = sorted(path.name for path in (tmp_path / "first").iterdir())
  assert len(names) == 7
  assert names == sorted(path.name for path in (tmp_path / "second").iterdir())
  for name in names:
    assert filecmp.cmp(tmp_path / "first" / name, tmp_path / "second" / name, shallow=False), name


@pytest.mark.slow  # two processes that start jax
def test_processes_of_a_pod_read_their_parts_and_write_the_whole(reference, tmp_path):
  reference = reference("tiny")
  write_checkpoint(tmp_path / "whole", reference.config, reference.params, max_file_bytes=10**6)
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    coordinator = f"localhost:{probe.getsockname()[1]}"
  script = Path(__file__).with_name("pod_round_trip.py")
  folders = (tmp_path / "whole", tmp_path / "again", coordinator, "2")
  started = [
    subprocess.Popen([sys.executable, script, *folders, str(number)], cwd=ROOT) for number in (0, 1)
  ]
  assert [process.wait(timeout=300) for process in started] == [0, 0]
  names = sorted(path.name for path in (tmp_path / "whole").iterdir())
  assert len(names) > 3
  assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
  for name in names:
    assert filecmp.cmp(tmp_path / "whole" / name, tmp_path / "again" / name, shallow=False), name


def stored_otherwise(folder, change):
  """Rewrites a folder's only file with changed tensors."""
  path = folder / "model.safetensors"
  save_file(change(load_file(path)), path, metadata={"format": "pt"})
  return folder


def test_a_tied_head_that_is_stored_too_is_read_if_it_equals_the_embedding(reference, tmp_path):
  reference = reference("tiny")
  assert reference.config.tie_word_embeddings
  write_checkpoint(tmp_path, reference.config, reference.params)
  plain = read_checkpoint(tmp_path)[1]

  def with_head(tensors):
    return {**tensors, HEAD: tensors[EMBEDDING].copy()}

  again = read_checkpoint(stored_otherwise(tmp_path, with_head))[1]
  jax.tree.map(np.testing.assert_array_equal, again, plain)

  def with_another(tensors):
    tensors[HEAD][-1, -1] += 1
    return tensors

  stored_otherwise(tmp_path, with_another)
  with pytest.raises(
    ValueError, match="lm_head.weight differs from .*; set tie_word_embeddings to"
  ):
    open_checkpoint(tmp_path, read_model_config(tmp_path))
  stored_otherwise(tmp_path, lambda tensors: {**tensors, HEAD: tensors[HEAD][:-1]})
  with pytest.raises(ValueError, match="lm_head.weight differs"):
    open_checkpoint(tmp_path, read_model_config(tmp_path))


@pytest.mark.parametrize(
  ("visual", "text", "head"),
  [
    ("visual.", "model.", "lm_head."),
    ("visual.", "language_model.", "lm_head."),
    ("model.visual.", "language_model.model.", "language_model.lm_head."),
  ],
)
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_older_names_are_read(reference, tmp_path, size, visual, text, head):
  reference = reference(size)
  write_checkpoint(tmp_path, reference.config, reference.params)
  plain = read_checkpoint(tmp_path)[1]

  def older(name):
    for now, before in (
      ("model.visual.", visual),
      ("model.language_model.", text),
      ("lm_head.", head),
    ):
      if name.startswith(now):
        return before + name.removeprefix(now)
    raise AssertionError(name)

  renamed = stored_otherwise(tmp_path, lambda tensors: {older(n): t for n, t in tensors.items()})
  jax.tree.map(np.testing.assert_array_equal, read_checkpoint(renamed)[1], plain)


def test_two_tensors_of_one_name_are_not_mixed_up(reference, tmp_path):
  reference = reference("tiny")
  write_checkpoint(tmp_path, reference.config, reference.params)

  def doubled(tensors):
    return {**tensors, "model.norm.weight": tensors["model.language_model.norm.weight"] + 1}

  with pytest.raises(ValueError, match="not read: model.norm.weight"):
    stored = stored_otherwise(tmp_path, doubled)
    open_checkpoint(stored, read_model_config(stored))
