"""Which accepted drafts make a good set: each says something of its own, and no label can be guessed from a relation.

Nothing here depends on the order in which the drafts came: what is kept is decided by hashes of the records.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import Record
from spatial_vlm.synthesis.draft import Draft
from spatial_vlm.synthesis.verify.checks import Outcome, Rejection

REPEATED, UNBALANCED = "repeated", "unbalanced"
"""Names of the two reasons, beside those of `checks.CHECKS`."""
_BLOCK = 512
"""Drafts compared with all others at a time; bounds the memory."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What may stand in one set."""

  max_similarity: float
  """Of the words of two drafts on one relation with one label, 0–1; 1 refuses only the same words on one statement."""
  max_label_ratio: float
  """Of the more frequent label of a relation to the other one."""

  def __post_init__(self):
    if not 0 < self.max_similarity <= 1 or self.max_label_ratio < 1:
      raise UsageError(
        f"max_similarity is {self.max_similarity} and max_label_ratio is {self.max_label_ratio}; the first is above 0 "
        "and at most 1, the second at least 1"
      )


def select(outcomes: Iterable[Outcome], settings: Settings) -> tuple[list[Outcome], list[Outcome]]:
  """The accepted outcomes to keep, in their order, and those left out, each with the reason as its rejection."""
  accepted = [outcome for outcome in outcomes if outcome.accepted]
  reasons = _repeated(accepted, settings.max_similarity)
  rest = [i for i in range(len(accepted)) if i not in reasons]
  unbalanced = _unbalanced([accepted[i] for i in rest], settings.max_label_ratio)
  reasons |= {rest[i]: reason for i, reason in unbalanced}
  kept = [outcome for i, outcome in enumerate(accepted) if i not in reasons]
  dropped = [
    dataclasses.replace(outcome, rejections=(reasons[i],))
    for i, outcome in enumerate(accepted)
    if i in reasons
  ]
  return kept, dropped


def _repeated(outcomes: Sequence[Outcome], max_similarity: float) -> dict[int, Rejection]:
  """Drafts that say what an earlier one in the order of the hashes says, with the reason."""
  found: dict[int, Rejection] = {}
  same: dict[Hashable, int] = {}
  for i in _by_hash(outcomes):
    record, draft = outcomes[i].record, _draft(outcomes[i])
    first = same.setdefault((record.caption, draft), i)
    if first != i:
      found[i] = _like(outcomes[first].record, 1.0)
  if max_similarity == 1:
    return found
  for group in _groups(outcomes, lambda record: (record.relation, record.label)):
    order = [group[i] for i in _by_hash([outcomes[i] for i in group]) if group[i] not in found]
    texts = [_words(_draft(outcomes[i])) for i in order]
    for later, earlier, similarity in _similar(texts, max_similarity):
      found[order[later]] = _like(outcomes[order[earlier]].record, similarity)
  return found


def _similar(texts: Sequence[str], max_similarity: float) -> Iterator[tuple[int, int, float]]:
  """(text, earlier text that stays and is like it, cosine of their 3- to 5-letter pieces)."""
  if not texts:
    return
  vectors = sparse.csr_matrix(_PIECES.transform(texts))
  stays = np.ones(len(texts), bool)
  for start in range(0, len(texts), _BLOCK):
    block = (vectors[start : start + _BLOCK] @ vectors[: start + _BLOCK].T).toarray()
    for i, similarities in enumerate(block, start):
      alike = np.flatnonzero((similarities[:i] > max_similarity) & stays[:i])
      if alike.size:
        stays[i] = False
        yield i, int(alike[0]), float(similarities[alike[0]])


_PIECES = HashingVectorizer(
  analyzer="char_wb", ngram_range=(3, 5), n_features=2**18, alternate_sign=False, norm="l2"
)


def _unbalanced(outcomes: Sequence[Outcome], max_ratio: float) -> Iterator[tuple[int, Rejection]]:
  """The last, in the order of the hashes, of a label that is too frequent in its relation."""
  for group in _groups(outcomes, lambda record: record.relation):
    by_label: dict[int, list[int]] = {0: [], 1: []}
    for i in _by_hash([outcomes[i] for i in group]):
      by_label[outcomes[group[i]].record.label].append(group[i])
    for label, others in ((0, by_label[1]), (1, by_label[0])):
      allowed = int(max_ratio * len(others))
      said = f"{len(by_label[label])} with label {label} stand against {len(others)}"
      for i in by_label[label][allowed:]:
        yield i, Rejection(UNBALANCED, f"of {outcomes[i].record.relation!r}, {said}")


def _groups(outcomes: Sequence[Outcome], key: Callable[[Record], Hashable]) -> Iterable[list[int]]:
  groups = collections.defaultdict(list)
  for i, outcome in enumerate(outcomes):
    groups[key(outcome.record)].append(i)
  return groups.values()


def _by_hash(outcomes: Sequence[Outcome]) -> list[int]:
  """Indices in an order that is the records' own."""

  def digest(i: int) -> bytes:
    record = outcomes[i].record
    return hashlib.sha256(f"{record.image}\0{record.caption}".encode()).digest()

  return sorted(range(len(outcomes)), key=digest)


def _like(record: Record, similarity: float) -> Rejection:
  return Rejection(REPEATED, f"{similarity:.0%} like the one on {record.image}")


def _words(draft: Draft) -> str:
  return f"{draft.summary} {draft.caption} {draft.reasoning}".casefold()


def _draft(outcome: Outcome) -> Draft:
  if outcome.draft is None:
    raise ValueError(f"an accepted outcome on {outcome.record.image} holds no draft")
  return outcome.draft
