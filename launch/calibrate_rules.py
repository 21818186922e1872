"""Measure which further procedures should join a behavior's first one, on validation scenes.

Extracts behaviors from the chains of a finished demo for several shares (see `AlternativeShares`), and applies every
rule to the true boxes of the validation scenes. Prints, for each pair of shares, how many scenes the rules judge
rightly, how many they leave open (a distance that could be measured in several ways), and the rules themselves.

  python launch/calibrate_rules.py --demo runs/demo
"""

import argparse
import collections
import json
from collections.abc import Mapping, Sequence

from etils import epath

from spatial_vlm.data.records import Example, JsonlSource
from spatial_vlm.inference.stored_answers import read_part
from spatial_vlm.reuse.chains.rule import rule_holds
from spatial_vlm.reuse.chains.solutions import Solution, source_record
from spatial_vlm.reuse.extraction.patterns import AlternativeShares, extract_behaviors
from spatial_vlm.reuse.statements.masking import object_names

FREQUENCIES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
RIGHT = (0.0, 0.75, 0.9, 0.95, 1.0)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--demo", type=epath.Path, required=True, help="workdir of a finished demo")
  parser.add_argument("--min-support", type=int, default=5, help="leaf min_support of the demo")
  args = parser.parse_args()
  chains, scenes = read_chains(args.demo), args.demo / "scenes"
  examples = [
    *JsonlSource(
      scenes / "validation.jsonl", scenes / "images", scenes / "validation.boxes.jsonl", 0.01
    )
  ]
  seen: dict[str, None] = {}
  print(f"{len(examples):,} validation scenes; chains about {len(chains):,} training scenes\n")
  print(
    "| frequency | right | scenes judged rightly | left open | rules |\n|---:|---:|---:|---:|---|"
  )
  for frequency in FREQUENCIES:
    for right in RIGHT:
      shares = AlternativeShares(frequency, right)
      behaviors = extract_behaviors(
        chains, lambda text: len(text.split()), args.min_support, shares
      )
      rules = {b.relation: b.instruction for b in behaviors}
      found = judge(rules, examples)
      text = "; ".join(f"{relation}: {rule}" for relation, rule in rules.items())
      number = [*seen, text].index(text) + 1
      seen[text] = None
      print(f"| {frequency:g} | {right:g} | {found['right']:,} | {found['open']:,} | {number} |")
  for number, text in enumerate(seen, 1):
    print(f"\n{number}. {text}")


def read_chains(demo: epath.Path) -> list[Solution]:
  """Returns the answers of the demo's aligned policy to the training scenes."""
  lines = (demo / "scenes" / "train.jsonl").read_text().splitlines()
  images = [json.loads(line)["image"] for line in lines]
  parts = sorted((demo / "behaviors" / "predictions").glob("part-*.jsonl"))
  answered = [p for part in parts for p in read_part(part) or ()]
  answered = [p for part in parts for p in read_part(part) or ()]
  return [
    Solution(record, p.caption, p.relation, None, None, p.text, p.label)
    for p in answered
    for record in [source_record("train", p.id, (images[p.id], p.caption))]
  ]


def judge(rules: Mapping[str, str], examples: Sequence[Example]) -> collections.Counter[str]:
  """Counts the scenes that the rules judge rightly, wrongly, and leave open; no rule counts as open."""
  found: collections.Counter[str] = collections.Counter()
  for example in examples:
    record = example.record
    word, _, rule = rules.get(record.relation, "").partition(" when ")
    x, y = (example.boxes[name] for name in object_names(record.caption))
    holds = rule_holds(rule, x, y) if rule else None
    verdict = None if holds is None else holds == (word == "yes")
    found["open" if verdict is None else "right" if verdict == record.label else "wrong"] += 1
  return found


if __name__ == "__main__":
  main()
