"""Connections over a socket: their number is bounded, and so is the time in which a head arrives."""

import contextlib
import json
import socket
import time
from urllib.parse import urlsplit

import pytest
from scripted_engine import running

from spatial_vlm.serving import bounded_connection
from spatial_vlm.serving.bounded_connection import BoundedConnection

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def app(scope, receive, send):
  await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
  await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def connect():
  """() -> a connection to a server that allows two."""
  settings = {"http": BoundedConnection, "limit_concurrency": 2, "lifespan": "off"}
  with running(app, **settings) as address, contextlib.ExitStack() as opened:
    url = urlsplit(address)
    yield lambda: opened.enter_context(socket.create_connection((url.hostname, url.port), 5))


def answer(client):
  """Sends a request and returns what comes back until the body's end, or the end of the connection."""
  client.sendall(GET)
  received = b""
  while not received.endswith((b"ok", b"}")) and (part := client.recv(4096)):
    received += part
  return received


def test_one_connection_too_many_gets_an_error_object(connect, monkeypatch):
  monkeypatch.setattr(bounded_connection, "REFUSED_S", 0.05)
  first, _idle = connect(), connect()
  assert answer(first).startswith(b"HTTP/1.1 200")
  third = connect()
  head, _, body = answer(third).partition(b"\r\n\r\n")
  assert head.startswith(b"HTTP/1.1 503") and b"Retry-After: 1" in head
  error = json.loads(body)["error"]
  assert error["code"] == "too_many_connections" and "2 connections" in error["message"]
  assert third.recv(9) == b""
  assert answer(first).endswith(b"ok")  # the others are served
  first.close()
  time.sleep(0.1)
  assert answer(connect()).endswith(b"ok")


@pytest.mark.parametrize("sent", [b"", GET[:-2]])
def test_a_head_that_does_not_arrive_ends_the_connection(connect, monkeypatch, sent):
  monkeypatch.setattr(bounded_connection, "HEAD_TIMEOUT_S", 0.2)
  client = connect()
  client.sendall(sent)
  received = b""
  while part := client.recv(4096):
    received += part
  assert received.count(b"200 OK") == sent.count(GET)
