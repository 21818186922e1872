"""Addresses, waiting times, bodies and statuses."""

import datetime

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis import wire
from spatial_vlm.synthesis.teacher import Busy, Lost, Refused

NOON = datetime.datetime(2026, 11, 24, 12, 0, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
  ("url", "local"),
  [
    ("http://127.0.0.1:80/v1", True),
    ("http://127.8.8.8", True),
    ("http://localhost:8000", True),
    ("http://[::1]:8000", True),
    ("http://10.0.0.1", False),
    ("http://localhost.example.org", False),
    ("http://127.0.0.1.example.org", False),
    ("", False),
  ],
)
def test_which_addresses_are_this_machine(url, local):
  assert wire.is_local(url) == local


@pytest.mark.parametrize(
  ("header", "seconds"),
  [
    ("7", 7.0),
    ("0.5", 0.5),
    ("Tue, 24 Nov 2026 12:01:30 GMT", 90.0),
    ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
    (None, None),
    ("soon", None),
    ("-3", None),
    ("inf", None),
    ("nan", None),
  ],
)
def test_how_long_to_wait(header, seconds):
  assert wire.seconds_to_wait(header, NOON) == seconds


@pytest.mark.parametrize(
  ("status", "error"),
  [
    *((status, Busy) for status in (408, 409, 429, 500, 502, 503, 504, 529)),
    *((status, UsageError) for status in (301, 307, 401, 403, 404)),
    *((status, Refused) for status in (400, 413, 422)),
    (204, Lost),
  ],
)
def test_what_a_status_means_for_the_next_attempt(status, error):
  failure = wire.failure(status, "why", 3.0)
  assert type(failure) is error and "why" in str(failure) and str(status) in str(failure)


def test_a_body_is_read_without_secrets_and_without_what_is_dropped():
  body = '{"a": [{"b": "my KEY", "big": "x"}], "big": 1}'
  assert wire.read_body(body, "KEY", ("big",)) == {"a": [{"b": "my [key]"}]}
  assert wire.read_body('{"a": "b"}', "") == {"a": "b"}


@pytest.mark.parametrize("body", ["", "<html>", '{"a": ', "[1]", "null", "[" * 100_000])
def test_a_body_that_is_no_object_is_lost(body):
  with pytest.raises(Lost, match="the body is"):
    wire.read_body(body, "KEY")
