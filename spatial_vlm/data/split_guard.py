"""No statement that a model is tested on may be among those it learns from.

The two splits of VSR were drawn from the same statements: 830 of the 1,222 pairs of the zero-shot test split stand in
the random training split, so that one must not be trained on when the other is measured.
"""

import collections
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data import vsr

Pair = tuple[str, str]
"""Image and caption."""


def read_pairs(file: epath.PathLike) -> list[Pair]:
  """The pairs of a file of records; UsageError when it holds none, since nothing would be guarded."""
  found = vsr.read_files([epath.Path(file)])
  if not found.listed:
    raise UsageError(
      f"{os.fspath(file)} holds no record to guard against; give a file of records. {found.bad[0]}"
    )
  return [(record.image, record.caption) for record in found.records]


def shared_pairs(training: Iterable[Pair], evaluation: Iterable[Pair]) -> list[Pair]:
  """The evaluation pairs that stand in the training set as well.

  An image is known by its base name; captions are compared without regard to case, spaces and a final full stop.
  """
  known = {_key(pair) for pair in training}
  return [pair for pair in evaluation if _key(pair) in known]


def asked_pairs(questions: Iterable[Pair], evaluation: Iterable[Pair]) -> list[Pair]:
  """The evaluation pairs whose caption stands in a question on their image, however the question is worded."""
  asked = collections.defaultdict(list)
  for question in questions:
    image, text = _key(question)
    asked[image].append(text)
  return [pair for pair in evaluation if _is_asked(*_key(pair), asked)]


def guard(
  training: Iterable[Pair],
  file: epath.PathLike,
  remedy: str,
  find: Callable[[Iterable[Pair], Iterable[Pair]], list[Pair]] = shared_pairs,
) -> None:
  """Raises UsageError when `training` shares pairs with a file of records; `find` is `shared_pairs`, or `asked_pairs`
  where training is told by questions."""
  evaluation = read_pairs(file)
  refuse_shared(find(training, evaluation), len(evaluation), remedy)


def refuse_shared(shared: Sequence[Pair], evaluated: int, remedy: str) -> None:
  """Raises UsageError if there are `shared` pairs among so many `evaluated`, with the first and the `remedy`."""
  if shared:
    first = "".join(f"\n  {image}: {caption}" for image, caption in shared[:3])
    raise UsageError(
      f"{len(shared)} of the {evaluated} evaluation pairs of image and caption stand in the training set, "
      f"which would make the evaluation worthless: {remedy}. The first:{first}"
    )


def _is_asked(image: str, caption: str, asked: dict[str, list[str]]) -> bool:
  words = re.compile(rf"(?<!\w){re.escape(caption)}(?!\w)")
  return any(words.search(text) for text in asked.get(image, ()))


def _key(pair: Pair) -> Pair:
  image, caption = pair
  return posixpath.basename(image), " ".join(caption.casefold().split()).rstrip(" .")
