"""What came of a synthesis: the yield, why the rest was refused, what it took, and examples to look at."""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from spatial_vlm.answers import Box
from spatial_vlm.data.contact_sheet import contact_sheet
from spatial_vlm.data.records import Example, Record
from spatial_vlm.data.statistics import STRATA, stratum
from spatial_vlm.synthesis.draft import Draft, chain
from spatial_vlm.synthesis.teacher import total
from spatial_vlm.synthesis.verify.checks import Outcome, named_objects
from spatial_vlm.text import escaped, fenced, markdown_table, percent

_SHEET_COLUMNS = 4


def summarize(outcomes: Iterable[Outcome], usd: float | None = None) -> dict[str, Any]:
  """Figures as plain JSON. `outcomes` are all attempts at all records; those that a set has no room for bring the
  reason as a rejection. A record is accepted when one of its attempts is. `usd` is what was paid, where it is known."""
  outcomes = list(outcomes)
  attempts = collections.defaultdict(list)
  for outcome in outcomes:
    attempts[outcome.record.image, outcome.record.caption].append(outcome)
  records = list(attempts.values())
  accepted = [outcome for outcome in outcomes if outcome.accepted]
  return {
    **_yield(records),
    "questions": {
      "blind": _questions(outcome for outcome in outcomes if not outcome.hinted),
      "hinted": _questions(outcome for outcome in outcomes if outcome.hinted),
    },
    "by_relation": _by(records, lambda record: record.relation),
    "by_category": _by(records, lambda record: record.category),
    "by_agreement": _by(records, stratum, STRATA),
    "rejections": _rejections(outcomes),
    "model_versions": _counted(outcome.model_version for outcome in outcomes),
    "model_versions_accepted": _counted(outcome.model_version for outcome in accepted),
    "tokens": total(outcome.usage for outcome in outcomes)._asdict(),
    "usd": usd,
  }


def choose_examples(outcomes: Iterable[Outcome], accepted: int, rejected: int) -> list[Outcome]:
  """The first accepted outcomes, blind ones and hinted ones by turns; then the first rejected ones, each for another
  reason as long as there are any."""
  good, bad = [], []
  for outcome in outcomes:
    (good if outcome.accepted else bad).append(outcome)
  good = _by_turns(good, lambda outcome: outcome.hinted)
  bad = _by_turns(bad, lambda outcome: outcome.rejections[0].check)
  return good[:accepted] + bad[:rejected]


def example_sheet(
  examples: Sequence[Outcome], open_image: Callable[[str], Image.Image]
) -> Image.Image:
  """The pictures with the boxes of the drafts, numbered as in `markdown`; boxes that cannot be drawn are left out."""
  tiles = [_tile(outcome, open_image, i) for i, outcome in enumerate(examples, start=1)]
  return contact_sheet(tiles, columns=min(_SHEET_COLUMNS, max(1, len(tiles))))


def markdown(summary: Mapping[str, Any], examples: Sequence[Outcome], sheet: str) -> str:
  """The report; `sheet` is the file name of `example_sheet` beside it. What records and models say is escaped."""
  sections = [
    "# Chains from a teacher",
    _overview(summary),
    "## Yield",
    "A record is accepted when one of its answers passes every check. Blind answers were given without knowing the "
    "label; hinted ones, after a blind one was refused, with it. *True* is the share of true statements among those "
    "accepted.",
    _yield_table("relation", summary["by_relation"]),
    _yield_table("meta-category", summary["by_category"]),
    "Validators who agree with the label:",
    _yield_table("agreement", summary["by_agreement"]),
    "## Why answers were refused",
    _rejections_table(summary["rejections"]),
    "## Who answered, and what it took",
    _cost(summary),
    *(_example_sections(examples, sheet) if examples else []),
  ]
  return "\n\n".join(sections) + "\n"


