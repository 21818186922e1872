"""Who may ask: hosts and bearer tokens."""

import logging

import pytest

from spatial_vlm.serving.api_error import ApiError
from spatial_vlm.serving.http_guard import HttpGuard

TOKEN = "0123456789abcdef-secret"


def status(guard, path="/v1/models", **headers):
  try:
    guard.check(path, headers)
  except ApiError as error:
    assert TOKEN not in error.message
    return error.status
  return 200


@pytest.mark.parametrize(
  ("host", "expected"),
  [
    *((name, 200) for name in ("127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]:80", "[::1]")),
    *((name, 200) for name in ("192.168.1.5:8000", "box.local:80")),
    *((name, 403) for name in ("evil.example", "evil.example:8000", "localhost.evil.example", "")),
    *((name, 403) for name in ("127.0.0.1.evil.example", "127.0.0.1:80:x", "[::1", "a b")),
  ],
)
def test_without_a_token_only_known_hosts_are_answered(host, expected):
  assert status(HttpGuard(host="box.local"), host=host) == expected


@pytest.mark.parametrize(
  ("header", "expected"),
  [
    (f"Bearer {TOKEN}", 200),
    (f"bearer {TOKEN}", 200),
    ("", 401),
    ("Bearer", 401),
    ("Bearer ", 401),
    (TOKEN, 401),
    (f"Basic {TOKEN}", 401),
    (f"Bearer {TOKEN}x", 401),
    (f"Bearer {TOKEN[:-1]}", 401),
    ("Bearer ü", 401),
  ],
)
def test_with_a_token_the_api_needs_it(header, expected):
  guard = HttpGuard(TOKEN)
  assert status(guard, host="any.example", authorization=header) == expected
  assert status(guard, "/health", host="any.example") == 200
  assert status(guard, "/metrics", host="any.example") == 200


def test_the_token_guards_the_routes_and_is_never_logged(scripted, client_of, body, caplog):
  caplog.set_level(logging.DEBUG)
  service, engine = scripted()
  client = client_of(service, HttpGuard(TOKEN))
  for path in ("/v1/models", "/v1/chat/completions", "/v1//chat/completions", "/v1/absent"):
    refused = client.post(path, json=body("Is it?"), headers={"Authorization": "Bearer wrong"})
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key" and "wrong" not in refused.json()
  assert not engine.requests
  right = {"Authorization": f"Bearer {TOKEN}"}
  assert client.post("/v1/chat/completions", json=body("Is it?"), headers=right).status_code == 200
  assert TOKEN not in caplog.text and "Bearer wrong" not in caplog.text
