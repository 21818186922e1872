"""Reports about splits of records in Markdown; text from the files is escaped.

`statistics` maps each split to `splits.Split.describe()`. `overlap` is `splits.Overlap.describe()`, or None if no
evaluation set was compared. `notes` maps each split to the "records" and the "skipped" records of its store.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from spatial_vlm.data.records import BadRecord
from spatial_vlm.text import escaped, markdown_table, percent

SHOWN = 10
"""Entries shown of each list of bad records."""

Statistics = Mapping[str, Mapping[str, Any]]

_COLUMNS = "split, records, images, relations, captions, contrastive, true, skipped, images missing"
_ABOUT = (
  "A contrastive caption is true of one image and false of another, so that its words alone do not give the label. "
  "Skipped records are counted in no other column."
)


def summary(statistics: Statistics, overlap: Mapping[str, Any] | None) -> str:
  """Returns the part of the report that fits on a terminal."""
  parts = [sizes_table(statistics), *groups_tables(statistics), overlap_text(overlap)]
  return "\n\n".join(parts)


def markdown_report(
  statistics: Statistics,
  overlap: Mapping[str, Any] | None,
  notes: Mapping[str, Mapping[str, Any]],
  has_sheet: bool,
) -> str:
  """Returns the whole report."""
  sections = ["# Records", sizes_table(statistics), _ABOUT]
  sections += ["## Evaluation set", escaped(overlap_text(overlap))]
  sections += ["## By meta-category and by agreement", *groups_tables(statistics)]
  sections += ["## By relation", group_table(statistics, "by_relation", "relation")]
  sections += ["## Skipped", skipped_text({n: s["skipped"] for n, s in statistics.items()})]
  if notes:
    sizes = [[escaped(name), f"{note['records']:,}"] for name, note in notes.items()]
    unreadable = {name: note["skipped"] for name, note in notes.items()}
    sections += ["## Store", markdown_table(["split", "records"], sizes), skipped_text(unreadable)]
  if has_sheet:
    sections += ["## Examples", "![Examples](contact_sheet.png)"]
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
  """Returns records and share of true ones by group, a pair of columns for each split."""
  names = dict.fromkeys(name for split in statistics.values() for name in split[key])
  rows = [
    [escaped(name), *(cell for s in statistics.values() for cell in _cells(s[key].get(name)))]
    for name in names
  ]
  header = [title, *(cell for split in statistics for cell in (escaped(split), "true"))]
  return markdown_table(header, rows)


def overlap_text(overlap: Mapping[str, Any] | None) -> str:
  if overlap is None:
    return "No evaluation set was compared with the training set."
  text = (
    f"{overlap['shared']:,} of the {overlap['pairs']:,} pairs of image and caption in {overlap['evaluation']} are "
    "in the training set"
  )
  return text + (", from which they are removed." if overlap["dropped"] else ".")


def skipped_text(skipped: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """Returns the number of skipped records of each split, and the first of them with file, line and reason."""
  lines = []
  for name, bad in skipped.items():
    lines.append(f"- {escaped(name)}: {len(bad):,}" + (", of which the first:" if bad else ""))
    lines += [f"  - {escaped(str(BadRecord(**fields)))}" for fields in bad[:SHOWN]]
  return "\n".join(lines)


def _cells(group: Mapping[str, Any] | None) -> tuple[str, str]:
  return (f"{group['records']:,}", percent(group["true_share"])) if group else ("0", "–")
