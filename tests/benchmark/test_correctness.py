"""Checks against the formulas: the kernel for CPUs passes, and a wrong kernel is found."""

import jax
import jax.numpy as jnp
import pytest

from spatial_vlm import sharding
from spatial_vlm.benchmark import correctness
from spatial_vlm.benchmark.correctness import attention_rows, parity_rows
from spatial_vlm.model import flash
from spatial_vlm.model.attention import plain_attention


@pytest.fixture
def kernels(monkeypatch):
  monkeypatch.setattr(flash, "KERNELS", dict(flash.KERNELS))
  return flash.KERNELS


def test_the_kernel_passes_in_bfloat16(make_subject, kernels):
  rows = [*attention_rows(make_subject("dtype=bfloat16"))]
  assert [row.name for row in rows] == ["attention, text", "attention, vision"]
  assert all(row.seconds and not row.error and "output" in row.note for row in rows)
  assert set(kernels) == {"tpu", "cuda", "cpu"}


def attends_to_the_future(q, k, v, segments, causal):
  return plain_attention(q, k, v, segments, causal=False)


def gives_nan(q, k, v, segments, causal):
  return plain_attention(q, k, v, segments, causal) * jnp.nan


def is_missing(q, k, v, segments, causal):
  raise RuntimeError("cuDNN is not detected.\nlong explanation")


@pytest.mark.parametrize(
  ("kernel", "message"),
  [
    (attends_to_the_future, "too large"),
    (gives_nan, "nan"),
    (is_missing, "cuDNN is not detected.; the formula is used instead"),
  ],
)
def test_a_wrong_kernel_is_named_and_no_longer_used(
  make_subject, kernels, monkeypatch, kernel, message
):
  monkeypatch.setattr(flash, "attention", kernel)
  row = next(attention_rows(make_subject()))
  assert message in row.error and row.seconds is None
  assert not kernels


def test_the_small_model_agrees_between_two_devices(make_subject):
  """The second device stands for an accelerator."""
  subject = make_subject()
  device = jax.devices()[1]
  mesh = sharding.make_mesh({}, [device])
  with jax.default_device(device), jax.set_mesh(mesh):
    (row,) = parity_rows(subject)
  assert not row.error and "at most" in row.note


def test_a_difference_is_an_error(make_subject, monkeypatch):
  monkeypatch.setattr(correctness, "PARITY_TOLERANCE", -1.0)
  (row,) = parity_rows(make_subject())
  assert "at most" in row.error and not row.note
