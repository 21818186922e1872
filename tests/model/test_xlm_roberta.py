"""The encoder of BGE-M3 against transformers and FlagEmbedding's formulas, on random weights."""

import dataclasses

import jax
import numpy as np
import pytest
from encoder_reference import CONFIG, ragged, random_encoder, reference_heads, reference_states
from jax import numpy as jnp

from spatial_vlm import sharding
from spatial_vlm.huggingface.encoder_table import encoder_tensors, head_tensors
from spatial_vlm.model import xlm_roberta
from spatial_vlm.model.xlm_roberta import XlmRobertaConfig, encode, hidden_states, init_encoder
from spatial_vlm.parameters.partition import flatten, unflatten

BGE_M3 = XlmRobertaConfig(
  vocab_size=250_002,
  hidden_size=1024,
  intermediate_size=4096,
  num_hidden_layers=24,
  num_attention_heads=16,
  max_position_embeddings=8194,
)


@pytest.fixture(scope="module")
def reference():
  """A random model, its heads, and the same weights as parameters."""
  model, heads = random_encoder()
  state = dict(model.state_dict())
  for name, head in heads.items():
    state |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
  shapes, flat = flatten(jax.eval_shape(lambda: init_encoder(CONFIG, jax.random.key(0)))), {}
  for tensor in (*encoder_tensors(CONFIG), *head_tensors(CONFIG)):
    (path,) = tensor.paths
    arrays = [state[name].numpy() for name in tensor.names(shapes[path].shape)]
    arrays = [array.T if tensor.is_matrix else array for array in arrays]
    flat[path] = np.stack(arrays).reshape(shapes[path].shape)
  return model, heads, unflatten(flat)


@pytest.mark.parametrize("lengths", [[2], [7, 31, 2, 16], [300, 40]], ids=str)
def test_hidden_states_are_those_of_transformers(reference, lengths):
  model, _, params = reference
  tokens, mask = ragged(lengths)
  found = jax.jit(hidden_states, static_argnums=1)(params, CONFIG, tokens, mask)
  np.testing.assert_allclose(
    np.asarray(found)[mask], reference_states(model, tokens, mask).numpy()[mask], atol=1e-5, rtol=0
  )
  assert np.isfinite(found).all()


@pytest.mark.slow
def test_a_row_of_8192_tokens_is_that_of_transformers(reference):
  model, _, params = reference
  tokens, mask = ragged([8192, 5])
  found = jax.jit(hidden_states, static_argnums=1)(params, CONFIG, tokens, mask)
  expected = reference_states(model, tokens, mask).numpy()
  np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], atol=1e-5, rtol=0)


def test_heads_are_those_of_flag_embedding(reference):
  model, heads, params = reference
  lengths = [9, 40, 2, 25]
  tokens, mask = ragged(lengths)
  tokens[1, 5:9] = tokens[1, 4]  # repeated
  tokens[3, 6] = CONFIG.unk_token_id
  states = reference_states(model, tokens, mask)
  found = jax.tree.map(np.asarray, jax.jit(encode, static_argnums=1)(params, CONFIG, tokens, mask))
  for row, length in enumerate(lengths):
    dense, lexical, vectors = reference_heads(states[row], heads, tokens[row], length)
    np.testing.assert_allclose(found.dense[row], dense, atol=1e-5)
    np.testing.assert_allclose(found.vectors[row, 1:length], vectors, atol=1e-5)
    largest = {
      int(t): found.lexical[row][tokens[row] == t].max()
      for t in tokens[row]
      if found.lexical[row][tokens[row] == t].max() > 0
    }
    assert largest.keys() == lexical.keys()
    assert largest == pytest.approx(lexical, abs=1e-5)
    assert not found.vectors[row, 0].any() and not found.vectors[row, length:].any()
    assert not found.lexical[row, length:].any()


