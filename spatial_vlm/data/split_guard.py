"""No statement that a model is tested on may be among those it learns from.

The two splits of VSR were drawn from the same statements: 830 of the 1,222 pairs of the zero-shot test split stand in
the random training split, so that one must not be trained on when the other is measured.
"""

import posixpath
from collections.abc import Iterable

from spatial_vlm.config import UsageError

Pair = tuple[str, str]
"""Image and caption."""


def shared_pairs(training: Iterable[Pair], evaluation: Iterable[Pair]) -> list[Pair]:
  """The evaluation pairs that stand in the training set as well.

  An image is known by its base name; captions are compared without regard to case, spaces and a final full stop.
  """
  known = {_key(pair) for pair in training}
  return [pair for pair in evaluation if _key(pair) in known]


def refuse_shared(training: Iterable[Pair], evaluation: Iterable[Pair], remedy: str) -> None:
  """Raises UsageError, with the number and the first of the shared pairs and the `remedy`, if there are any."""
  evaluation = list(evaluation)
  if shared := shared_pairs(training, evaluation):
    first = "".join(f"\n  {image}: {caption}" for image, caption in shared[:3])
    raise UsageError(
      f"{len(shared)} of the {len(evaluation)} evaluation pairs of image and caption stand in the training set, "
      f"which would make the evaluation worthless: {remedy}. The first:{first}"
    )


def _key(pair: Pair) -> Pair:
  image, caption = pair
  return posixpath.basename(image), " ".join(caption.casefold().split()).rstrip(" .")
