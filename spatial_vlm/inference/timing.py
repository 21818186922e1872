"""Seconds of questions that are asked alone, retrieval included.

The questions are built once before the clock starts, so that nothing compiles later. Before each question, what caches
hold of earlier captions is dropped, as if a new caption came. A resumed run therefore measures what a fresh one does.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence

from spatial_vlm.data.records import Example, Take, UnusableRecord
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.inference.generation import BatchGenerator
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.processor.image import UnreadableImage


def with_seconds(
  predictions: Sequence[Prediction], generator: BatchGenerator, examples: Take, count: int
) -> list[Prediction]:
  """Returns the predictions, the first `count` with the seconds that each takes when it is asked alone."""
  seconds = time_one_by_one(generator, examples, count)
  return [dataclasses.replace(p, seconds=seconds.get(p.id)) for p in predictions]


def time_one_by_one(generator: BatchGenerator, examples: Take, count: int) -> dict[int, float]:
  """Measures seconds from image and statement to the parsed answer, one question at a time, retrieval included.

  The keys and values of behaviors are computed before, as they are once for all questions.
  """
  asked: list[Example] = []
  compiled = set()
  for example in _first(examples, count):
    try:
      row = generator.encode(example)
    except UnusableRecord:
      continue
    generator.fill_prefixes(row, example.id)
    if (program := generator.program(row)) not in compiled:
      generator.answer([row], [example.id])
      compiled.add(program)
    asked.append(example)
  seconds: dict[int, float] = {}
  for example in asked:
    generator.forget_captions()
    start = time.perf_counter()
    generator.answer([generator.encode(example)], [example.id])
    seconds[example.id] = time.perf_counter() - start
  return seconds


def choosing_seconds(builder: QuestionBuilder, examples: Take, count: int) -> dict[int, float]:
  """Measures the seconds in which the behaviors of the first `count` questions are chosen, one at a time."""
  captions = {e.id: e.record.caption for e in _first(examples, count)}
  for caption in captions.values():
    builder(caption)
  seconds: dict[int, float] = {}
  for id, caption in captions.items():
    builder.forget_captions()
    start = time.perf_counter()
    builder(caption)
    seconds[id] = time.perf_counter() - start
  return seconds


def _first(examples: Take, count: int) -> Iterator[Example]:
  """Yields the usable ones of the first `count` examples; the others are reported when batches are made."""
  for index in range(min(count, len(examples))):
    try:
      yield examples[index]
    except (UnreadableImage, UnusableRecord):
      continue
