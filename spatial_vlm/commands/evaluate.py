"""Measure a method on held-out records: accuracy with its interval, boxes, tokens, seconds per answer.

Every answer is stored in WORKDIR/predictions, one file a batch; results.json and a table on the terminal follow from
them. Methods: `majority` (no model), `zero-shot` (the likelier of yes and no), `direct`, `chain`, and `reuse` (a
recalled behavior and the short form, the full chain where nothing is similar enough). Interrupted, the same
command goes on with the first batch that is missing.

  spatial-vlm evaluate --config.method=chain --config.checkpoint=runs/sft/export --workdir runs/evaluate_sft
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath

from spatial_vlm import sharding
from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config, UsageError, check_positive, snapshot
from spatial_vlm.data.reading import Reader
from spatial_vlm.data.records import (
  JsonlSource,
  Take,
  UnusableRecord,
  read_records,
)
from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.evaluation import results_report, scores
from spatial_vlm.evaluation.predictions import Prediction, majority_predictions
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.generation import (
  BatchGenerator,
  check_batch,
  on_mesh,
  stored_answers,
  written_verdicts,
)
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import Generation, Policy, PromptShape
from spatial_vlm.inference.questions import Plan, plain_question, plan_answers
from spatial_vlm.model.qwen3_vl import prefill
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.reuse.embedder import LexicalEmbedder
from spatial_vlm.reuse.index import BehaviorIndex
from spatial_vlm.types import Prompts

METHODS = ("majority", "zero-shot", "direct", "chain", "reuse")
HARMLESS = ("timed_questions", "in_flight", "mesh.*")
"""Settings that may change between two starts: the stored answers do not depend on them."""


def run(config: Config, workdir: epath.Path, args) -> None:
  with user_errors():
    check(config)
    data = config.data
    source = JsonlSource(data.records, data.images, data.boxes or None, data.max_bad_share)
    examples = Take(source, config.limit or len(source))
    answer = majority(config) if config.method == "majority" else model_answers(config, workdir)
    snapshot(config, workdir, HARMLESS)
  predictions = answer(examples)
  (workdir / "predictions.jsonl").write_text("".join(p.to_json() + "\n" for p in predictions))
  figures = scores.score(predictions, META_CATEGORY)
  row = results_report.result_row(config.method, figures)
  (workdir / "scores.json").write_text(json.dumps(figures, indent=2) + "\n")
  (workdir / "results.json").write_text(results_report.results_json([row]))
  print(results_report.table([row]))


def check(config: Config) -> None:
  """Raises UsageError for settings out of their range."""
  if config.method not in METHODS:
    raise UsageError(f"method is {config.method!r}; choose one of {', '.join(METHODS)}")
  check_positive(config, "batch_size", "in_flight", "max_new_tokens")


def majority(config: Config) -> Callable[[Take], list[Prediction]]:
  """Examples -> the likelier label of their relation."""
  data = config.data
  train, _ = read_records(data.training_records, data.images, data.max_bad_share)
  labels = [(record.relation, record.label) for record in train]

  def answer(examples: Take) -> list[Prediction]:
    read = Reader(examples, lambda example: example, data.max_bad_share)
    return majority_predictions(labels, read)

  return answer


def model_answers(config: Config, workdir: epath.Path) -> Callable[[Take], list[Prediction]]:
  """Examples -> stored answers, and those still missing; then the timed questions."""
  mesh = sharding.make_mesh(config.mesh)
  check_batch(config, mesh)
  policy = on_mesh(load_policy(config.checkpoint), mesh)
  index = None
  if config.method == "reuse":
    index = BehaviorIndex.load(config.behaviors, LexicalEmbedder())
    index.handbook.refuse_leaks(splits=(epath.Path(config.data.records).stem,))
  shape = PromptShape(config.prompt_tokens, config.patches)
  plan = functools.partial(planned, config.method, index, config.behavior_tokens)
  judge = likelier if config.method == "zero-shot" else written_verdicts
  asker = BatchGenerator(policy, mesh, shape, config.max_new_tokens, plan, judge)

  def answer(examples: Take) -> list[Prediction]:
    predictions = stored_answers(
      workdir / "predictions",
      asker,
      examples,
      config.batch_size,
      config.in_flight,
      config.data.max_bad_share,
      config.method,
    )
    return with_seconds(predictions, time_one_by_one(asker, examples, config.timed_questions))

  return answer


def planned(method: str, index: BehaviorIndex | None, behavior_tokens: int, caption: str) -> Plan:
  """In which form the caption is asked about."""
  if index is not None:
    return plan_answers(index, [caption], behavior_tokens)[0]
  return plain_question(caption, "chain" if method == "chain" else "direct")


def time_one_by_one(asker: BatchGenerator, examples: Take, count: int) -> dict[int, float]:
  """Seconds from a picture and a statement to the parsed answer, one question at a time, retrieval included.

  The first question is asked once before, so that compilation is not measured.
  """
  seconds: dict[int, float] = {}
  for index in range(min(count, len(examples))):
    try:
      example = examples[index]
      for _ in range(1 if seconds else 2):
        start = time.perf_counter()
        asker.answer([asker.encode(example)], [example.id])
        seconds[example.id] = time.perf_counter() - start
    except (UnreadableImage, UnusableRecord):
      continue  # reported when the batches were made
  return seconds


def with_seconds(predictions: Sequence[Prediction], seconds: dict[int, float]) -> list[Prediction]:
  return [dataclasses.replace(p, seconds=seconds.get(p.id)) for p in predictions]


def likelier(policy: Policy, prompts: Prompts, texts: Sequence[Generation]) -> list[int]:
  """1 where "Yes" is likelier than "No" as the first token of the answer, else 0."""
  (yes,), (no,) = (policy.processor.encode_text(word) for word in ("Yes", "No"))
  scores = first_token_logits(policy.params, prompts, policy.model)
  return np.asarray(scores[:, yes] > scores[:, no]).astype(int).tolist()


@functools.partial(jax.jit, static_argnames="model")
def first_token_logits(params, prompts, model):
  return prefill(params, model, prompts)[0]


COMMAND = Command("evaluate", run, check=check)
