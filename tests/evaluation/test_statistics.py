"""Tests over more than two methods, and of means."""

import numpy as np
import pytest
from scipy import stats

from spatial_vlm.evaluation.statistics import (
  cochran_q,
  paired_bootstrap,
  paired_test,
  share,
)


def runs_of(*columns):
  return [{i: bool(right) for i, right in enumerate(column)} for column in columns]


def test_cochran_of_two_methods_is_mcnemar_without_correction():
  a, b = runs_of([1] * 40 + [1] * 12 + [0] * 5 + [0] * 20, [1] * 40 + [0] * 12 + [1] * 5 + [0] * 20)
  assert cochran_q([a, b]) == pytest.approx(stats.chi2.sf((12 - 5) ** 2 / (12 + 5), 1))


def test_cochran_by_hand():
  """Rows 110, 100, 100, 111: C = (4, 2, 1), T = 7, Σ R² = 4 + 1 + 1 + 9 = 15, Q = 2 (3·21 − 49) / (21 − 15)."""
  runs = runs_of([1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 1])
  assert cochran_q(runs) == pytest.approx(stats.chi2.sf(28 / 6, 2))


def test_cochran_skips_what_not_all_answered_and_finds_no_difference_where_there_is_none():
  same = runs_of([1, 0, 1], [1, 0, 1], [1, 0, 1])
  assert cochran_q(same) == 1
  more = [*same[:2], {**same[2], 9: True}]
  assert cochran_q(more) == 1


def test_bootstrap_agrees_with_the_normal_interval_of_a_large_sample():
  rng = np.random.default_rng(3)
  a = dict(enumerate(rng.normal(10, 4, 2000)))
  b = {
    i: value + shift for (i, value), shift in zip(a.items(), rng.normal(0.2, 2, 2000), strict=True)
  }
  differences = np.array([b[i] - a[i] for i in a])
  got = paired_bootstrap(a, b)
  half = 1.96 * differences.std() / np.sqrt(2000)
  assert (got.n, got.difference) == (2000, pytest.approx(differences.mean()))
  assert (got.ci_low, got.ci_high) == pytest.approx(
    (got.difference - half, got.difference + half), abs=0.1 * half
  )
  p = 2 * stats.norm.sf(differences.mean() / (differences.std() / np.sqrt(2000)))
  assert got.p_value == pytest.approx(p, abs=2e-3)
  back = paired_bootstrap(b, a)
  assert (back.difference, back.ci_low) == pytest.approx((-got.difference, -got.ci_high), abs=1e-9)


def test_bootstrap_is_paired_by_key_and_repeatable():
  a, b = {1: 5.0, 2: 7.0, 3: 1.0}, {3: 2.0, 2: 8.0, 1: 6.0, 4: 99.0}
  got = paired_bootstrap(a, b)
  assert (got.n, got.difference, got.ci_low, got.ci_high) == (3, 1, 1, 1)
  assert got == paired_bootstrap(a, b) and 0 < got.p_value < 0.001
  assert paired_bootstrap(a, a).p_value == 1
  with pytest.raises(ValueError, match="examples in common"):
    paired_bootstrap(a, {9: 1.0})


def test_a_share_has_its_interval_and_none_of_nothing():
  got = share([True, False, False, False])
  assert got and (got["n"], got["count"], got["share"]) == (4, 1, 0.25)
  assert 0 < got["ci_low"] < 0.25 < got["ci_high"] < 1
  assert share([]) is None


def test_pairs_of_examples_are_tested_like_examples():
  got = paired_test({(0, 1): True, (2, 3): False, (4, 5): True}, {(0, 1): False, (2, 3): False})
  assert (got.n, got.only_a, got.only_b) == (2, 1, 0)
