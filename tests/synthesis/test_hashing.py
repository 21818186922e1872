"""Deterministic fractions and seeds."""

import hashlib

import pytest

from spatial_vlm.synthesis.hashing import hash_fraction, hash_seed


def test_values_are_those_of_sha_256():
  digest = hashlib.sha256(b"delay\0key\x003").digest()
  assert hash_fraction("delay", "key", 3) == int.from_bytes(digest[:8], "big") / 2**64
  assert hash_seed("delay", "key", 3) == int.from_bytes(digest[:4], "big") // 2


def test_fractions_are_uniform_and_seeds_fit_31_bits():
  fractions = [hash_fraction("a", i) for i in range(4000)]
  assert sum(fractions) / 4000 == pytest.approx(0.5, abs=0.02)
  assert 0 <= min(fractions) < 0.01 < 0.99 < max(fractions) < 1
  assert 0 <= min(seeds := [hash_seed("a", i) for i in range(4000)]) and max(seeds) < 2**31
  assert len({*seeds}) > 3990
