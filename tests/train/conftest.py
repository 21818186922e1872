"""The policy that training tests start from."""

import pytest

from spatial_vlm.inference.loading import load_policy


@pytest.fixture(scope="module")
def policy(nano):
  return load_policy(str(nano))
