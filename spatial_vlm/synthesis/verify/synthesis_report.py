"""Reports a synthesis run: yield, reasons for rejection, cost and examples."""

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
from spatial_vlm.synthesis.teacher import sum_usage
from spatial_vlm.synthesis.verify.checks import CheckedAnswer
from spatial_vlm.synthesis.verify.statement_patterns import match_objects
from spatial_vlm.text import escaped, fenced, markdown_table, percent

_SHEET_COLUMNS = 4


def summarize(answers: Iterable[CheckedAnswer], usd: float | None = None) -> dict[str, Any]:
  """Returns the figures of a run as plain JSON.

  Args:
    answers: all attempts at all records; answers that selection dropped carry the reason as a rejection. A record is
      accepted if one of its attempts is.
    usd: cost, if known.
  """
  answers = list(answers)
  attempts = collections.defaultdict(list)
  for answer in answers:
    attempts[answer.record.image, answer.record.caption].append(answer)
  records = list(attempts.values())
  accepted = [answer for answer in answers if answer.accepted]
  return {
    **_yield(records),
    "questions": {
      "blind": _questions(answer for answer in answers if not answer.hinted),
      "hinted": _questions(answer for answer in answers if answer.hinted),
    },
    "by_relation": _by(records, lambda record: record.relation),
    "by_category": _by(records, lambda record: record.category),
    "by_agreement": _by(records, stratum, STRATA),
    "rejections": _rejections(answers),
    "model_versions": _counted(answer.model_version for answer in answers),
    "model_versions_accepted": _counted(answer.model_version for answer in accepted),
    "tokens": sum_usage(answer.usage for answer in answers)._asdict(),
    "usd": usd,
  }


def choose_examples(
  answers: Iterable[CheckedAnswer], accepted: int, rejected: int
) -> list[CheckedAnswer]:
  """Returns the first accepted answers, then the first rejected ones.

  Accepted ones alternate between blind and hinted; rejected ones cycle through the checks that rejected them.
  """
  good, bad = [], []
  for answer in answers:
    (good if answer.accepted else bad).append(answer)
  good = _round_robin(good, lambda answer: answer.hinted)
  bad = _round_robin(bad, lambda answer: answer.rejections[0].check)
  return good[:accepted] + bad[:rejected]


def example_sheet(
  examples: Sequence[CheckedAnswer], open_image: Callable[[str], Image.Image]
) -> Image.Image:
  """Returns the images with the drafts' boxes, numbered as in `markdown`; invalid boxes are skipped."""
  tiles = [_tile(answer, open_image, i) for i, answer in enumerate(examples, start=1)]
  return contact_sheet(tiles, columns=min(_SHEET_COLUMNS, max(1, len(tiles))))


def markdown(summary: Mapping[str, Any], examples: Sequence[CheckedAnswer], sheet: str) -> str:
  """Returns the report, with all texts of records and models escaped.

  `sheet` is the file name of the `example_sheet` in the same folder.
  """
  sections = [
    "# Chains from a teacher",
    _overview(summary),
    "## Yield",
    "A record is accepted if one of its answers passes every check. Blind questions do not contain the label. Hinted "
    "questions do; they follow after every blind answer was rejected. *True* is the share of true statements among the "
    "accepted records.",
    _yield_table("relation", summary["by_relation"]),
    _yield_table("meta-category", summary["by_category"]),
    "Validators who agree with the label:",
    _yield_table("agreement", summary["by_agreement"]),
    "## Why answers were rejected",
    _rejections_table(summary["rejections"]),
    "## Models and cost",
    _cost(summary),
    *(_example_sections(examples, sheet) if examples else []),
  ]
  return "\n\n".join(sections) + "\n"


def _yield(records: Sequence[Sequence[CheckedAnswer]]) -> dict[str, Any]:
  accepted = [next((o for o in attempts if o.accepted), None) for attempts in records]
  found = [answer for answer in accepted if answer]
  hinted = sum(answer.hinted for answer in found)
  return {
    "records": len(records),
    "accepted": len(found),
    "accepted_blind": len(found) - hinted,
    "accepted_hinted": hinted,
    "yield": _share(len(found), len(records)),
    "true_share": _share(sum(answer.record.label for answer in found), len(found)),
  }


def _questions(answers: Iterable[CheckedAnswer]) -> dict[str, Any]:
  accepted = [answer.accepted for answer in answers]
  return {
    "asked": len(accepted),
    "accepted": sum(accepted),
    "yield": _share(sum(accepted), len(accepted)),
  }


