"""The faults that are simulated for each request."""

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.local.faults import ANSWER, TRANSIENT, Faults


@pytest.mark.parametrize("kinds", [TRANSIENT, ANSWER])
def test_faults_come_in_their_shares_and_one_at_a_time(kinds):
  faults = Faults(**{kinds[0]: 0.2, kinds[1]: 0.3})
  drawn = [faults.draw(kinds, 0, number) for number in range(5000)]
  assert drawn.count(kinds[0]) / 5000 == pytest.approx(0.2, abs=0.02)
  assert drawn.count(kinds[1]) / 5000 == pytest.approx(0.3, abs=0.02)
  assert drawn.count(None) / 5000 == pytest.approx(0.5, abs=0.02)


def test_shares_beyond_the_whole_are_refused():
  for shares in ({"cut": 0.7, "slow": 0.4}, {"row_failed": -0.1}):
    with pytest.raises(UsageError, match="shares are"):
      Faults(**shares)
