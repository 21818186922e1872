"""Keeps statements that a model is tested on out of its training data.

The two published splits of VSR were drawn from the same statements: 830 of the 1,222 pairs of the zero-shot test split
are in the random training split. A model trained on one must not be measured on the other.
"""

import collections
import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Sequence

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data import vsr

HELD_OUT = ("validation", "val", "dev", "test")
"""Names of splits to measure on."""
_TABLES = (".tsv", ".json")
"""Suffixes of benchmarks' tables; these may hold gigabytes of images, so they are not read to see it."""
Pair = tuple[str, str]
"""Image and caption. The image is "" if its name says nothing, as in a benchmark's file: the caption alone is compared.
"""


def is_held_out(split: str) -> bool:
  """Whether a split is one to measure on, by its name.

  >>> is_held_out("test"), is_held_out("vsr_dev"), is_held_out("train"), is_held_out("contest")
  (True, True, False, False)
  """
  return any(word in HELD_OUT for word in re.split(r"[\W_]+", split.lower()))


def read_pairs(file: epath.PathLike) -> list[Pair]:
  """Returns the pairs of a file of records in VSR's format.

  Raises UsageError if it holds none, as a benchmark's table does, since nothing would be guarded, and if a line cannot
  be read.
  """
  is_table = epath.Path(file).suffix.lower() in _TABLES
  found = None if is_table else vsr.read_files([epath.Path(file)])
  if found is None or not found.listed:
    first = f" {found.bad[0]}" if found and found.bad else ""
    raise UsageError(
      f"{os.fspath(file)} holds no record to guard against; give JSON lines or Parquet in VSR's format. A benchmark's "
      "table names its images otherwise than training data, so that no pair would match: for VSR-zeroshot give VSR's "
      f"splits/zeroshot/test.jsonl; the other benchmarks share no statement with VSR.{first}"
    )
  if found.bad:
    raise UsageError(
      f"{len(found.bad)} lines of {os.fspath(file)} cannot be read, so that their statements could be in the training "
      f"data unseen; repair them: {found.bad[0]}"
    )
  return [(record.image, record.caption) for record in found.records]


def shared_pairs(training: Iterable[Pair], evaluation: Iterable[Pair]) -> list[Pair]:
  """Returns the evaluation pairs that are also in the training set.

  Images are compared by base name; captions without regard to case, spaces and a final full stop.
  """
  known = {_key(pair) for pair in training}
  return [pair for pair in evaluation if _key(pair) in known]


def asked_pairs(questions: Iterable[Pair], evaluation: Iterable[Pair]) -> list[Pair]:
  """Returns the evaluation pairs whose caption is part of a question about their image, in any wording."""
  asked = collections.defaultdict(list)
  for question in questions:
    image, text = _key(question)
    asked[image].append(text)
  return [pair for pair in evaluation if _is_asked(*_key(pair), asked)]


def refuse_shared_records(
  training: Collection[Pair],
  evaluation_files: Iterable[str],
  remedy: str,
  find: Callable[[Iterable[Pair], Iterable[Pair]], list[Pair]] = shared_pairs,
) -> None:
  """Raises UsageError when the training set contains evaluation pairs.

  Args:
    training: image and caption of each training record, or image and question.
    evaluation_files: files of records to keep out of training; empty names are skipped.
    remedy: what the user can do, for the message.
    find: `shared_pairs`, or `asked_pairs` if `training` holds questions.
  """
  for file in filter(None, evaluation_files):
    evaluation = read_pairs(file)
    refuse_shared_pairs(find(training, evaluation), len(evaluation), file, remedy)


def refuse_shared_pairs(shared: Sequence[Pair], evaluated: int, name: str, remedy: str) -> None:
  """Raises UsageError if any of the `evaluated` pairs of the evaluation set `name` are `shared` with training."""
  if shared:
    first = "".join(f"\n  {image}: {caption}" for image, caption in shared[:3])
    raise UsageError(
      f"{len(shared)} of the {evaluated} evaluation pairs of image and caption in {name} are in the training set, "
      f"which makes the evaluation worthless: {remedy}. The first:{first}"
    )


def pair_digest(pair: Pair) -> str:
  """Returns a short digest of a pair, equal for the pairs that `shared_pairs` takes for the same.

  That of ("", caption) is a digest of the caption alone.
  """
  return hashlib.sha256("\n".join(_key(pair)).encode()).hexdigest()[:12]


def _is_asked(image: str, caption: str, asked: dict[str, list[str]]) -> bool:
  words = re.compile(rf"(?<!\w){re.escape(caption)}(?!\w)")
  return any(words.search(text) for text in asked.get(image, ()))


def _key(pair: Pair) -> Pair:
  image, caption = pair
  return posixpath.basename(image), " ".join(caption.casefold().split()).rstrip(" .")
