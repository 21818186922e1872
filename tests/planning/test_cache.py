"""Stored costs are valid until something that determines them changes."""

import pytest

from spatial_vlm.planning.cache import fingerprint


def test_fingerprint_changes_with_the_config(load_config, eight_chips):
  pytest.importorskip("libtpu")
  first = fingerprint(load_config("configs/sft.py:8b"), eight_chips)
  assert fingerprint(load_config("configs/sft.py:8b"), eight_chips) == first
  assert fingerprint(load_config("configs/sft.py:8b", "remat=dots"), eight_chips) != first
