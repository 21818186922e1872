"""Stored answers: one part file for each batch, so that an interrupted run generates only the missing batches."""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from etils import epath

from spatial_vlm.config import Config, UsageError
from spatial_vlm.data.pipeline import ordered_batches
from spatial_vlm.data.reading import ReadOptions
from spatial_vlm.data.records import Take
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.inference.generation import BatchGenerator
from spatial_vlm.jsonl import read_object
from spatial_vlm.progress import progress_bar
from spatial_vlm.remote import write_whole

PART = "part-{}.jsonl"
ORIGIN = "origin.json"
"""What else than the settings the stored answers of a folder depend on."""


@dataclasses.dataclass(frozen=True)
class AnswerStore:
  """Where answers are stored and how the missing ones are generated."""

  folder: epath.Path
  batch_size: int
  in_flight: int
  """Batches that are answered at a time."""
  max_bad_share: float
  """Share of the examples that may be unusable."""

  @classmethod
  def from_config(cls, workdir: epath.Path, config: Config) -> Self:
    """Makes the store of a command's workdir."""
    return cls(
      workdir / "predictions", config.batch_size, config.in_flight, config.data.max_bad_share
    )

  def part(self, number: int) -> epath.Path:
    """Returns the path of the part file of one batch."""
    return self.folder / PART.format(f"{number:05d}")


def stored_answers(
  store: AnswerStore, generator: BatchGenerator, examples: Take, title: str
) -> list[Prediction]:
  """Returns the answers to all examples: those that earlier starts stored, then the missing ones, which it stores.

  `title` names the progress bar.
  """
  store.folder.mkdir(parents=True, exist_ok=True)
  batches = -(-len(examples) // store.batch_size)
  predictions: list[Prediction] = []
  done = 0
  while done < batches and (stored := read_part(store.part(done))) is not None:
    predictions += stored
    done += 1
  start = min(done * store.batch_size, len(examples))
  missing = ordered_batches(
    examples,
    generator.encode,
    lambda rows, ids: (rows, ids.tolist()),
    store.batch_size,
    ReadOptions(max_bad_share=store.max_bad_share),
    start=start,
    skipped=sorted({*range(start)} - {p.id for p in predictions}),
  )
  right = sum(p.right for p in predictions)
  results = in_order(lambda batch: generator.answer(*batch), missing, store.in_flight)
  with progress_bar(title, batches, done=done, unit="batch", compiles=True) as bar:
    for number, answered in enumerate(results, done):
      lines = [*(p.to_json() for p in answered), end_line(len(answered))]
      store.part(number).write_text("".join(f"{line}\n" for line in lines))
      predictions += answered
      right += sum(p.right for p in answered)
      bar.set_postfix(accuracy=f"{right / max(len(predictions), 1):.3f}")
      bar.update()
  return predictions


def end_line(answers: int) -> str:
  """Returns the last line of a part; a part without it was being written when the run was killed."""
  return json.dumps({"answers": answers})


def read_part(path: epath.Path) -> list[Prediction] | None:
  """Reads the predictions of a finished part; None where it is missing or unfinished, or a line was deleted.

  Raises ValueError, with file and line, for a line that holds no prediction.
  """
  if not path.exists():
    return None
  *lines, last = path.read_bytes().splitlines() or [b""]
  if last != end_line(len(lines)).encode():
    return None
  predictions = []
  for number, line in enumerate(lines, start=1):
    try:
      predictions.append(Prediction.from_json(line))
    except ValueError as error:
      raise ValueError(
        f"{path}:{number}: {error}; delete the line, and its batch and those after it are answered again"
      ) from error
  return predictions


def in_order(work: Callable[[Any], Any], items: Iterable[Any], in_flight: int) -> Iterator[Any]:
  """Yields `work(item)` of each item in order, while threads work on `in_flight` of them.

  On a CPU the small products of decoding occupy one core: two batches occupy two. On an accelerator the answers of one
  batch are decoded while the next batch is generated. If reading fails, pending items finish before the error is
  raised.
  """
  waiting: collections.deque[Future] = collections.deque()
  pool = ThreadPoolExecutor(in_flight)
  try:
    for item in _failing_last(items):
      waiting.append(item if isinstance(item, Future) else pool.submit(work, item))
      if (
        len(waiting) > in_flight
      ):  # one more than the threads work on, so that none waits for the caller
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def _failing_last(items: Iterable[Any]) -> Iterator[Any]:
  """Yields the items; if reading them fails, yields a future that raises the error instead of raising it."""
  try:
    yield from items
  except Exception as error:
    future: Future = Future()
    future.set_exception(error)
    yield future


def refuse_other_origin(folder: epath.Path, origin: Mapping[str, str], setting: str) -> None:
  """Writes `origin` to ORIGIN before the first answer is stored; at later starts checks that it is the same.

  Args:
    folder: holds predictions/, or folders that do.
    origin: what the answers depend on, in the order that they depend on.
    setting: the setting that gives it, with its value, for the message.

  Raises:
    UsageError: the stored answers have another origin, or an unknown one; the message lists the differences.
  """
  file = folder / ORIGIN
  if not file.exists():
    parts = f"predictions/{PART.format('*')}"
    if any(next(iter(folder.glob(pattern)), None) for pattern in (parts, f"*/{parts}")):
      raise UsageError(
        f"{folder} holds answers without {ORIGIN}, from an earlier version: whether {setting} is what they were made "
        "with is unknown. Give another --workdir"
      )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(origin, indent=2) + "\n")
    return
  try:
    before = read_object(file)
  except ValueError as error:
    raise UsageError(f"{error}; put the file back, or give another --workdir") from error
  if list(before.items()) == list(origin.items()):
    return
  changes = [
    name if name in before and name in origin else f"{name} ({'new' if name in origin else 'gone'})"
    for name in sorted(before.keys() | origin.keys())
    if before.get(name) != origin.get(name)
  ]
  raise UsageError(
    f"{folder} holds answers that were made before {setting} changed: {', '.join(changes) or 'another order'}. Give "
    "another --workdir to answer anew, or what the stored answers were made with to continue"
  )