def _yield(records: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
  accepted = [next((o for o in attempts if o.accepted), None) for attempts in records]
  found = [outcome for outcome in accepted if outcome]
  hinted = sum(outcome.hinted for outcome in found)
  return {
    "records": len(records),
    "accepted": len(found),
    "accepted_blind": len(found) - hinted,
    "accepted_hinted": hinted,
    "yield": _share(len(found), len(records)),
    "true_share": _share(sum(outcome.record.label for outcome in found), len(found)),
  }


def _questions(outcomes: Iterable[Outcome]) -> dict[str, Any]:
  accepted = [outcome.accepted for outcome in outcomes]
  return {
    "asked": len(accepted),
    "accepted": sum(accepted),
    "yield": _share(sum(accepted), len(accepted)),
  }


def _by(
  records: Sequence[Sequence[Outcome]],
  group: Callable[[Record], Hashable],
  order: Sequence[str] = (),
) -> dict[str, Any]:
  """The yield within each group, in `order`, or with the largest group first."""
  groups = collections.defaultdict(list)
  for attempts in records:
    groups[group(attempts[0].record)].append(attempts)
  names = order or sorted(groups, key=lambda name: (-len(groups[name]), name))
  return {name: _yield(groups[name]) for name in names if name in groups}


def _rejections(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
  """By check: answers that fail it, those among them that fail no other, and how many of them were hinted."""
  found: dict[str, dict[str, int]] = {}
  for outcome in outcomes:
    checks = {rejection.check for rejection in outcome.rejections}
    for check in checks:
      counts = found.setdefault(check, {"answers": 0, "alone": 0, "hinted": 0})
      counts["answers"] += 1
      counts["alone"] += len(checks) == 1
      counts["hinted"] += outcome.hinted
  return dict(sorted(found.items(), key=lambda item: (-item[1]["answers"], item[0])))


def _counted(values: Iterable[str]) -> dict[str, int]:
  return dict(collections.Counter(values).most_common())


def _share(part: int, whole: int) -> float | None:
  return part / whole if whole else None


def _by_turns(outcomes: Sequence[Outcome], key: Callable[[Outcome], Hashable]) -> list[Outcome]:
  """The first of each group, then the second of each, and so on."""
  seen = collections.Counter()
  turns = []
  for outcome in outcomes:
    turns.append(seen[key(outcome)])
    seen[key(outcome)] += 1
  return [outcome for _, outcome in sorted(zip(turns, outcomes, strict=True), key=lambda x: x[0])]


def _tile(outcome: Outcome, open_image: Callable[[str], Image.Image], number: int) -> Example:
  """With the names of the draft, so that the sheet knows subject and object."""
  record, draft = outcome.record, outcome.draft
  boxes = _drawable(draft) if draft else {}
  subject, other = named_objects(draft, record) if draft else ("", "")
  record = dataclasses.replace(record, subj=subject, obj=other)
  return Example(record, np.asarray(open_image(record.image)), boxes, number)


def _drawable(draft: Draft) -> dict[str, Box]:
  return {
    name: box
    for name, box in draft.objects
    if 0 <= box[0] < box[2] <= 1000 and 0 <= box[1] < box[3] <= 1000
  }


def _overview(summary: Mapping[str, Any]) -> str:
  blind, hinted = summary["questions"]["blind"], summary["questions"]["hinted"]
  return (
    f"Of {summary['records']:,} records {summary['accepted']:,} have a verified chain ({percent(summary['yield'])}): "
    f"{summary['accepted_blind']:,} written blindly, {summary['accepted_hinted']:,} after a hint. Of the "
    f"{blind['asked']:,} blind answers {percent(blind['yield'])} were accepted, of the {hinted['asked']:,} hinted "
    f"ones {percent(hinted['yield'])}."
  )


def _yield_table(title: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
  rows = [
    [
      escaped(name),
      f"{group['records']:,}",
      f"{group['accepted']:,}",
      percent(group["yield"]),
      f"{group['accepted_blind']:,}",
      f"{group['accepted_hinted']:,}",
      percent(group["true_share"]),
    ]
    for name, group in groups.items()
  ]
  return markdown_table([title, "records", "accepted", "yield", "blind", "hinted", "true"], rows)


def _rejections_table(rejections: Mapping[str, Mapping[str, int]]) -> str:
  if not rejections:
    return "None was."
  rows = [
    [escaped(check), f"{counts['answers']:,}", f"{counts['alone']:,}", f"{counts['hinted']:,}"]
    for check, counts in rejections.items()
  ]
  return markdown_table(["check", "answers", "for this alone", "hinted"], rows)


def _cost(summary: Mapping[str, Any]) -> str:
  tokens, accepted = summary["tokens"], summary["accepted"]
  versions = [
    [escaped(version) or "not said", f"{count:,}", f"{_kept(summary, version):,}"]
    for version, count in summary["model_versions"].items()
  ]
  table = markdown_table(["model version", "answers", "accepted"], versions)
  total = tokens["prompt"] + tokens["answer"] + tokens["thoughts"]
  each = f", {total / accepted:,.0f} for each record accepted" if accepted else ""
  money = "" if summary["usd"] is None else f" Paid: {summary['usd']:.2f} USD."
  return (
    f"{table}\n\nTokens: {tokens['prompt']:,} read ({tokens['cached']:,} of them from a cache), {tokens['answer']:,} "
    f"written and {tokens['thoughts']:,} thought; {total:,} in all{each}.{money}"
  )


def _kept(summary: Mapping[str, Any], version: str) -> int:
  return summary["model_versions_accepted"].get(version, 0)


def _example_sections(examples: Sequence[Outcome], sheet: str) -> list[str]:
  picture = f"![examples with the boxes of the teacher]({sheet})"
  sections = ["## Examples", "The first of their kind, not chosen.", picture]
  return sections + [_example(outcome, i) for i, outcome in enumerate(examples, start=1)]


def _example(outcome: Outcome, number: int) -> str:
  """An accepted chain as a policy learns it; what was refused, as it was written."""
  record, draft = outcome.record, outcome.draft
  how = f"{'hinted' if outcome.hinted else 'blind'}, attempt {outcome.attempt + 1}"
  label = "true" if record.label else "false"
  reasons = "\n".join(f"- {escaped(name)}: {escaped(why)}" for name, why in outcome.rejections)
  text = chain(draft) if draft and outcome.accepted else outcome.text
  parts = [
    f"### {number}. {'Accepted' if outcome.accepted else 'Refused'}, {how}",
    f"**{escaped(record.caption)}** ({label}; {escaped(record.image)})",
    reasons,
    fenced(text) if text else "Nothing was written.",
  ]
  return "\n\n".join(part for part in parts if part)
