"""`serve`: refusals at the door, and a real process that drains at SIGTERM."""

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spatial_vlm import cli, config
from spatial_vlm.commands import serve as command
from spatial_vlm.serving import address, server, setup

TOKEN = "0123456789abcdef0123456789abcdef"
VARIABLE = command.TOKEN_VARIABLE


@pytest.mark.parametrize(
  ("others", "changes", "message"),
  [
    (("--host", "0.0.0.0"), {}, f"export {VARIABLE}=$(openssl rand -hex 32)"),
    (("--host", "box.example"), {}, "there is no token"),
    (("--port", "0"), {}, "it must be from 1 to 65535"),
    (("--token-file", "absent"), {}, "--token-file absent cannot be read"),
    (("--behaviors", "no/such/index"), {}, "no/such/index"),
    ((), {"slots": 0}, "slots is 0; it must be at least 1"),
    ((), {"temperature": 3.0}, "temperature is 3.0; it must be from 0 to 2"),
    ((), {"limits.body_bytes": 0}, "body_bytes is 0"),
    ((), {"limits.timeout_s": 0.0}, "limits.timeout_s is 0.0; it must be above 0"),
    ((), {"limits.image_timeout_s": -1.0}, "limits.image_timeout_s is -1.0"),
    ((), {"limits.drain_s": -1.0}, "limits.drain_s is -1.0"),
    ((), {"limits.queued_answers": -1}, "limits.queued_answers is -1"),
    ((), {"limits.samples": 145}, "more than the 16 slots and 128 queued_answers"),
    ((), {"limits.image_hosts": ("https://a.example",)}, "names of hosts without https://"),
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
  assert "`serve` needs uvicorn" in message and "[serve]' -c " in message


@pytest.mark.parametrize(
  ("host", "expected"),
  [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_addresses_are_known(host, expected):
  assert address.is_loopback(host) == expected


def test_a_second_server_on_an_address_is_refused_at_once():
  with address.bind("127.0.0.1", 0) as first:
    port = first.getsockname()[1]
    with pytest.raises(config.UsageError, match=f"127.0.0.1:{port} cannot be bound"):
      address.bind("127.0.0.1", port)


@pytest.mark.parametrize(
  ("checkpoint", "name"), [("runs/export", "export"), ("runs/export/", "export"), (".", "here")]
)
def test_the_served_name_is_that_of_the_folder(checkpoint, name, tmp_path, monkeypatch):
  folder = tmp_path / "here"
  folder.mkdir()
  monkeypatch.chdir(folder)
  settings = config.load("configs/serve.py:tiny", [])
  assert command.served_name(settings, checkpoint) == name
  with pytest.raises(config.UsageError, match="has no name"):
    command.served_name(settings, "/")


def test_every_leaf_of_every_preset_is_read(run, nano, tmp_path, monkeypatch, capsys):
  served = []
  monkeypatch.setattr(
    server,
    "serve",
    lambda app, bound, service, drain_s: served.append((bound.getsockname(), drain_s)),
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


class Server:
  """A server in a process of its own."""

  def __init__(self, checkpoint, folder, *settings):
    with socket.create_server(("127.0.0.1", 0)) as probe:
      self.port = probe.getsockname()[1]
    self.log = folder / "log"
    changes = ("prompt_shapes=((64, 64),)", "slots=4", "max_new_tokens=144", *settings)
    argv = ["serve", "--checkpoint", str(checkpoint), "--port", str(self.port)]
    argv += ["--workdir", str(folder / "run"), *(f"--config.{change}" for change in changes)]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"
    with self.log.open("wb") as log:
      self.process = subprocess.Popen(
        [sys.executable, "-m", "spatial_vlm.cli", *argv], env=environment, stdout=log, stderr=log
      )

  def __enter__(self):
    for _ in range(600):
      assert self.process.poll() is None, self.log.read_text()
      try:
        with self.connection() as connection:
          connection.request("GET", "/health")
          if connection.getresponse().status == 200:
            return self
      except OSError:
        time.sleep(0.2)
    raise AssertionError(f"the server did not start:\n{self.log.read_text()}")

  def __exit__(self, *error):
    self.process.kill()
    self.process.wait()

  def connection(self):
    class Closing(http.client.HTTPConnection):
      def __enter__(self):
        return self

      def __exit__(self, *error):
        self.close()

    return Closing("127.0.0.1", self.port, timeout=60)


def post(connection, **fields):
  messages = [{"role": "user", "content": "Say it."}]
  # A temperature at which the model writes its end too rarely to stop early.
  data = {"model": "nano0", "messages": messages, "temperature": 1.0, "seed": 0, **fields}
  content = {"Content-Type": "application/json"}
  connection.request("POST", "/v1/chat/completions", json.dumps(data), content)
  return connection.getresponse()


def test_at_sigterm_the_running_answers_end_before_the_server(nano, tmp_path):
  with Server(nano, tmp_path, "model_name=nano0", "decode_tokens=1") as running:
    with running.connection() as whole, running.connection() as stream:
      expected = json.loads(post(whole, n=4).read())
      answer = post(stream, n=4, stream=True)
      first = answer.readline()
      running.process.send_signal(signal.SIGTERM)
      events = (first + answer.read()).decode().split("\n\n")
    status = running.process.wait(60)
    with pytest.raises(OSError), running.connection() as late:
      late.request("GET", "/health")
      late.getresponse()
  assert events[-2] == "data: [DONE]"
  chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
  texts = ["".join(
    c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"][0]["index"] == n
  ) for n in range(4)]  # fmt: skip
  assert texts == [choice["message"]["content"] for choice in expected["choices"]]
  assert status == -signal.SIGTERM
  assert "Traceback" not in running.log.read_text()
