"""Loads a server on this machine: many clients at a time, next to one request at a time.

Starts `spatial-vlm serve`, asks statements about rendered scenes one by one, then the same ones by many clients at a
time. It fails if an answer differs or is lost, and prints a table in Markdown, which docs/serving.md shows.

  python launch/bench_serve.py                                  64 clients, 500 requests to the tiny base
  python launch/bench_serve.py --checkpoint runs/demo/dapo/export --form chain
"""

import argparse
import asyncio
import collections
import contextlib
import datetime
import importlib.metadata
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
import PIL.Image

from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.processor.image import data_url, png
from spatial_vlm.text import markdown_table

MODEL = "bench"
CHECKPOINT = Path(__file__).parents[1] / "spatial_vlm" / "assets" / "tiny_base"
START_TIMEOUT_S, ANSWER_TIMEOUT_S = 900.0, 600.0


class Reply(NamedTuple):
  """The answer of one request."""

  text: str
  tokens: int
  seconds: float
  """From the first try to the whole answer."""
  refusals: int
  """Tries that got status 429."""


class Measured(NamedTuple):
  """The answers of one way to ask."""

  replies: list[Reply]
  seconds: float


def bodies(count: int, form: str, max_tokens: int) -> list[dict[str, Any]]:
  """Returns the requests: statements about scenes, at different temperatures so that lengths vary."""
  source = SceneSource("test", 0, count + count % 2)
  requests = []
  for number in range(count):
    example = source[number]
    url = data_url(png(PIL.Image.fromarray(example.image)))
    parts = [
      {"type": "image_url", "image_url": {"url": url}},
      {"type": "text", "text": example.record.caption},
    ]
    requests.append(
      {
        "model": MODEL,
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": max_tokens,
        "temperature": (0.0, 0.7, 1.0)[number % 3],
        "seed": number,
        "spatial_vlm": {"form": form},
      }
    )
  return requests


async def ask(client: httpx2.AsyncClient, body: dict[str, Any]) -> Reply:
  """Asks until the server takes the request; raises for any other error."""
  begun, refusals = time.perf_counter(), 0
  while (response := await client.post("/v1/chat/completions", json=body)).status_code == 429:
    refusals += 1
    await asyncio.sleep(float(response.headers["Retry-After"]))
  response.raise_for_status()
  answer = response.json()
  text = answer["choices"][0]["message"]["content"]
  seconds = time.perf_counter() - begun
  return Reply(text, answer["usage"]["completion_tokens"], seconds, refusals)


async def measure(url: str, requests: Sequence[dict[str, Any]], clients: int) -> Measured:
  """Asks all requests; each client has one request at a time."""
  left = collections.deque(enumerate(requests))
  replies: dict[int, Reply] = {}
  limits = httpx2.Limits(max_connections=clients)

  async def work(client: httpx2.AsyncClient) -> None:
    while left:
      number, body = left.popleft()
      replies[number] = await ask(client, body)

  async with httpx2.AsyncClient(base_url=url, timeout=ANSWER_TIMEOUT_S, limits=limits) as client:
    begun = time.perf_counter()
    await asyncio.gather(*(work(client) for _ in range(clients)))
    seconds = time.perf_counter() - begun
  return Measured([replies[number] for number in range(len(requests))], seconds)


@contextlib.contextmanager
def served(checkpoint: str, settings: Sequence[str]) -> Iterator[str]:
  """Starts a server and yields its address; ends it by SIGTERM."""
  with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
  with tempfile.TemporaryDirectory() as workdir:
    argv = ["serve", "--checkpoint", checkpoint, "--port", str(port), "--workdir", workdir]
    argv += [f"--config.{setting}" for setting in (f"model_name={MODEL}", *settings)]
    process = subprocess.Popen([sys.executable, "-m", "spatial_vlm.cli", *argv])
    try:
      url = f"http://127.0.0.1:{port}"
      _await_start(process, url)
      yield url
    finally:
      process.send_signal(signal.SIGTERM)
      process.wait()


def _await_start(process: subprocess.Popen, url: str) -> None:
  for _ in range(int(START_TIMEOUT_S)):
    if process.poll() is not None:
      raise SystemExit("the server did not start")
    with contextlib.suppress(httpx2.TransportError):
      httpx2.get(f"{url}/health")
      return
    time.sleep(1)
  raise SystemExit(f"the server did not start within {START_TIMEOUT_S:g} s")


def row(name: str, measured: Measured) -> list[str]:
  """Returns the row of the table."""
  seconds = [reply.seconds for reply in measured.replies]
  p50, p95 = np.percentile(seconds, (50, 95))
  tokens = sum(reply.tokens for reply in measured.replies)
  return [
    name,
    f"{len(measured.replies)}",
    f"{measured.seconds:.1f}",
    f"{len(measured.replies) / measured.seconds:.1f}",
    f"{tokens / measured.seconds:.0f}",
    f"{p50:.2f}",
    f"{p95:.2f}",
    f"{sum(reply.refusals for reply in measured.replies)}",
  ]


HEADER = ("asked", "answers", "s", "answers/s", "tokens/s", "p50 s", "p95 s", "refused (429)")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--checkpoint", default=str(CHECKPOINT))
  parser.add_argument("--requests", type=int, default=500)
  parser.add_argument("--clients", type=int, default=64)
  parser.add_argument("--form", default="chain", choices=("chain", "short", "direct"))
  parser.add_argument("--max-tokens", type=int, default=96)
  parser.add_argument(
    "--set", nargs="*", default=[], metavar="LEAF=VALUE", help="of configs/serve.py"
  )
  args = parser.parse_args()
  requests = bodies(args.requests, args.form, args.max_tokens)
  with served(args.checkpoint, args.set) as url:
    asyncio.run(measure(url, requests[:2], 1))
    alone = asyncio.run(measure(url, requests, 1))
    together = asyncio.run(measure(url, requests, args.clients))
  different = [
    number
    for number, (a, b) in enumerate(zip(alone.replies, together.replies, strict=True))
    if (a.text, a.tokens) != (b.text, b.tokens)
  ]
  print(
    markdown_table(HEADER, [row("one at a time", alone), row(f"{args.clients} clients", together)])
  )
  lengths = [reply.tokens for reply in alone.replies]
  names = ("jax", "starlette", "uvicorn")
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
  print(
    f"\n{datetime.date.today()}, {os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}, "
    f"{versions}; answers of {min(lengths)} to {max(lengths)} tokens; {len(different)} of {len(requests)} differ"
  )
  if different:
    raise SystemExit(f"answers differ, e.g. of request {different[0]}")


if __name__ == "__main__":
  main()
