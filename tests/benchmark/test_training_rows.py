"""The row of a training step."""

import jax
import pytest

from spatial_vlm.benchmark.inference_rows import forward_rows
from spatial_vlm.benchmark.training_rows import Stepper, fresh_state, sft_rows
from spatial_vlm.parameters.partition import flatten


def test_a_step_costs_three_forward_passes_and_compiles_faster_from_the_cache(make_subject):
  subject = make_subject()
  with jax.set_mesh(subject.mesh):
    (row,), (forward,) = sft_rows(subject), forward_rows(subject)
  assert row.name == "training step" and row.tokens == 2 * 48
  assert 2.8 < row.flops / forward.flops < 3.4  # the forward row has the head for one token a row
  assert 0 < row.cached_compile_s
  assert row.peak_bytes > 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(subject.params))
  assert row.note.startswith("all parameters, adamw, remat dots, float32; 2 rows of 48 tokens")


@pytest.mark.slow
def test_recomputation_and_chunks_do_not_count(make_subject):
  flops = []
  for settings in (("sft.remat=none",), ("sft.remat=full", "sft.chunk_tokens=16")):
    subject = make_subject(*settings)
    with jax.set_mesh(subject.mesh):
      flops += [row.flops for row in sft_rows(subject)]
  assert flops[0] == flops[1]


def test_lora_has_factors_alone_in_its_state(make_subject):
  subject = make_subject("sft.lora.rank=4", "sft.trainable=('.*/lora_[ab]',)")
  state, frozen, _ = fresh_state(subject, subject.config.sft)
  assert {path.rpartition("/")[2] for path in flatten(state.params)} == {"lora_a", "lora_b"}
  assert "text/embed/embedding" in flatten(frozen)


def test_a_stepper_goes_on_from_its_last_state():
  step = Stepper(lambda state, by: (state + by, "sums"), 1, 10)
  assert [step(), step()] == [(11, "sums"), (21, "sums")]
