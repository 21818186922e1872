"""What there is to say about sets of records, in Markdown; all that comes from their files stands there escaped.

`statistics` are those of each split: `statistics.describe`, its "left_out" records as the fields of `BadRecord`, and
its "missing_images" with their "count". `overlap` is what the training records share with an evaluation set, None where
none is compared; `notes` tell of each split's store.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from spatial_vlm.data.records import BadRecord
from spatial_vlm.text import escaped, markdown_table, percent

SHOWN = 10
"""Of each list of faults."""

Statistics = Mapping[str, Mapping[str, Any]]

_COLUMNS = (
  "split, records, images, relations, captions, contrastive, true, left out, images missing"
)
_ABOUT = (
  "A contrastive caption is true of one image and false of another, so that words alone cannot tell. What was left out "
  "is not counted elsewhere."
)


def summary(statistics: Statistics, overlap: Mapping[str, Any] | None) -> str:
  """The part that fits on a terminal."""
  parts = [sizes_table(statistics), *groups_tables(statistics), overlap_text(overlap)]
  return "\n\n".join(parts)


def markdown_report(
  statistics: Statistics,
  overlap: Mapping[str, Any] | None,
  notes: Mapping[str, Mapping[str, Any]],
  has_sheet: bool,
) -> str:
  """All of it."""
  sections = ["# Records", sizes_table(statistics), _ABOUT]
  sections += ["## Evaluation set", escaped(overlap_text(overlap))]
  sections += ["## By meta-category and by agreement", *groups_tables(statistics)]
  sections += ["## By relation", group_table(statistics, "by_relation", "relation")]
  sections += ["## Left out", left_out_text({n: s["skipped"] for n, s in statistics.items()})]
  if notes:
    sizes = [[escaped(name), f"{note['records']:,}"] for name, note in notes.items()]
    unreadable = {name: note["skipped"] for name, note in notes.items()}
    sections += ["## Store", markdown_table(["split", "records"], sizes), left_out_text(unreadable)]
  if has_sheet:
    sections += ["## Some of them", "![Examples](contact_sheet.png)"]
  return "\n\n".join(sections) + "\n"


def sizes_table(statistics: Statistics) -> str:
  rows = [
    [
      escaped(name),
      f"{split['records']:,}",
      f"{split['images']:,}",
      f"{len(split['by_relation']):,}",
      f"{split['captions']:,}",
      f"{split['contrastive_captions']:,}",
      percent(split["true_share"]),
      f"{len(split['skipped']):,}",
      f"{split['missing_images']['count']:,}",
    ]
    for name, split in statistics.items()
  ]
  return markdown_table(_COLUMNS.split(", "), rows)


def groups_tables(statistics: Statistics) -> list[str]:
  return [
    group_table(statistics, "by_category", "meta-category"),
    group_table(statistics, "by_agreement", "validators who agree"),
  ]


def group_table(statistics: Statistics, key: str, title: str) -> str:
  """Records and share of true ones by group, a pair of columns for each split."""
  names = dict.fromkeys(name for split in statistics.values() for name in split[key])
  rows = [
    [escaped(name), *(cell for s in statistics.values() for cell in _cells(s[key].get(name)))]
    for name in names
  ]
  header = [title, *(cell for split in statistics for cell in (escaped(split), "true"))]
  return markdown_table(header, rows)


def overlap_text(overlap: Mapping[str, Any] | None) -> str:
  if overlap is None:
    return "No evaluation set was compared with the training records."
  text = (
    f"{overlap['shared']:,} of the {overlap['pairs']:,} pairs of image and caption in {overlap['evaluation']} stand "
    "among the training records"
  )
  return text + (", from which they are left out." if overlap["dropped"] else ".")


def left_out_text(faults: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """The first faults of each split with their places."""
  lines = []
  for name, bad in faults.items():
    lines.append(f"- {escaped(name)}: {len(bad):,}" + (", of which the first:" if bad else ""))
    lines += [f"  - {escaped(str(BadRecord(**fault)))}" for fault in bad[:SHOWN]]
  return "\n".join(lines)


def _cells(group: Mapping[str, Any] | None) -> tuple[str, str]:
  return (f"{group['records']:,}", percent(group["true_share"])) if group else ("0", "–")
