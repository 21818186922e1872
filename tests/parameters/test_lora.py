"""LoRA adapters and trainable subsets as functions of trees."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from checkpoint_folders import read_checkpoint, write_checkpoint
from safetensors.numpy import load_file

from spatial_vlm import sharding
from spatial_vlm.huggingface.peft_adapter import write_adapter
from spatial_vlm.huggingface.weights import abstract_params
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.config import PRESETS
from spatial_vlm.parameters import lora
from spatial_vlm.parameters.partition import (
  Subset,
  checksums,
  combine,
  flatten,
  partition,
  unflatten,
)
from spatial_vlm.parameters.paths import sibling

PAIRS = (".*/lora_[ab]",)
LORA = Subset(PAIRS, 3, 6.0, ("text/layers/(attention|mlp)/.*_proj/kernel",), "float32", False)


@pytest.fixture(scope="module")
def model_and_params(nano):
  return read_checkpoint(nano)


def filled(params, subset):
  """Adapters whose B is not zero, as after some updates."""
  adapters = flatten(jax.device_get(lora.new_adapters(params, subset, jax.random.key(1))))
  rng = np.random.default_rng(0)
  for path, leaf in adapters.items():
    if path.endswith("/lora_b"):
      adapters[path] = rng.normal(size=leaf.shape).astype(np.float32)
  return unflatten(adapters)


def same(found, expected, **tolerance):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def by_hand(kernel, a, b, scale):
  """Layer by layer, as matrices, in float64: q, k, v have heads on the way out, o on the way in."""
  layers, rank = len(kernel), a.shape[-1]
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  products = [
    (a[i].reshape(-1, rank) @ b[i].reshape(rank, -1)).reshape(kernel.shape[1:])
    for i in range(layers)
  ]
  return kernel + scale * np.stack(products)


def test_partition_selects_by_path_and_combine_restores_the_whole(model_and_params):
  _, params = model_and_params
  trained, frozen = partition(params, ("(text|head)/.*",))
  assert all(path.startswith(("text/", "head/")) for path in flatten(trained))
  assert all(path.startswith("vision/") for path in flatten(frozen))
  same(combine(trained, frozen), params, rtol=0)
  everything, nothing = partition(params, (".*",))
  assert nothing == {}
  same(everything, params, rtol=0)


def test_patterns_that_fit_nothing_are_refused(model_and_params):
  _, params = model_and_params
  with pytest.raises(ValueError, match="'text' *, which is the path of no parameter.*embedding"):
    partition(params, (".*/bias", "text"))
  with pytest.raises(ValueError, match="trainable is empty"):
    partition(params, ())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"targets": ()}, "names '', which matches no parameter"),
    ({"targets": ("text/layers/.*_proj",)}, "matches no parameter; only kernels"),
    ({"targets": ("text/embed/.*",)}, "matches text/embed/embedding; only kernels"),
    ({"trainable": (".*",)}, "the kernel itself must not"),
    (
      {"trainable": (".*/lora_b",)},
      "the LoRA factors of text/layers/attention/k_proj/kernel must train",
    ),
  ],
)
def test_targets_are_kernels_and_their_adapters_train_instead(model_and_params, changes, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    lora.new_adapters(model_and_params[1], dataclasses.replace(LORA, **changes), jax.random.key(0))


def test_new_adapters_change_nothing_and_are_independent(model_and_params):
  _, params = model_and_params
  adapters = lora.new_adapters(params, LORA, jax.random.key(1))
  same(lora.merge_adapters(combine(params, adapters)), params, rtol=0)
  one = dataclasses.replace(LORA, targets=("text/layers/attention/o_proj/kernel",))
  drawn, others = flatten(lora.new_adapters(params, one, jax.random.key(1))), flatten(adapters)
  assert len(drawn) == 3 and len(others) == 7 * 3
  for path, leaf in drawn.items():
    np.testing.assert_array_equal(leaf, others[path])
  halves = {path: np.asarray(x) for path, x in others.items() if path.endswith("/lora_a")}
  for path, a in halves.items():
    bound = (a[0].size // 3) ** -0.5
    assert 0.8 * bound < np.abs(a).max() <= bound, path
  assert len({a.ravel()[:5].tobytes() for a in halves.values()}) == 7


def test_merging_adds_the_product(model_and_params):
  _, params = model_and_params
  subset = dataclasses.replace(
    LORA, targets=(*LORA.targets, "vision/.*/kernel")
  )  # all kinds of kernels, stacks and others
  adapters = filled(params, subset)
  merged = lora.merge_adapters(combine(params, adapters))
  before, after, flat = flatten(params), flatten(merged), flatten(adapters)
  assert before.keys() == after.keys()
  for path, leaf in before.items():
    a, b = (flat.get(sibling(path, half)) for half in ("lora_a", "lora_b"))
    if a is None or not path.endswith("/kernel"):
      np.testing.assert_array_equal(after[path], leaf)
    elif flat[sibling(path, "lora_scale")].ndim:
      np.testing.assert_allclose(after[path], by_hand(leaf, a, b, 2.0), rtol=1e-5, atol=1e-5)
    else:
      expected = by_hand(leaf[None], a[None], b[None], 2.0)[0]
      np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-5)
    parts = lora.read_with_parts((before | flat).__getitem__, subset, path)
    made = lora.effective_kernels(parts)["kernel"] if isinstance(parts, dict) else parts
    np.testing.assert_allclose(made, after[path], rtol=1e-6, atol=1e-6)


def test_merging_rounds_once_to_the_type_of_the_kernel():
  kernel = jnp.full((4, 4), 1.0, jnp.bfloat16)
  a, b = jnp.full((4, 2), 0.01), jnp.full((2, 4), 0.3)
  merged = lora.merge_adapters(
    {"kernel": kernel, "lora_a": a, "lora_b": b, "lora_scale": jnp.ones(())}
  )
  assert merged["kernel"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(merged["kernel"], jnp.asarray(1.006, jnp.bfloat16))


def test_adapters_are_sharded_as_their_kernels():
  """Each axis that an adapter shares with its kernel is sharded the same way; the rank is never sharded."""
  mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 4})
  shapes = abstract_params(PRESETS["8b"])
  subset = dataclasses.replace(LORA, targets=("(text|vision)/.*/kernel",))
  adapters = jax.eval_shape(lambda: lora.new_adapters(shapes, subset, jax.random.key(0)))
  kernels, where = (flatten(sharding.param_shardings(mesh, tree)) for tree in (shapes, adapters))
  sizes, cut = flatten(adapters), set()
  for path, kernel in flatten(shapes).items():
    if not path.endswith("/kernel"):
      continue
    a, b = (sibling(path, half) for half in ("lora_a", "lora_b"))
    rank = kernel.ndim
    spec = (*kernels[path].spec, *[None] * (rank - len(kernels[path].spec)))
    found_a = (*where[a].spec, *[None] * (sizes[a].ndim - len(where[a].spec)))
    found_b = (*where[b].spec, *[None] * (sizes[b].ndim - len(where[b].spec)))
    inputs = sizes[a].ndim - 1
    assert found_a == (*spec[:inputs], None), path
    assert found_b[-(rank - inputs) :] == spec[inputs:], path
    assert set(found_b[: -(rank - inputs)]) == {None}, path
    cut |= {*found_a, *found_b}
  assert cut == {None, "fsdp", "tensor"}


def test_checksums_depend_on_values_and_paths_not_on_meshes():
  values = jnp.arange(48.0).reshape(4, 12)
  number = checksums({"x": values})
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  on_mesh = jax.device_put(values, jax.NamedSharding(mesh, sharding.P("data", "tensor")))
  assert checksums({"x": on_mesh}) == number
  swapped = values.at[0, 0].set(1.0).at[0, 1].set(0.0)
  others = [swapped, values.at[3, 11].add(1e-5), values.T, values.astype(jnp.bfloat16)]
  found = [checksums({"x": other})["x"] for other in others]
  assert len({number["x"], *found}) == 5
  bits = np.asarray(values).view(np.uint32).ravel().astype(object)
  assert number["x"] == sum(int(b) * (2 * i + 1) for i, b in enumerate(bits)) % 2**32


@pytest.mark.parametrize("base_kernels", ["text", "vision", "convolution"])
def test_an_adapter_file_gives_the_same_update_of_every_tensor(
  model_and_params, tmp_path, base_kernels
):
  """PEFT adds lora_alpha / r · lora_B @ lora_A to `module`.weight, each with its own rank where there is a pattern."""
  model, params = model_and_params
  targets = {
    "text": LORA.targets,
    "vision": ("vision/blocks/attention/(q|v)_proj/kernel", "vision/merger/.*/kernel"),
    "convolution": ("vision/patch_embed/proj/kernel",),
  }
  subset = dataclasses.replace(LORA, targets=targets[base_kernels])
  adapters = filled(params, subset)
  write_adapter(tmp_path / "adapter", "base", model, subset, adapters)
  write_checkpoint(tmp_path / "base", model, params)
  write_checkpoint(
    tmp_path / "merged", model, jax.device_get(lora.merge_adapters(combine(params, adapters)))
  )
  base, merged = (load_file(tmp_path / x / "model.safetensors") for x in ("base", "merged"))
  adapter_config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
  stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
  assert (adapter_config["peft_type"], adapter_config["r"], adapter_config["lora_alpha"]) == (
    "LORA",
    3,
    6.0,
  )
  assert len(stored) == 2 * len(adapter_config["target_modules"])
  for module in adapter_config["target_modules"]:
    a, b = (stored.pop(f"base_model.model.{module}.lora_{half}.weight") for half in "AB")
    rank = adapter_config["rank_pattern"].get(module, adapter_config["r"])
    alpha = adapter_config["alpha_pattern"].get(module, adapter_config["lora_alpha"])
    assert a.shape[0] == b.shape[1] == rank
    weight = base[f"{module}.weight"]
    window = weight.shape[
      2:
    ]  # PEFT keeps a convolution's window in A, and multiplies by B at each place
    assert (a.shape[2:], b.shape[2:]) == (window, (1,) * len(window))
    product = b.reshape(-1, rank) @ a.reshape(rank, -1)
    base[f"{module}.weight"] = weight + alpha / rank * product.reshape(weight.shape)
  assert not stored
  changed = [name for name in base if not np.array_equal(base[name], merged[name])]
  assert all(".weight" in name for name in changed)
  same(base, merged, rtol=0, atol=2e-5)


def test_merged_weights_in_transformers_give_the_logits_of_adapters(reference, make_case, tmp_path):
  """This package adds adapters to their kernels, transformers reads merged ones; text and vision, with an image."""
  tiny = reference("tiny")
  everywhere = dataclasses.replace(LORA, targets=("(text|vision)/.*/kernel",))
  small = {
    path: leaf * (0.02 if path.endswith("/lora_b") else 1)
    for path, leaf in flatten(filled(tiny.params, everywhere)).items()
  }
  params = combine(tiny.params, unflatten(small))
  case = make_case(tiny, [[3, (4, 6), 5], [9]])
  forward = jax.jit(lambda p, batch: qwen3_vl.forward(p, tiny.config, batch))
  found = qwen3_vl.logits(params, tiny.config, forward(params, case.batch))
  write_checkpoint(tmp_path, tiny.config, jax.device_get(lora.merge_adapters(params)))
  model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
  with torch.no_grad():
    expected, before = (m(**case.hf).logits.numpy()[case.real] for m in (model, tiny.model))
  assert np.abs(expected - before).max() > 0.1
  np.testing.assert_allclose(np.asarray(found)[case.real], expected, rtol=0, atol=1e-5)
