"""Where the behaviors of a handbook come from: chains, by an extractor, or a file that a person edited."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from etils import epath

from spatial_vlm.config import Config, UsageError
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.embedding.embedder import load_embedder
from spatial_vlm.reuse.extraction.extractor import ExtractionSettings
from spatial_vlm.reuse.extraction.extractors import extract, find_extractor
from spatial_vlm.reuse.handbook import review_file
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.reuse.handbook.handbook import Handbook
from spatial_vlm.synthesis.text_teacher import open_text_teacher, read_text_key

HELD_OUT = ("validation", "val", "dev", "test")
"""Splits that no behavior may come from."""
REVIEW_FILE = "behaviors.yaml"


class Extracted(NamedTuple):
  """Behaviors of an extractor, and what it could not use."""

  behaviors: list[Behavior]
  unused: collections.Counter[str]
  """Reason → chains, candidates or questions that gave no behavior."""


def prepare_extraction(
  config: Config, workdir: epath.Path, count_tokens: Callable[[str], int]
) -> Callable[[Sequence[Solution]], Extracted]:
  """Reads what the extractor needs, and returns the function that extracts behaviors of solutions.

  Raises UsageError for an encoder that cannot be loaded, and for a
  teacher without an API key.
  """
  settings = ExtractionSettings(
    count_tokens,
    config.min_support,
    config.max_instruction_tokens,
    load_embedder(config.text_embedder),
    config.cluster_similarity,
    config.duplicate_similarity,
    config.ask.chains_per_relation,
  )
  extractor = find_extractor(config.extractor)
  key = read_text_key(config.ask) if config.extractor == "teacher" else None

  def extracted(solutions: Sequence[Solution]) -> Extracted:
    with contextlib.ExitStack() as stack:
      ask = None
      if key is not None:
        ask = stack.enter_context(open_text_teacher(config.ask, key, workdir / "journal"))
      found = extract(extractor, solutions, dataclasses.replace(settings, ask=ask))
    if ask:
      most = f"ask.estimate.max_prompt_tokens={ask.max_prompt_tokens}"
      settings.refused[f"the question may be longer than {most}"] = len(ask.refused)
    return Extracted(found, +settings.refused)

  return extracted


def reviewed_behaviors(
  config: Config, workdir: epath.Path, count_tokens: Callable[[str], int]
) -> list[Behavior] | None:
  """Returns the behaviors of the file `review`; None without one.

  Raises UsageError for behaviors that are too long, and where an edited file would be overwritten; LeakError for
  behaviors from held-out splits.
  """
  if config.review:
    behaviors = review_file.read(config.review, count_tokens)
    most = config.max_instruction_tokens
    if long := [f"{b.name} has {b.tokens}" for b in behaviors if b.tokens > most]:
      raise UsageError(
        f"{config.review}: {', '.join(long)} tokens, more than max_instruction_tokens={most}; shorten the instruction"
      )
    for behavior in behaviors:  # One by one: equal behaviors become one in a handbook.
      Handbook(1, behavior.tokens, (behavior,)).refuse_leaks(HELD_OUT)
    return behaviors
  file = workdir / REVIEW_FILE
  if file.exists() and review_file.is_edited(file.read_text()):
    raise UsageError(
      f"{file} was edited and would be overwritten; use it with --config.review={file}, or move it away"
    )
  return None
