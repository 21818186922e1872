"""Measures continuous batching: tokens/s of a slot engine with and without refill, for answers of different lengths.

Lengths are drawn log-uniformly from LONGEST / spread to LONGEST; no answer ends earlier. Without refill, the next
requests come when all slots are free. Both ways are the same programs on the same requests, and take turns. Times are
CPU times, which other work on the machine changes least. It prints a table and draws a figure.

python launch/bench_engine.py --figure docs/images/engine_refill.png
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from spatial_vlm import sharding
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.evaluation.figures import LinePanel, line_panels
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import encode_question
from spatial_vlm.processor.chat import Encoded, Size
from spatial_vlm.rollout.slot_engine import SlotEngine
from spatial_vlm.rollout.slot_requests import SlotRequest, SlotSettings
from spatial_vlm.text import markdown_table


class Row(NamedTuple):
  """Measurements of one spread of lengths."""

  spread: float
  tokens: int
  refilled_s: list[float]
  waited_s: list[float]

  @property
  def ratios(self) -> list[float]:
    """Seconds without refill over seconds with it, of each round."""
    return [w / r for w, r in zip(self.waited_s, self.refilled_s, strict=True)]


def requests_of(prompts: Sequence[Encoded], spread: float, longest: int) -> list[SlotRequest]:
  """Returns one request a prompt."""
  rng = np.random.default_rng(0)
  lengths = longest * spread ** -rng.uniform(0, 1, len(prompts))
  return [
    SlotRequest(id=i, prompt=p, max_new_tokens=max(1, round(n)), temperature=1.0)
    for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
  ]


def refilled(engine: SlotEngine, requests: Sequence[SlotRequest]) -> int:
  """Answers all requests from one queue; returns the number of tokens."""
  for request in requests:
    engine.submit(request)
  tokens = 0
  while engine.busy:
    tokens += sum(len(progress.tokens) for progress in engine.step())
  return tokens


def waited(engine: SlotEngine, requests: Sequence[SlotRequest]) -> int:
  """Answers as many requests as there are slots at a time; returns the number of tokens."""
  slots = engine.settings.prompt_slots
  return sum(
    refilled(engine, requests[start : start + slots]) for start in range(0, len(requests), slots)
  )


def seconds(
  ask: Callable[[SlotEngine, Sequence[SlotRequest]], int],
  engine: SlotEngine,
  requests: Sequence[SlotRequest],
  expected: int,
) -> float:
  began = time.process_time()
  tokens = ask(engine, requests)
  assert tokens == expected, (tokens, expected)
  return time.process_time() - began


def measure(engine: SlotEngine, prompts: Sequence[Encoded], args: argparse.Namespace) -> list[Row]:
  rows = []
  for spread in args.spreads:
    requests = requests_of(prompts, spread, args.longest)
    rows.append(Row(spread, sum(r.max_new_tokens for r in requests), [], []))
  for turn in range(args.rounds + 1):  # the first compiles
    for row in rows:
      requests = requests_of(prompts, row.spread, args.longest)
      if not turn:
        requests = requests[: 2 * engine.settings.prompt_slots]
      tokens = sum(r.max_new_tokens for r in requests)
      for ask, kept in ((refilled, row.refilled_s), (waited, row.waited_s)):
        measured = seconds(ask, engine, requests, tokens)
        kept += [measured] if turn else []
    print(f"round {turn} of {args.rounds}", flush=True)
  return rows


def table(rows: Sequence[Row]) -> str:
  header = ["spread of lengths", "tokens", "tokens/s with refill", "without", "ratio", "min … max"]
  cells = [
    [
      *(f"{r.spread:g}", f"{r.tokens:,}"),
      *(f"{r.tokens / np.median(s):,.0f}" for s in (r.refilled_s, r.waited_s)),
      *(f"{np.median(r.ratios):.2f}", f"{min(r.ratios):.2f} … {max(r.ratios):.2f}"),
    ]
    for r in rows
  ]
  return markdown_table(header, cells)


def figure(rows: Sequence[Row], path: str) -> None:
  lines = {
    name: [(r.spread, r.tokens / float(np.median(kept(r)))) for r in rows]
    for name, kept in (
      ("with refill", lambda r: r.refilled_s),
      ("without", lambda r: r.waited_s),
    )
  }
  title, xlabel = "tokens per CPU second", "longest answer / shortest answer"
  line_panels([LinePanel(title, xlabel, lines, "log", "linear")], path, columns=1)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", default="spatial_vlm/assets/tiny_base")
  parser.add_argument("--slots", type=int, default=16)
  parser.add_argument("--requests", type=int, default=256)
  parser.add_argument("--longest", type=int, default=96, help="most tokens of an answer")
  parser.add_argument("--decode-tokens", type=int, default=8, help="tokens between two refills")
  parser.add_argument("--spreads", type=float, nargs="+", default=[1, 2, 4, 8])
  parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default 3)")
  parser.add_argument("--figure", help="path of the figure, a PNG; by default none is drawn")
  args = parser.parse_args()
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  policy = load_policy(args.checkpoint, mesh)
  source = SceneSource("train", 0, args.requests)
  prompts = [
    encode_question(policy.processor, example.image, example.record.caption) for example in source
  ]
  sizes = (Size(64, 64),)
  settings = SlotSettings(args.slots, args.longest, sizes, (), decode_tokens=args.decode_tokens)
  engine = SlotEngine(policy.processor, policy.forbidden_tokens, mesh, settings)
  engine.publish(policy.params)
  rows = measure(engine, prompts, args)
  if args.figure:
    figure(rows, args.figure)
  print(table(rows))


if __name__ == "__main__":
  main()