def _by(
  records: Sequence[Sequence[CheckedAnswer]],
  group: Callable[[Record], Hashable],
  order: Sequence[str] = (),
) -> dict[str, Any]:
  """Returns the yield of each group, in `order` or with the largest group first."""
  groups = collections.defaultdict(list)
  for attempts in records:
    groups[group(attempts[0].record)].append(attempts)
  names = order or sorted(groups, key=lambda name: (-len(groups[name]), name))
  return {name: _yield(groups[name]) for name in names if name in groups}


def _rejections(answers: Sequence[CheckedAnswer]) -> dict[str, dict[str, int]]:
  """Counts, for each check, the answers that fail it, those that fail no other check, and the hinted ones."""
  found: dict[str, dict[str, int]] = {}
  for answer in answers:
    checks = {rejection.check for rejection in answer.rejections}
    for check in checks:
      counts = found.setdefault(check, {"answers": 0, "alone": 0, "hinted": 0})
      counts["answers"] += 1
      counts["alone"] += len(checks) == 1
      counts["hinted"] += answer.hinted
  return dict(sorted(found.items(), key=lambda item: (-item[1]["answers"], item[0])))


def _counted(values: Iterable[str]) -> dict[str, int]:
  return dict(collections.Counter(values).most_common())


def _share(part: int, whole: int) -> float | None:
  return part / whole if whole else None


def _round_robin(
  answers: Sequence[CheckedAnswer], key: Callable[[CheckedAnswer], Hashable]
) -> list[CheckedAnswer]:
  """Sorts the answers: the first of each group, then the second of each, and so on."""
  seen = collections.Counter()
  rounds = []
  for answer in answers:
    rounds.append(seen[key(answer)])
    seen[key(answer)] += 1
  return [answer for _, answer in sorted(zip(rounds, answers, strict=True), key=lambda x: x[0])]


def _tile(answer: CheckedAnswer, open_image: Callable[[str], Image.Image], number: int) -> Example:
  """Returns one tile; its record uses the draft's names, so that the sheet recognises subject and object."""
  record, draft = answer.record, answer.draft
  boxes = _drawable(draft) if draft else {}
  subject, other = match_objects(draft, record) if draft else ("", "")
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
    f"{summary['accepted_blind']:,} without a hint, {summary['accepted_hinted']:,} with one. Of the "
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
    return "No answer was rejected."
  rows = [
    [escaped(check), f"{counts['answers']:,}", f"{counts['alone']:,}", f"{counts['hinted']:,}"]
    for check, counts in rejections.items()
  ]
  return markdown_table(["check", "answers", "this check alone", "hinted"], rows)


def _cost(summary: Mapping[str, Any]) -> str:
  tokens, accepted = summary["tokens"], summary["accepted"]
  versions = [
    [escaped(version) or "unknown", f"{count:,}", f"{_accepted_count(summary, version):,}"]
    for version, count in summary["model_versions"].items()
  ]
  table = markdown_table(["model version", "answers", "accepted"], versions)
  total = tokens["prompt"] + tokens["answer"] + tokens["thoughts"]
  each = f", {total / accepted:,.0f} per accepted record" if accepted else ""
  money = "" if summary["usd"] is None else f" Cost: {summary['usd']:.2f} USD."
  return (
    f"{table}\n\nTokens: {tokens['prompt']:,} prompt ({tokens['cached']:,} of them cached), "
    f"{tokens['answer']:,} answer, {tokens['thoughts']:,} thinking; {total:,} in all{each}.{money}"
  )


def _accepted_count(summary: Mapping[str, Any], version: str) -> int:
  return summary["model_versions_accepted"].get(version, 0)


def _example_sections(examples: Sequence[CheckedAnswer], sheet: str) -> list[str]:
  image = f"![examples with the boxes of the teacher]({sheet})"
  sections = ["## Examples", "The first answers of each kind, not hand-picked.", image]
  return sections + [_example(answer, i) for i, answer in enumerate(examples, start=1)]


def _example(answer: CheckedAnswer, number: int) -> str:
  """Renders one example: an accepted chain as a policy learns it, a rejected answer unchanged."""
  record, draft = answer.record, answer.draft
  how = f"{'hinted' if answer.hinted else 'blind'}, attempt {answer.attempt + 1}"
  label = "true" if record.label else "false"
  reasons = "\n".join(f"- {escaped(name)}: {escaped(why)}" for name, why in answer.rejections)
  text = chain(draft) if draft and answer.accepted else answer.text
  parts = [
    f"### {number}. {'Accepted' if answer.accepted else 'Rejected'}, {how}",
    f"**{escaped(record.caption)}** ({label}; {escaped(record.image)})",
    reasons,
    fenced(text) if text else "The answer is empty.",
  ]
  return "\n\n".join(part for part in parts if part)
