"""Measures continuous batching: tokens/s with and without refill of slots, for answers of different lengths.

Lengths are drawn log-uniformly from LONGEST / spread to LONGEST; no answer ends earlier. Three ways take turns on the
same requests: slots that are refilled, slots that are filled when all are free, and the program in which as many
answers start together (`sampler.generate`), which ends with the longest. Times are CPU times, which other work on the
machine changes least. It prints a table and draws a figure.

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
from spatial_vlm.inference.policy import Policy, encode_question
from spatial_vlm.processor.chat import Encoded, Size
from spatial_vlm.rollout.sampler import SamplingSettings, generate
from spatial_vlm.rollout.slot_engine import SlotEngine, padded_prompts
from spatial_vlm.rollout.slot_requests import SlotRequest, SlotSettings
from spatial_vlm.text import markdown_table

REFILL, WAITING, TOGETHER = "with refill", "when all slots are free", "together, without slots"
LENGTHS = 8
"""The program without slots is compiled for multiples of so many tokens."""


class Row(NamedTuple):
  """Measurements of one spread of lengths."""

  spread: float
  tokens: int
  seconds: dict[str, list[float]]
  """Of each round, by the way of answering."""

  def ratios(self, way: str) -> list[float]:
    """Returns the seconds of another way over those with refill, of each round."""
    return [w / r for w, r in zip(self.seconds[way], self.seconds[REFILL], strict=True)]


class Measured(NamedTuple):
  """What answers the requests."""

  engine: SlotEngine
  policy: Policy


def requests_of(
  prompts: Sequence[Encoded], spread: float, args: argparse.Namespace
) -> list[SlotRequest]:
  """Returns one request a prompt; all samples of a prompt have one length."""
  rng = np.random.default_rng(0)
  lengths = args.longest * spread ** -rng.uniform(0, 1, len(prompts))
  return [
    SlotRequest(
      id=i, prompt=p, max_new_tokens=max(1, round(n)), temperature=1.0, samples=args.samples
    )
    for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
  ]


def refilled(measured: Measured, requests: Sequence[SlotRequest]) -> int:
  """Answers all requests from one queue; returns the number of tokens."""
  engine = measured.engine
  for request in requests:
    engine.submit(request)
  tokens = 0
  while engine.busy:
    tokens += sum(len(progress.tokens) for progress in engine.step())
  return tokens


def in_batches(measured: Measured, requests: Sequence[SlotRequest]) -> list[Sequence[SlotRequest]]:
  """Returns the requests in groups that fill all slots."""
  settings = measured.engine.settings
  size = settings.prompt_slots * settings.samples_per_slot // requests[0].samples
  return [requests[start : start + size] for start in range(0, len(requests), size)]


def waited(measured: Measured, requests: Sequence[SlotRequest]) -> int:
  """Answers as many requests as fill the slots at a time; returns the number of tokens."""
  return sum(refilled(measured, batch) for batch in in_batches(measured, requests))


def together(measured: Measured, requests: Sequence[SlotRequest]) -> int:
  """Answers as many at a time in one program up to the longest one's end; returns the tokens that were asked for."""
  policy, size = measured.policy, measured.engine.settings.sizes[-1]
  for batch in in_batches(measured, requests):
    ids = np.array([r.id for r in batch], np.int32)
    prompts = padded_prompts(policy.processor, [r.prompt for r in batch], ids, size)
    longest = -(-max(r.max_new_tokens for r in batch) // LENGTHS) * LENGTHS
    sampling = SamplingSettings(batch[0].samples, longest, temperature=1.0, eos=-1, pad=0)
    forbidden, key = policy.forbidden_tokens, jax.random.key(0)
    completions = generate(
      policy.params, prompts, key, forbidden, model=policy.model, sampling=sampling
    )
    np.asarray(completions.tokens)
  return sum(r.max_new_tokens * r.samples for r in requests)


WAYS: dict[str, Callable[[Measured, Sequence[SlotRequest]], int]] = {
  REFILL: refilled,
  WAITING: waited,
  TOGETHER: together,
}


def measure(measured: Measured, prompts: Sequence[Encoded], args: argparse.Namespace) -> list[Row]:
  rows = []
  for spread in args.spreads:
    tokens = sum(r.max_new_tokens * r.samples for r in requests_of(prompts, spread, args))
    rows.append(Row(spread, tokens, {way: [] for way in WAYS}))
  for turn in range(args.rounds + 1):  # the first compiles
    for row in rows:
      requests = requests_of(prompts, row.spread, args)
      for way, ask in WAYS.items():
        began = time.process_time()
        tokens = ask(measured, requests)
        assert tokens == row.tokens, (tokens, row.tokens)
        row.seconds[way] += [time.process_time() - began] if turn else []
    print(f"round {turn} of {args.rounds}", flush=True)
  return rows


def table(rows: Sequence[Row]) -> str:
  header = ["spread of lengths", "tokens", *(f"tokens/s {way}" for way in WAYS)]
  header += ["refill / all free", "refill / together (min … max)"]
  cells = [
    [
      *(f"{r.spread:g}", f"{r.tokens:,}"),
      *(f"{r.tokens / np.median(r.seconds[way]):,.0f}" for way in WAYS),
      f"{np.median(r.ratios(WAITING)):.2f}",
      f"{np.median(r.ratios(TOGETHER)):.2f} ({min(r.ratios(TOGETHER)):.2f} … {max(r.ratios(TOGETHER)):.2f})",
    ]
    for r in rows
  ]
  return markdown_table(header, cells)


def figure(rows: Sequence[Row], path: str) -> None:
  lines = {
    way: [(r.spread, r.tokens / float(np.median(r.seconds[way]))) for r in rows] for way in WAYS
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
  parser.add_argument("--samples", type=int, default=1, help="answers to each prompt")
  parser.add_argument("--samples-per-slot", type=int, default=1, help="answers that share a slot")
  parser.add_argument("--read", type=int, default=4, help="prompts read at a time")
  parser.add_argument(
    "--no-images", dest="images", action="store_false", help="prompts of text alone"
  )
  parser.add_argument("--spreads", type=float, nargs="+", default=[1, 2, 4, 8])
  parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default 3)")
  parser.add_argument("--figure", help="path of the figure, a PNG; by default none is drawn")
  args = parser.parse_args()
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  policy = load_policy(args.checkpoint, mesh)
  source = SceneSource("train", 0, args.requests)
  prompts = [
    encode_question(
      policy.processor, example.image if args.images else None, example.record.caption
    )
    for example in source
  ]
  sizes = (Size(64, 64) if args.images else Size(24, 0),)
  settings = SlotSettings(
    args.slots,
    args.longest,
    sizes,
    (),
    samples_per_slot=args.samples_per_slot,
    prefill_prompts=(args.read,),
    decode_tokens=args.decode_tokens,
  )
  engine = SlotEngine(policy.processor, policy.forbidden_tokens, mesh, settings)
  engine.publish(policy.params)
  rows = measure(Measured(engine, policy), prompts, args)
  if args.figure:
    figure(rows, args.figure)
  print(table(rows))


if __name__ == "__main__":
  main()
