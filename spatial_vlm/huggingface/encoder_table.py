"""The tables of tensors of an XLM-RoBERTa checkpoint and of BGE-M3's heads."""

from spatial_vlm.huggingface.tensor_table import Tensor, affine, layer_norm
from spatial_vlm.model.xlm_roberta import XlmRobertaConfig


def encoder_tensors(config: XlmRobertaConfig) -> list[Tensor]:
  """Returns the tensors of the encoder, named as in transformers' `XLMRobertaModel`."""
  D, F = config.hidden_size, config.intermediate_size
  embed, layer, ours = "encoder/embed/", "encoder.layer.{}.", "encoder/layers/"
  rows = {
    "word": (config.vocab_size, "words"),
    "position": (config.max_position_embeddings, "positions"),
    "token_type": (1, "types"),
  }
  table = [
    Tensor(f"embeddings.{name}_embeddings.weight", (count, D), (f"{embed}{path}/embedding",))
    for name, (count, path) in rows.items()
  ]
  table += layer_norm("embeddings.LayerNorm.", D, embed + "norm/")
  for name, path in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
    table += affine(f"{layer}attention.self.{name}.", (D, D), f"{ours}attention/{path}/")
  return [
    *table,
    *affine(layer + "attention.output.dense.", (D, D), ours + "attention/out_proj/"),
    *layer_norm(layer + "attention.output.LayerNorm.", D, ours + "attention_norm/"),
    *affine(layer + "intermediate.dense.", (F, D), ours + "mlp/fc1/"),
    *affine(layer + "output.dense.", (D, F), ours + "mlp/fc2/"),
    *layer_norm(layer + "output.LayerNorm.", D, ours + "mlp_norm/"),
  ]


def head_tensors(config: XlmRobertaConfig) -> list[Tensor]:
  """Returns the tensors of the heads, named as in FlagEmbedding's `EncoderOnlyEmbedderM3Model`."""
  D = config.hidden_size
  return [
    *affine("sparse_linear.", (1, D), "encoder/heads/lexical/"),
    *affine("colbert_linear.", (D, D), "encoder/heads/vectors/"),
  ]
