"""The same model in transformers with torch: same weights, same inputs, on the same device."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from spatial_vlm.config import Config, UsageError
from spatial_vlm.huggingface.weights import stream_checkpoint
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.parameters.partition import flatten
from spatial_vlm.types import Batch, Params, Prompts

LORA_MODULES = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
"""Names of the modules that get LoRA factors: those of `lora.targets` in configs/common.py."""

RECOMPUTED = ("offload", "full", "context")
"""Policies that recompute most of a layer, next to which torch checkpoints its layers."""


class Peer:
  """`Qwen3VLForConditionalGeneration` with the weights of ours, on the device that JAX uses.

  Torch computes in `dtype`, with scaled-dot-product attention ("sdpa"). Its results are awaited.
  """

  def __init__(self, model: ModelConfig, params: Params, dtype: str, folder: epath.Path):
    torch, qwen3_vl = import_libraries()
    flat = flatten(params)
    stream_checkpoint(folder, model, flat.__getitem__, dtype)
    self._torch = torch
    self._device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    self._dtype = getattr(torch, dtype)
    self._config = model
    loaded = qwen3_vl.from_pretrained(folder, dtype=self._dtype, attn_implementation="sdpa")
    self._model = loaded.to(self._device).eval()
    self._model.generation_config.eos_token_id = None

  def forward(self, batch: Batch) -> Callable[[], Any]:
    """Returns a call that computes the logits after the last token of every row."""
    inputs = self._inputs(batch)

    def call():
      with self._torch.no_grad():
        return self._wait(self._model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1])

    return call

  def difference(self, calls: dict[str, Callable[[], Any]]) -> float:
    """Returns the largest difference of two calls' logits, ours as JAX gives them."""
    theirs = calls["transformers"]().float().cpu().numpy()
    return float(np.abs(np.asarray(calls["ours"](), np.float32) - theirs).max())

  def prefill(self, prompts: Prompts) -> Callable[[], Any]:
    """Returns a call that reads the prompts and fills a cache."""
    inputs = self._inputs(prompts)

    def call():
      with self._torch.no_grad():
        return self._wait(self._model(**inputs, use_cache=True, logits_to_keep=1).logits)

    return call

  def generate(self, prompts: Prompts, steps: int) -> Callable[[], Any]:
    """Returns a call that samples so many tokens of every answer."""
    inputs = self._inputs(prompts)
    sampling = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0)

    def call():
      with self._torch.no_grad():
        tokens = self._model.generate(**inputs, max_new_tokens=steps, **sampling)
      assert tokens.shape[1] == prompts.tokens.shape[1] + steps
      return self._wait(tokens)

    return call

  def train_step(self, batch: Batch, config: Config) -> Callable[[], Any]:
    """Returns a call that makes a step as ours does: AdamW on all parameters in float32, or on LoRA factors.

    Call it last: it changes the model.
    """
    torch, model = self._torch, self._model
    if config.lora.rank:
      trained = self._add_lora(config.lora)
    else:
      trained = [*model.float().parameters()]
    optimizer = torch.optim.AdamW(
      trained, lr=config.optimizer.learning_rate, fused=self._device == "cuda"
    )
    if config.remat in RECOMPUTED:
      model.gradient_checkpointing_enable(dict(use_reentrant=False))
    model.train()
    inputs = self._inputs(batch)
    labels = np.where(batch.targets, batch.tokens, -100)
    labels = torch.tensor(labels, dtype=torch.long, device=self._device)
    dtype = getattr(torch, config.dtype)

    def call():
      enabled = dtype != torch.float32
      with torch.autocast(self._device, dtype=torch.bfloat16, enabled=enabled):
        loss = model(**inputs, labels=labels, use_cache=False).loss
      loss.backward()
      torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip_norm)
      optimizer.step()
      optimizer.zero_grad()
      return self._wait(loss.detach())

    return call

  def _add_lora(self, lora: Config) -> list[Any]:
    """Adds y += α/r · B A x to the decoder's projections as PEFT does, and returns the factors, in float32."""
    self._model.requires_grad_(False)
    factors = []
    for name, module in self._model.named_modules():
      if re.fullmatch(LORA_MODULES, name):
        outputs, inputs = module.weight.shape
        down = self._torch.randn(lora.rank, inputs, device=self._device) * inputs**-0.5
        up = self._torch.zeros(outputs, lora.rank, device=self._device)
        module.lora_a, module.lora_b = map(self._torch.nn.Parameter, (down, up))
        module.register_forward_hook(functools.partial(_add_product, lora.alpha / lora.rank))
        factors += [module.lora_a, module.lora_b]
    return factors

  def _inputs(self, rows: Batch | Prompts) -> dict[str, Any]:
    """Returns the keyword arguments of the model for rows of one image each, without padding."""
    torch, device = self._torch, self._device
    vision = rows.vision
    assert vision is not None  # each row has one image
    grids = np.tile(_grid(vision), (len(rows.tokens), 1))
    patches = vision.patches.reshape(-1, vision.patches.shape[-1])
    tokens = torch.tensor(rows.tokens, dtype=torch.long, device=device)
    return {
      "input_ids": tokens,
      "attention_mask": torch.ones_like(tokens),
      "mm_token_type_ids": (tokens == self._config.image_token_id).int(),
      "pixel_values": torch.tensor(patches, device=device).to(self._dtype),
      "image_grid_thw": torch.tensor(grids, dtype=torch.long, device=device),
    }

  def _wait(self, result: Any) -> Any:
    if self._device == "cuda":
      self._torch.cuda.synchronize()
    return result


def _add_product(scale: float, module: Any, inputs: tuple[Any], output: Any) -> Any:
  """Returns what a module gives with its LoRA factors; a forward hook."""
  return output + inputs[0] @ module.lora_a.T @ module.lora_b.T * scale


def _grid(vision: Any) -> np.ndarray:
  """Returns (1, rows, columns) of the image of the first row."""
  return np.array([1, *(vision.coords[0].max(axis=0) + 1)])


def import_libraries() -> tuple[Any, Any]:
  """Returns torch and the class of the model; raises UsageError where one is missing."""
  try:
    import torch
    from transformers import Qwen3VLForConditionalGeneration
  except ImportError as error:
    raise UsageError(
      f"--against=transformers cannot load Qwen3-VL in transformers ({error}). It needs torch, which the package does "
      "not bring: pip install torch. A torchvision of another build than torch must go: pip uninstall torchvision"
    ) from error
  return torch, Qwen3VLForConditionalGeneration
