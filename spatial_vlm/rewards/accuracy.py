"""Whether an answer agrees with the label."""

from jaxtyping import Array, Bool, Float, Int


def is_correct(verdict: Int[Array, "*R"], label: Int[Array, "*#R"]) -> Bool[Array, "*R"]:
  """Whether the answer parses and agrees with the label; False where the label is unknown (−1)."""
  return (verdict == label) & (verdict >= 0)


def accuracy_reward(verdict: Int[Array, "*R"], label: Int[Array, "*#R"]) -> Float[Array, "*R"]:
  """R(ŷ, y) = 1 if is_equivalent(ŷ, y), else −1      (DAPO, Eq. 7)"""
  return 2.0 * is_correct(verdict, label) - 1.0
