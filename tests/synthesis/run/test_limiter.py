"""How many questions are sent, and when."""

import asyncio
import time

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.run.limiter import RateLimiter, RequestLimits

LIMITS = {
  "concurrency": 3,
  "requests_per_minute": 60_000.0,
  "max_tries": 6,
  "initial_delay_s": 1.0,
  "max_delay_s": 8.0,
}


def moments_of(count, changes, work=lambda limiter, number: asyncio.sleep(0.01)):
  """The time in seconds at which each request was sent, and the largest number in flight."""
  left, flying, most = [], 0, 0

  async def request(limiter, number):
    nonlocal flying, most
    async with limiter.slot():
      left.append(time.monotonic())
      flying += 1
      most = max(most, flying)
      await work(limiter, number)
      flying -= 1

  async def main():
    limiter = RateLimiter(RequestLimits(**{**LIMITS, **changes}))
    begun = time.monotonic()
    await asyncio.gather(*(request(limiter, number) for number in range(count)))
    return [moment - begun for moment in left]

  return asyncio.run(main()), most


def test_concurrency_is_limited():
  assert moments_of(20, {})[1] == 3
  assert moments_of(20, {"concurrency": 1})[1] == 1


def test_the_rate_per_minute_is_limited():
  moments, _ = moments_of(8, {"concurrency": 8, "requests_per_minute": 1200.0})
  assert all(moment >= 0.05 * i - 0.005 for i, moment in enumerate(moments)), moments


def test_a_pause_stops_all_requests():
  async def work(limiter, number):
    if number == 0:
      limiter.pause(0.2)

  moments, _ = moments_of(4, {"concurrency": 1}, work)
  assert moments[0] < 0.1 and min(moments[1:]) >= 0.195


def test_delays_double_up_to_a_limit_with_jitter():
  limits = RequestLimits(**LIMITS)
  keys = [f"k{i}" for i in range(50)]
  for tries, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (9, 8)):
    delays = [limits.retry_delay_s(key, tries) for key in keys]
    assert longest / 2 <= min(delays) < 0.6 * longest < 0.9 * longest < max(delays) <= longest
  assert limits.retry_delay_s("k", 2) == limits.retry_delay_s("k", 2)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"concurrency": 0}, "concurrency is 0"),
    ({"max_tries": 0}, "max_tries is 0"),
    ({"requests_per_minute": 0.0}, "requests_per_minute is 0"),
    ({"initial_delay_s": 9.0}, "initial_delay_s is 9.0"),
    ({"initial_delay_s": -1.0}, "initial_delay_s is -1.0"),
  ],
)
def test_invalid_settings_are_refused(change, message):
  with pytest.raises(UsageError, match=message):
    RequestLimits(**{**LIMITS, **change})
