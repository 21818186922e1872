"""`serve`: what is refused before anything loads, and the settings that are read."""

import importlib.util
import socket

import pytest

from spatial_vlm import config
from spatial_vlm.commands import serve as command
from spatial_vlm.serving import address, server, setup

TOKEN = "0123456789abcdef0123456789abcdef"
VARIABLE = command.TOKEN_VARIABLE


@pytest.mark.parametrize(
  ("others", "changes", "message"),
  [
    (("--host", "0.0.0.0"), {}, f"export {VARIABLE}=$(openssl rand -hex 32)"),
    (("--host", "box.example"), {}, "there is no token"),
    (("--port", "0"), {}, "give one from 1 to 65535"),
    (("--token-file", "absent"), {}, "--token-file absent cannot be read"),
    (("--behaviors", "no/such/index"), {}, "no/such/index"),
    ((), {"slots": 0}, "slots is 0; it must be at least 1"),
    ((), {"temperature": 3.0}, "temperature is 3.0; it must be from 0 to 2"),
    ((), {"limits.body_bytes": 0}, "body_bytes is 0"),
  ],
)
def test_settings_that_cannot_work_are_refused(
  refused, nano, monkeypatch, others, changes, message
):
  monkeypatch.delenv(VARIABLE, raising=False)
  assert message in refused("serve", changes, "--checkpoint", nano, *others)


@pytest.mark.parametrize(
  "token", ["", "short", "with spaces in the middle", "ä" * 40, TOKEN + "\x07"]
)
def test_weak_tokens_are_refused_without_showing_them(refused, nano, monkeypatch, tmp_path, token):
  file = tmp_path / "token"
  file.write_text(token)
  monkeypatch.setenv(VARIABLE, token)
  for others, where in (((), f"${VARIABLE}"), (("--token-file", file), str(file))):
    message = refused("serve", {}, "--checkpoint", nano, *others)
    assert f"the token in {where} has" in message and (not token or token not in message)


def test_tokens_are_read_from_the_file_first(monkeypatch, tmp_path):
  file = tmp_path / "token"
  file.write_text(f"{TOKEN}\n")
  monkeypatch.setenv(VARIABLE, TOKEN[::-1])
  assert command.read_token(str(file)) == TOKEN
  assert command.read_token(None) == TOKEN[::-1]
  monkeypatch.delenv(VARIABLE)
  assert command.read_token(None) is None


def test_a_missing_library_is_named_with_its_remedy(refused, nano, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
  )
  message = refused("serve", {}, "--checkpoint", nano)
  assert "serving needs uvicorn" in message and "pip install 'spatial-vlm[serve]'" in message


@pytest.mark.parametrize(
  ("host", "expected"),
  [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_addresses_are_known(host, expected):
  assert address.is_loopback(host) == expected


def test_every_leaf_of_every_preset_is_read(run, nano, tmp_path, monkeypatch, capsys):
  served = []
  monkeypatch.setattr(
    server, "serve", lambda app, bound, drain_s: served.append((bound.getsockname(), drain_s))
  )
  monkeypatch.setattr(setup.EngineFactory, "compile", lambda self: None)
  monkeypatch.setenv(VARIABLE, TOKEN)
  with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
  where = ("--host", "0.0.0.0", "--port", port)
  done = run("serve", tmp_path, {}, "--checkpoint", nano, *where)
  assert done.code == 0 and served == [(("0.0.0.0", port), 60.0)]
  assert not config.unread(done.configs[0])
  assert TOKEN not in "".join(capsys.readouterr())
  for preset in ("tiny", "8b"):
    leaves = config.leaves(config.read_preset(f"configs/serve.py:{preset}"))
    assert leaves.keys() == config.leaves(done.configs[0]).keys()
