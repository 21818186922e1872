"""The extractors that a config can name: `EXTRACTORS`, name → function.

The dictionary stands in this layer although one extractor asks a teacher: that extractor is given a function that asks
(`ExtractionSettings.ask`), and knows nothing of journals, budgets and servers, which belong to `synthesis`.
"""

import dataclasses
from collections.abc import Sequence
from statistics import mean

from spatial_vlm.config import UsageError
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.extraction.clusters import extract_by_clusters
from spatial_vlm.reuse.extraction.extractor import ExtractionSettings, Extractor
from spatial_vlm.reuse.extraction.merging import merge_similar
from spatial_vlm.reuse.extraction.patterns import UNREAD_CAPTION, can_name, extract_behaviors
from spatial_vlm.reuse.extraction.teacher_extraction import extract_by_teacher
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.reuse.statements.relation_keys import relation_key


def _extract_patterns(
  solutions: Sequence[Solution], settings: ExtractionSettings
) -> list[Behavior]:
  settings.refused[UNREAD_CAPTION] += sum(not can_name(solution) for solution in solutions)
  found = extract_behaviors(solutions, settings.count_tokens, settings.min_support)
  return [dataclasses.replace(b, relation=relation_key(b.questions[0]) or "") for b in found]


EXTRACTORS: dict[str, Extractor] = {
  "pattern": _extract_patterns,
  "clusters": extract_by_clusters,
  "teacher": extract_by_teacher,
}
"""Name → function. To add an extractor, add an entry."""


def find_extractor(name: str) -> Extractor:
  """Returns the extractor of this name; raises UsageError for an unknown one."""
  if name not in EXTRACTORS:
    raise UsageError(f"extractor is {name!r}; choose one of {', '.join(EXTRACTORS)}")
  return EXTRACTORS[name]


def extract(
  extractor: Extractor, solutions: Sequence[Solution], settings: ExtractionSettings
) -> list[Behavior]:
  """Returns the behaviors of an extractor without duplicates and overlong lines, with an estimate of what they save.

  Until `evaluate` measures it, a recall is taken to save the mean length of the behavior's chains less the length of
  its line, which is about that of the short answer.
  """
  found = extractor(solutions, settings)
  short = [b for b in found if b.tokens <= settings.max_tokens]
  settings.refused["the behavior has more tokens than the limit"] += len(found) - len(short)
  merged = merge_similar(short, settings.embedder, settings.duplicate_similarity)
  sources = {record for b in merged for record in b.provenance}
  lengths = {s.record: settings.count_tokens(s.text) for s in solutions if s.record in sources}
  return [
    dataclasses.replace(
      b, saved_tokens=float(mean(lengths[record] for record in b.provenance) - b.tokens)
    )
    for b in merged
  ]
