"""Deterministic numbers from SHA-256, the same in every process and on every machine."""

import hashlib


def hash_fraction(*identity: object) -> float:
  """Returns a number in [0, 1) that depends only on the given values.

  >>> hash_fraction("delay", "key", 1) == hash_fraction("delay", "key", 1)
  True
  """
  return int.from_bytes(_digest(identity)[:8], "big") / 2**64


def hash_seed(*identity: object) -> int:
  """Returns a seed in [0, 2³¹) that depends only on the given values."""
  return int.from_bytes(_digest(identity)[:4], "big") >> 1


def _digest(identity: tuple[object, ...]) -> bytes:
  return hashlib.sha256("\0".join(map(str, identity)).encode()).digest()
