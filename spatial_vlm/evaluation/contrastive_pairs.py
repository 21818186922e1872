"""Contrastive pairs: two statements that differ in one thing, one of them true and one false.

A model that says the same to both has one of them right. Guessing answers a quarter of the pairs rightly.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from spatial_vlm.data.statement import read_statement
from spatial_vlm.evaluation.predictions import Prediction

Key = Callable[[Prediction], Hashable | None]
"""What the two statements of a pair have in common; None: the statement is in no pair."""


def of_one_caption(p: Prediction) -> Hashable:
  """Key of pairs with one caption and two images."""
  return p.caption


def of_one_image(p: Prediction) -> Hashable | None:
  """Key of pairs with one image and two captions about the same objects, which differ in relation or direction.

  "The cat is left of the mug." pairs with "The cat is behind the mug." and with "The mug is left of the cat.".
  """
  if not p.image or (parts := read_statement(p.caption)) is None:
    return None
  subject, _, object = parts
  return p.image, frozenset((subject.casefold(), object.casefold()))


def both_right(predictions: Sequence[Prediction], key: Key) -> dict[Hashable, bool]:
  """Returns for each pair whether both answers are right.

  Pairs the k-th true statement of each key with its k-th false one, in the order of ids. A statement without a partner
  does not count. A pair is named by its two ids, so that pairs of two methods can be compared.
  """
  groups: dict[Hashable, dict[int, list[Prediction]]] = defaultdict(lambda: {0: [], 1: []})
  for p in sorted(predictions, key=lambda p: p.id):
    if (common := key(p)) is not None:
      groups[common][p.label].append(p)
  return {
    (false.id, true.id): false.right and true.right
    for group in groups.values()
    for false, true in zip(group[0], group[1], strict=False)
  }
