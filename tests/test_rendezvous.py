"""Processes that wait for each other before JAX starts: threads in their place, on ports of this machine."""

import concurrent.futures
import socket
import time
from typing import Any
from unittest import mock

import jax
import pytest

from spatial_vlm import rendezvous
from spatial_vlm.config import UsageError


@pytest.fixture(autouse=True)
def soon(monkeypatch):
  monkeypatch.setattr(rendezvous, "_RETRY_S", 0.02)
  monkeypatch.setattr(rendezvous, "_OUTCOME_GRACE_S", 0.1)


@pytest.fixture
def coordinator():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return f"localhost:{probe.getsockname()[1]}"


def start(coordinator, *processes, timeout_s=0.6) -> list[Any]:
  """Returns what each of the (number, count) is told; None is a start."""

  def outcome(given):
    number, count = given
    try:
      rendezvous.wait_for_all(coordinator, count, number, timeout_s)
    except UsageError as error:
      return str(error)

  with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
    return list(pool.map(outcome, processes))


def test_all_processes_start(coordinator):
  assert start(coordinator, (2, 3), (0, 3), (1, 3)) == [None] * 3
  assert start(coordinator, (0, 2), (1, 2)) == [None] * 2  # at once on the same port


def test_every_process_is_told_who_is_missing(coordinator):
  found = start(coordinator, (0, 4), (2, 4))
  assert found[0] == found[1]
  assert found[0].startswith("processes 1 and 3 of 4 did not start within 0.6 s of process 0; ")
  assert coordinator in found[0]


def test_many_missing_processes_are_counted(coordinator):
  (found,) = start(coordinator, (0, 64), timeout_s=0.05)
  assert found.startswith("processes 1, 2, 3, 4, 5, 6, 7, 8 and 55 more of 64 did not start")


def test_process_0_is_missing(coordinator):
  (found,) = start(coordinator, (1, 2), timeout_s=0.05)
  assert f"process 0 of 2 did not answer at --coordinator {coordinator}" in found
  assert "refused" in found


def test_contradicting_numbers_are_refused(coordinator):
  found = start(coordinator, (0, 2), (1, 3))
  assert (
    found
    == [
      "process 1 was started with --processes 3 and process 0 with --processes 2; give all the same"
    ]
    * 2
  )
  found = start(coordinator, (0, 3), (1, 3), (1, 3))
  assert found == ["two processes were started with --process 1; number them from 0"] * 3


def test_a_process_that_has_ended_is_missing(coordinator):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(start, coordinator, (0, 3))
    _connect(coordinator, b'{"process": 1, "processes": 3}\n').close()
    assert "processes 1 and 2 of 3 did not start" in waiting.result()[0]


@pytest.mark.parametrize(
  "text", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": "1"}\n', b"\xff\n"]
)
def test_other_programs_that_connect_are_ignored(coordinator, text):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(start, coordinator, (0, 2))
    with _connect(coordinator, text):
      assert [*start(coordinator, (1, 2)), *waiting.result()] == [None, None]


def test_another_program_in_place_of_process_0(coordinator):
  host, port = coordinator.split(":")
  with (
    socket.create_server((host, int(port))) as server,
    concurrent.futures.ThreadPoolExecutor() as pool,
  ):
    waiting = pool.submit(start, coordinator, (1, 2), timeout_s=0.05)
    with server.accept()[0] as connection:
      connection.sendall(b"\x00\x00\x12\x04\x00\n")
    assert "another program answers there" in waiting.result()[0]


def test_a_taken_port_is_refused_before_jax_crashes():
  with socket.create_server(("", 0)) as other:
    port = other.getsockname()[1]
    with pytest.raises(UsageError, match=f"port {port} of this machine cannot be used .*in use"):
      rendezvous.wait_for_all(f"localhost:{port}", 2, 0, 1)


def test_jax_is_left_before_it_aborts(monkeypatch, capsys):
  """With a launcher's numbers, JAX alone knows where process 0 is."""
  ended = mock.Mock()
  monkeypatch.setattr(rendezvous, "TIMEOUT_S", 0.05)
  monkeypatch.setattr(rendezvous.os, "_exit", ended)
  monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: time.sleep(0.3))
  rendezvous.initialize_jax()
  ended.assert_called_once_with(2)
  assert "not all processes of this command were there after 0.05 s" in capsys.readouterr().err


def _connect(coordinator, text):
  host, port = coordinator.split(":")
  for _ in range(200):
    try:
      connection = socket.create_connection((host, int(port)))
    except ConnectionRefusedError:
      time.sleep(0.01)
    else:
      connection.sendall(text)
      return connection
  raise AssertionError("process 0 does not listen")
