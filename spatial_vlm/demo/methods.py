"""The rows of the demo's result table, which of them are compared, and the aims that they are judged by."""

from collections.abc import Mapping

from spatial_vlm.evaluation.results_report import (
  Aim,
  Runs,
  difference_text,
  met,
  points,
)
from spatial_vlm.evaluation.scores import Scores
from spatial_vlm.evaluation.statistics import mcnemar
from spatial_vlm.text import percent

MAJORITY = "majority"
ZERO_SHOT = "tiny base, zero-shot"
SFT_DIRECT = "SFT, direct answer"
SFT_CHAIN = "SFT, chain of thought"
DAPO_CHAIN = "DAPO, chain of thought"
DAPO_REUSE = "DAPO + reuse"
METHODS = (MAJORITY, ZERO_SHOT, SFT_DIRECT, SFT_CHAIN, DAPO_CHAIN, DAPO_REUSE)
"""Rows of the result table, in its order."""
REUSE_FULL_CHAIN = "DAPO + reuse, full chain"
"""Full chains by the weights of the reuse row: measured in addition to the table, since learning the
short form may change them."""

FOLDERS = {
  MAJORITY: "evaluate_majority",
  ZERO_SHOT: "evaluate_zero_shot",
  SFT_DIRECT: "evaluate_direct",
  SFT_CHAIN: "evaluate_sft",
  DAPO_CHAIN: "evaluate_dapo",
  DAPO_REUSE: "evaluate_reuse",
  REUSE_FULL_CHAIN: "evaluate_reuse_chain",
}
"""Method → folder of its predictions."""

PAIRS = (
  *zip(METHODS[:-1], METHODS[1:], strict=True),
  (DAPO_CHAIN, REUSE_FULL_CHAIN),
  (DAPO_REUSE, REUSE_FULL_CHAIN),
)
"""Methods that the report compares: the second less the first."""

DAPO_GAIN = 0.03
REUSE_LOSS = 0.02
REUSE_TOKEN_RATIO = 3.4


def judge_aims(runs: Runs, scores: Mapping[str, Scores]) -> list[Aim]:
  """Judges the aims whose rows were measured: the gain of DAPO over SFT on chains, the cost and saving of reuse."""
  judged = []
  if SFT_CHAIN in runs and DAPO_CHAIN in runs:
    judged.append(_dapo_aim(runs, scores))
  if DAPO_CHAIN in runs and DAPO_REUSE in runs:
    judged.append(_reuse_aim(runs, scores))
  return judged


def _dapo_aim(runs: Runs, scores: Mapping[str, Scores]) -> Aim:
  paired = mcnemar(runs[SFT_CHAIN], runs[DAPO_CHAIN])
  return Aim(
    f"DAPO at least {100 * DAPO_GAIN:g} points above SFT with chains",
    paired.difference >= DAPO_GAIN,
    f"DAPO answers {percent(scores[DAPO_CHAIN]['accuracy'])} rightly, SFT {percent(scores[SFT_CHAIN]['accuracy'])}: "
    f"{difference_text(paired)}.",
  )


def _reuse_aim(runs: Runs, scores: Mapping[str, Scores]) -> Aim:
  paired = mcnemar(runs[DAPO_CHAIN], runs[DAPO_REUSE])
  full, short = (scores[method]["generated_tokens_mean"] for method in (DAPO_CHAIN, DAPO_REUSE))
  ratio = full / short if short else float("inf")
  keeps, saves = paired.lower_bound > -REUSE_LOSS, ratio >= REUSE_TOKEN_RATIO
  return Aim(
    f"reuse loses less than {100 * REUSE_LOSS:g} points (one-sided 95 % bound) at {REUSE_TOKEN_RATIO:g} times fewer "
    "generated tokens or better",
    keeps and saves,
    f"Reuse answers {percent(scores[DAPO_REUSE]['accuracy'])} rightly, the full chain "
    f"{percent(scores[DAPO_CHAIN]['accuracy'])}: {difference_text(paired)}; with 95 % confidence the change is above "
    f"{points(paired.lower_bound)} points, where −{100 * REUSE_LOSS:.1f} is allowed ({met(keeps)}). It writes "
    f"{short:.1f} tokens in place of {full:.1f}, {ratio:.2f} times fewer, where {REUSE_TOKEN_RATIO:g} is asked "
    f"({met(saves)}).",
  )
