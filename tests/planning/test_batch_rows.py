"""Rows of a training config's batches."""

from spatial_vlm.planning.batch_rows import rows_per_micro_batch, rows_per_update


def test_rows_of_sft_are_conversations(load_config):
  config = load_config("configs/sft.py:8b", "batch_size=32", "micro_batches=2")
  assert (rows_per_update(config), rows_per_micro_batch(config)) == (32, 16)


def test_rows_of_dapo_are_groups_and_answers(load_config):
  """512 groups in 16 mini-batches of 8 micro-batches, 16 answers per group."""
  config = load_config("configs/dapo.py:8b")
  assert (rows_per_update(config), rows_per_micro_batch(config)) == (32, 4 * 16)
