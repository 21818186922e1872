"""Selects a training set from accepted drafts: removes near-duplicates and balances the labels of each relation.

The selection does not depend on the order of the drafts; hashes of the records decide which ones stay.
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
from spatial_vlm.synthesis.verify.checks import CheckedAnswer, Rejection

REPEATED, UNBALANCED = "repeated", "unbalanced"
"""Names of the two rejections that selection adds to those of `checks.CHECKS`."""
_BLOCK = 512
"""Drafts compared with all others at once; limits the memory."""


@dataclasses.dataclass(frozen=True)
class SelectionSettings:
  """Limits of a training set; raises UsageError for values that cannot work."""

  max_similarity: float
  """Of the texts of two drafts of one relation and label, 0–1; 1 drops only identical drafts of one statement."""
  max_label_ratio: float
  """Of the more frequent label of a relation to the less frequent one."""

  def __post_init__(self):
    if not 0 < self.max_similarity <= 1 or self.max_label_ratio < 1:
      raise UsageError(
        f"max_similarity is {self.max_similarity} and max_label_ratio is {self.max_label_ratio}; give "
        "0 < max_similarity <= 1 and max_label_ratio >= 1"
      )


def select(
  answers: Iterable[CheckedAnswer], settings: SelectionSettings
) -> tuple[list[CheckedAnswer], list[CheckedAnswer]]:
  """Splits the accepted answers, in their order, into kept ones and dropped ones.

  A dropped answer carries the reason as its rejection.
  """
  accepted = [answer for answer in answers if answer.accepted]
  reasons = _find_repeated(accepted, settings.max_similarity)
  rest = [i for i in range(len(accepted)) if i not in reasons]
  unbalanced = _find_unbalanced([accepted[i] for i in rest], settings.max_label_ratio)
  reasons |= {rest[i]: reason for i, reason in unbalanced}
  kept = [answer for i, answer in enumerate(accepted) if i not in reasons]
  dropped = [
    dataclasses.replace(answer, rejections=(reasons[i],))
    for i, answer in enumerate(accepted)
    if i in reasons
  ]
  return kept, dropped


def _find_repeated(answers: Sequence[CheckedAnswer], max_similarity: float) -> dict[int, Rejection]:
  """Finds drafts that repeat an earlier one in hash order; returns index → rejection."""
  found: dict[int, Rejection] = {}
  same: dict[Hashable, int] = {}
  for i in _by_hash(answers):
    record, draft = answers[i].record, _draft(answers[i])
    first = same.setdefault((record.caption, draft), i)
    if first != i:
      found[i] = _repetition(answers[first].record, 1.0)
  if max_similarity == 1:
    return found
  for group in _groups(answers, lambda record: (record.relation, record.label)):
    order = [group[i] for i in _by_hash([answers[i] for i in group]) if group[i] not in found]
    texts = [_words(_draft(answers[i])) for i in order]
    for later, earlier, similarity in _find_similar(texts, max_similarity):
      found[order[later]] = _repetition(answers[order[earlier]].record, similarity)
  return found


def _find_similar(texts: Sequence[str], max_similarity: float) -> Iterator[tuple[int, int, float]]:
  """Yields (text, similar earlier text that stays, cosine similarity of their character 3- to 5-grams)."""
  if not texts:
    return
  vectors = sparse.csr_matrix(_NGRAMS.transform(texts))
  stays = np.ones(len(texts), bool)
  for start in range(0, len(texts), _BLOCK):
    block = (vectors[start : start + _BLOCK] @ vectors[: start + _BLOCK].T).toarray()
    for i, similarities in enumerate(block, start):
      similar = np.flatnonzero((similarities[:i] > max_similarity) & stays[:i])
      if similar.size:
        stays[i] = False
        yield i, int(similar[0]), float(similarities[similar[0]])


_NGRAMS = HashingVectorizer(
  analyzer="char_wb", ngram_range=(3, 5), n_features=2**18, alternate_sign=False, norm="l2"
)


def _find_unbalanced(
  answers: Sequence[CheckedAnswer], max_ratio: float
) -> Iterator[tuple[int, Rejection]]:
  """Finds surplus answers of each relation's more frequent label, the last ones in hash order."""
  for group in _groups(answers, lambda record: record.relation):
    by_label: dict[int, list[int]] = {0: [], 1: []}
    for i in _by_hash([answers[i] for i in group]):
      by_label[answers[group[i]].record.label].append(group[i])
    for label, others in ((0, by_label[1]), (1, by_label[0])):
      allowed = int(max_ratio * len(others))
      counts = f"{len(by_label[label])} with label {label} against {len(others)}"
      for i in by_label[label][allowed:]:
        yield i, Rejection(UNBALANCED, f"{answers[i].record.relation!r}: {counts}")


def _groups(
  answers: Sequence[CheckedAnswer], key: Callable[[Record], Hashable]
) -> Iterable[list[int]]:
  groups = collections.defaultdict(list)
  for i, answer in enumerate(answers):
    groups[key(answer.record)].append(i)
  return groups.values()


def _by_hash(answers: Sequence[CheckedAnswer]) -> list[int]:
  """Returns the indices, sorted by a hash of the records."""

  def digest(i: int) -> bytes:
    record = answers[i].record
    return hashlib.sha256(f"{record.image}\0{record.caption}".encode()).digest()

  return sorted(range(len(answers)), key=digest)


def _repetition(record: Record, similarity: float) -> Rejection:
  return Rejection(REPEATED, f"{similarity:.0%} similar to the one for {record.image}")


def _words(draft: Draft) -> str:
  return f"{draft.summary} {draft.caption} {draft.reasoning}".casefold()


def _draft(answer: CheckedAnswer) -> Draft:
  if answer.draft is None:
    raise ValueError(f"the accepted answer for {answer.record.image} has no draft")
  return answer.draft