def test_padding_does_not_matter(reference):
  params = reference[2]
  tokens, mask = ragged([9, 40])
  encode = jax.jit(xlm_roberta.encode, static_argnums=1)
  alone = encode(params, CONFIG, tokens[:1, :9], mask[:1, :9])
  tokens = np.where(mask, tokens, 77)
  padded = encode(params, CONFIG, tokens, mask)
  np.testing.assert_allclose(padded.dense[0], alone.dense[0], atol=1e-6)
  np.testing.assert_allclose(padded.vectors[0, :9], alone.vectors[0], atol=1e-6)


def test_rows_longer_than_the_positions_are_refused(reference):
  config = dataclasses.replace(CONFIG, max_position_embeddings=34)
  with pytest.raises(ValueError, match="rows of 33 tokens exceed the 32"):
    hidden_states(reference[2], config, *ragged([33]))


def test_a_mesh_computes_the_same(reference):
  params = reference[2]
  tokens, mask = ragged([9, 40, 2, 25])
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  rows = jax.device_put((tokens, mask), sharding.batch_sharding(mesh, (tokens, mask)))
  placed = jax.device_put(params, sharding.param_shardings(mesh, params))
  kernel = placed["encoder"]["layers"]["attention"]["q_proj"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (3, 24, 2, 12)
  function = jax.jit(encode, static_argnums=1)
  with jax.set_mesh(mesh):
    sharded = function(placed, CONFIG, *rows)
  for found, expected in zip(
    jax.tree.leaves(sharded), jax.tree.leaves(function(params, CONFIG, tokens, mask)), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bge_m3_has_its_published_size():
  shapes = flatten(jax.eval_shape(lambda: init_encoder(BGE_M3, jax.random.key(0))))
  heads = {path: leaf.size for path, leaf in shapes.items() if path.startswith("encoder/heads/")}
  pooler = 1024 * 1024 + 1024  # published, unused, and not a parameter here
  assert sum(leaf.size for leaf in shapes.values()) - sum(heads.values()) == 567_754_752 - pooler
  assert sum(heads.values()) == 1024 + 1 + pooler
  names = sum(len(list(t.names(shapes[t.paths[0]].shape))) for t in encoder_tensors(BGE_M3))
  assert names == 391 - 2
  assert BGE_M3.max_tokens == 8192


def test_bge_m3_runs_on_its_longest_row():
  params = jax.eval_shape(lambda: init_encoder(BGE_M3, jax.random.key(0), jnp.bfloat16))
  row = jax.ShapeDtypeStruct((1, 8192), jnp.int32)
  mask = jax.ShapeDtypeStruct((1, 8192), jnp.bool_)
  found = jax.eval_shape(lambda *x: encode(x[0], BGE_M3, *x[1:]), params, row, mask)
  assert found.dense.shape == (1, 1024) and found.vectors.shape == (1, 8192, 1024)
  assert found.dense.dtype == jnp.float32


def test_gradients_are_finite_where_a_head_is_silent(reference):
  params = jax.tree.map(jnp.zeros_like, init_encoder(CONFIG, jax.random.key(0)))
  tokens, mask = ragged([9, 4])

  def loss(params):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(encode(params, CONFIG, tokens, mask)))

  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "bert"}, "model_type 'bert', not xlm-roberta"),
    ({"hidden_act": "relu"}, "hidden_act 'relu'; 'gelu' is supported"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"pad_token_id": 0}, "pad_token_id is 0"),
    ({"num_attention_heads": 5}, "width 48 does not divide into 5"),
    ({"vocab_size": None}, "config.json lacks vocab_size"),
  ],
)
def test_other_encoders_are_refused(change, message):
  config = {**CONFIG.to_huggingface(), **change}
  config = {name: value for name, value in config.items() if value is not None}
  with pytest.raises(ValueError, match=message):
    XlmRobertaConfig.from_huggingface(config)


def test_the_config_is_read_as_it_was_written():
  assert XlmRobertaConfig.from_huggingface(CONFIG.to_huggingface()) == CONFIG
