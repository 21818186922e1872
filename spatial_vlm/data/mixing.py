"""Several sources as one: their records are concatenated and read in an order that mixes them by weight."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from spatial_vlm.data.pipeline import Source, prompt_order


class Joined:
  """Concatenated sources: record 0 of the second follows the last record of the first."""

  def __init__(self, sources: Sequence[Source]):
    self.sources = sources
    self.ends = np.cumsum([len(source) for source in sources])

  def __len__(self) -> int:
    return int(self.ends[-1])

  def __getitem__(self, index: int) -> Any:
    source, within = self._find(index)
    return source[within]

  def origin(self, index: int) -> tuple[str, int]:
    source, within = self._find(index)
    return source.origin(within)

  def numbers(self) -> list[range]:
    """Returns the numbers of the records of each source."""
    return [
      range(end - len(s), end) for s, end in zip(self.sources, self.ends.tolist(), strict=True)
    ]

  def _find(self, index: int) -> tuple[Source, int]:
    which = int(np.searchsorted(self.ends, index, side="right"))
    return self.sources[which], index - int(self.ends[which]) + len(self.sources[which])


def mixed_order(
  sources: Sequence[Sequence[int]], weights: Sequence[float], *, epochs: int, seed: int
) -> list[int]:
  """Returns `epochs` shuffled passes over the first source, with records of the others spread evenly between.

  The counts of any two sources are in the ratio of their weights, within one record from the beginning to any point. A
  source that is used up starts again, in another order. (`grain.MapDataset.mix` keeps the same shares, at milliseconds
  a record.)

  Args:
    sources: numbers of the records of each source.
    weights: one for each source.
    epochs: passes over the first source.
    seed: of the permutations.

  Raises:
    ValueError: a weight is not positive, or a source is empty.
  """
  if len(weights) != len(sources) or not all(0 < weight < np.inf for weight in weights):
    raise ValueError(
      f"weights are {tuple(weights)}; give a positive one for each of the {len(sources)} sources"
    )
  draws = [round(epochs * len(sources[0]) * weight / weights[0]) for weight in weights]
  # The k-th of n draws of a source is put in the middle of the k-th of n equal parts.
  moments = [
    (np.arange(count) + 0.5) / weight for count, weight in zip(draws, weights, strict=True)
  ]
  order = np.argsort(np.concatenate(moments), kind="stable")
  drawn = [
    number
    for which, (numbers, count) in enumerate(zip(sources, draws, strict=True))
    for number in _shuffled(numbers, count, _seed(seed, which))
  ]
  return [drawn[place] for place in order]


def _shuffled(numbers: Sequence[int], count: int, seed: int) -> list[int]:
  permuted = prompt_order(seed, len(numbers))
  return [numbers[permuted(cursor)] for cursor in range(count)]


def _seed(seed: int, which: int) -> int:
  """Returns the run's own seed for the first source, so that a single source has the order of `pipeline.batches`."""
  return seed if which == 0 else int(np.random.SeedSequence((seed, which)).generate_state(1)[0])
