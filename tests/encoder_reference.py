"""transformers' XLMRobertaModel with random weights and FlagEmbedding's heads, for the tests of the encoder."""

import numpy as np
import torch
import transformers

from spatial_vlm.model.xlm_roberta import XlmRobertaConfig

CONFIG = XlmRobertaConfig(
  vocab_size=202,
  hidden_size=48,
  intermediate_size=112,
  num_hidden_layers=3,
  num_attention_heads=4,
  max_position_embeddings=8194,
)


def random_encoder(config=CONFIG, pooler=True):
  """Random weights of a scale at which every part matters, and the two linear heads."""
  description = transformers.XLMRobertaConfig(**config.to_huggingface())
  model = transformers.XLMRobertaModel(description, add_pooling_layer=pooler).eval().float()
  heads = {
    "sparse_linear": torch.nn.Linear(config.hidden_size, 1),
    "colbert_linear": torch.nn.Linear(config.hidden_size, config.hidden_size),
  }
  draw = torch.Generator().manual_seed(0)
  named = [*model.named_parameters()]
  named += [(name, weight) for head in heads.values() for name, weight in head.named_parameters()]
  with torch.no_grad():
    for name, weight in named:
      noise = torch.randn(weight.shape, generator=draw)
      if weight.ndim == 1:
        weight.copy_(0.2 * noise + ("LayerNorm" in name and name.endswith("weight")))
      elif "embeddings" in name:
        weight.copy_(noise)
      else:
        weight.copy_(noise / weight.shape[1] ** 0.5)
  return model, heads


def write_published(folder, model, heads, dtype=torch.float32):
  """Writes the files that BGE-M3 is published with, except for its tokenizer's."""
  model.config.save_pretrained(folder)
  half = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
  torch.save(half, folder / "pytorch_model.bin")
  for name, head in heads.items():
    state = {key: value.to(dtype) for key, value in head.state_dict().items()}
    torch.save(state, folder / f"{name}.pt")


def ragged(lengths, config=CONFIG, seed=0):
  """Returns tokens and mask of rows of these lengths: `<s>`, random tokens, `</s>`, padding."""
  rng = np.random.default_rng(seed)
  tokens = np.full((len(lengths), max(lengths)), config.pad_token_id, np.int32)
  for row, length in zip(tokens, lengths, strict=True):
    row[1:length] = rng.integers(3, config.vocab_size, length - 1)
    row[0], row[length - 1] = config.bos_token_id, config.eos_token_id
  return tokens, np.arange(max(lengths))[None] < np.array(lengths)[:, None]


@torch.no_grad()
def reference_states(model, tokens, mask):
  ids, mask = torch.tensor(tokens, dtype=torch.long), torch.tensor(mask, dtype=torch.long)
  return model(input_ids=ids, attention_mask=mask).last_hidden_state


@torch.no_grad()
def reference_heads(states, heads, tokens, length):
  """FlagEmbedding's formulas for one row: dense vector, token → lexical weight, vectors."""
  states = states[:length]
  dense = torch.nn.functional.normalize(states[0], dim=-1)
  weights = torch.relu(heads["sparse_linear"](states))[:, 0].tolist()
  lexical = {}
  for token, weight in zip(tokens[:length].tolist(), weights, strict=True):
    if token not in (0, 1, 2, 3) and weight > 0:
      lexical[token] = max(weight, lexical.get(token, 0))
  vectors = torch.nn.functional.normalize(heads["colbert_linear"](states[1:]), dim=-1)
  return dense.numpy(), lexical, vectors.numpy()
