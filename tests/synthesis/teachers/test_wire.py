"""Addresses, waiting times, bodies and statuses."""

import datetime

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.errors import BusyError, LostError, NotFoundError, RefusedError
from spatial_vlm.synthesis.teachers import wire

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
def test_localhost_addresses_are_recognised(url, local):
  assert wire.is_local(url) == local


@pytest.mark.parametrize(
  ("url", "says"),
  [
    ("http://10.0.0.1/v1", "https://"),
    ("ftp://127.0.0.1", "an address"),
    ("https://", "an address"),
    ("https://[::1", "no address"),
    ("https://example.org:99999", "no address"),
    ("https://me:secret@example.org", "environment"),
    ("https://example.org?key=secret", "environment"),
  ],
)
def test_addresses_that_a_key_may_not_go_to_are_refused(url, says):
  for good in ("https://example.org/v1", "http://127.0.0.1:8000/v1"):
    wire.check_url(good)
  with pytest.raises(UsageError, match=says) as error:
    wire.check_url(url)
  assert "secret" not in str(error.value)


@pytest.mark.parametrize("key", ["sk-abc…def", "sk-abc\ndef", "sk-abc def"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key, monkeypatch):
  """Libraries repeat the key in their errors, escaped, so that it could not be found and removed."""
  monkeypatch.setenv("SOME_KEY", key)
  with pytest.raises(UsageError, match="SOME_KEY contains") as error:
    wire.read_key(("OTHER_KEY", "SOME_KEY"))
  assert "abc" not in repr(error.value)


def test_the_first_key_that_is_set_counts(monkeypatch):
  monkeypatch.setenv("FIRST_KEY", "  ")
  monkeypatch.setenv("SECOND_KEY", " sk-2 ")
  monkeypatch.setenv("THIRD_KEY", "sk-3")
  assert wire.read_key(("FIRST_KEY", "SECOND_KEY", "THIRD_KEY")) == "sk-2"
  assert wire.read_key(("FIRST_KEY",)) == ""


def test_an_error_message_is_one_short_line_without_the_key():
  page = "wrong sk-secret-key\n" + "x" * 3000
  assert wire.redact_message(page, "sk-secret-key").startswith("wrong [key] xxx")
  assert len(wire.redact_message(page, "sk-secret-key")) == 500


@pytest.mark.parametrize(
  "spelled",
  [
    r"sk-a/b+c\u0064efgh",
    r"sk-a\/b+cdefgh",
    r"sk-a\\/b+cdefgh",
    r"\u0073\u006b\u002D\u0061\u002F\u0062\u002b\u0063\u0064\u0065\u0066\u0067\u0068",
    "sk-a%2fb%2Bcdefgh",
  ],
)
def test_a_key_is_found_in_every_spelling(spelled):
  key = "sk-a/b+cdefgh"
  assert wire.redact_key(f"wrong {spelled}!", key) == "wrong [key]!"
  assert wire.redact_key("sk-A/b+cdefgh", key) == "sk-A/b+cdefgh"
  assert wire.read_body(f'{{"{key}": "<{spelled}>"}}', key) == {"[key]": "<[key]>"}


def test_half_surrogate_pairs_become_replacement_characters():
  assert wire.read_body('{"text": "a\\ud83d \\ud83d\\ude00"}', "") == {"text": "a\ufffd \U0001f600"}


def test_words_that_are_not_a_key_stay_in_answers():
  assert wire.read_body('{"a": "none of them"}', "none") == {"a": "none of them"}


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
def test_retry_delays_are_parsed(header, seconds):
  assert wire.seconds_to_wait(header, NOON) == seconds


@pytest.mark.parametrize(
  ("status", "error"),
  [
    *((status, BusyError) for status in (408, 409, 429, 499, 500, 502, 503, 504, 529)),
    *((status, UsageError) for status in (301, 307, 401, 402, 403)),
    (404, NotFoundError),
    *((status, RefusedError) for status in (400, 413, 422)),
    (204, LostError),
  ],
)
def test_each_status_decides_the_next_attempt(status, error):
  failure = wire.status_error(status, "why", 3.0)
  assert type(failure) is error and "why" in str(failure) and str(status) in str(failure)


def test_a_body_is_read_without_secrets_and_dropped_fields():
  body = '{"a": [{"b": "my sk-secret-key", "big": "x"}], "big": 1}'
  assert wire.read_body(body, "sk-secret-key", ("big",)) == {"a": [{"b": "my [key]"}]}
  assert wire.read_body('{"a": "b"}', "") == {"a": "b"}


@pytest.mark.parametrize("body", ["", "<html>", '{"a": ', "[1]", "null", "[" * 100_000])
def test_a_body_that_is_not_an_object_is_lost(body):
  with pytest.raises(LostError, match="the body is"):
    wire.read_body(body, "KEY")
