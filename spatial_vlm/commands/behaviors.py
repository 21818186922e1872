"""Distil a policy's correct answers into named behaviors, and index them for retrieval.

The policy answers training records in full chains. Chains that are right and whose numbers agree are verified;
procedures that many of them share become behaviors (WORKDIR/index, searched by ScaNN). WORKDIR/conversations.jsonl
holds the same verified answers, most of them in the short form that cites its behavior: `sft` teaches it from them.
Interrupted, the same command goes on with the first batch of answers that is missing.

  spatial-vlm behaviors --config configs/behaviors.py:tiny --workdir runs/behaviors
"""

import functools

from etils import epath

from spatial_vlm import sharding
from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config, UsageError, check_positive, snapshot
from spatial_vlm.data import conversations
from spatial_vlm.data.conversations import Conversation
from spatial_vlm.data.records import JsonlSource, Take
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.generation import BatchGenerator, check_batch, on_mesh, stored_answers
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import PromptShape
from spatial_vlm.inference.questions import plain_question, plan_answers
from spatial_vlm.reuse.behaviors import Handbook
from spatial_vlm.reuse.embedder import LexicalEmbedder
from spatial_vlm.reuse.extraction import (
  Solution,
  extract_behaviors,
  short_from_chain,
  verified_chain,
)
from spatial_vlm.reuse.index import BehaviorIndex
from spatial_vlm.tasks.statements import question

HELD_OUT = ("validation", "val", "dev", "test")
"""Splits that teach nothing."""
HARMLESS = (
  *("min_support", "max_entries", "max_handbook_tokens", "behavior_tokens", "min_similarity"),
  *("full_share", "in_flight", "mesh.*"),
)
"""Settings that may change between two starts: the answers do not depend on them, and what does is made anew."""


def run(config: Config, workdir: epath.Path, args) -> None:
  with user_errors():
    check(config)
    data = config.data
    source = JsonlSource(data.records, data.images, max_bad_share=data.max_bad_share)
    examples = Take(source, config.limit or len(source))
    mesh = sharding.make_mesh(config.mesh)
    check_batch(config, mesh)
    policy = on_mesh(load_policy(config.checkpoint), mesh)
    handbook = Handbook(config.max_entries, config.max_handbook_tokens)
    index = BehaviorIndex(handbook, LexicalEmbedder(), config.min_similarity)
    snapshot(config, workdir, HARMLESS)
  shape = PromptShape(config.prompt_tokens, config.patches)
  asker = BatchGenerator(
    policy, mesh, shape, config.max_new_tokens, functools.partial(plain_question, form="chain")
  )
  predictions = stored_answers(
    workdir / "predictions",
    asker,
    examples,
    config.batch_size,
    config.in_flight,
    data.max_bad_share,
    "full chains",
  )
  split = epath.Path(data.records).stem
  solutions = [solution(split, p) for p in predictions]
  count_tokens = lambda text: len(policy.processor.encode_text(text))  # noqa: E731
  found = extract_behaviors(solutions, count_tokens, config.min_support)
  index.upsert(found)
  if not index.handbook:
    raise UsageError(
      f"no procedure is shared by {config.min_support} verified chains among {len(solutions)} answers; give a policy "
      "that answers more of them right, more records, or a lower min_support"
    )
  index.save(workdir / "index")
  images = [source.image_name(p.id) for p in predictions]
  rows = training_examples(index, solutions, images, config.full_share, config.behavior_tokens)
  conversations.write(workdir / "conversations.jsonl", rows)
  for behavior in index.handbook.behaviors:
    print(f"{behavior.line}  [{len(behavior.provenance)} chains]")
  print(
    f"{len(rows)} verified answers of {len(predictions)} are in {workdir / 'conversations.jsonl'}"
  )


def check(config: Config) -> None:
  """Raises UsageError for settings out of their range."""
  check_positive(config, "batch_size", "in_flight", "max_new_tokens", "min_support")
  if epath.Path(config.data.records).stem in HELD_OUT:
    raise UsageError(
      f"data.records is {config.data.records}, a split to measure on; behaviors come from training records"
    )
  if not 0 <= config.full_share <= 1:
    raise UsageError(f"full_share is {config.full_share}; it is a share, from 0 to 1")


def solution(split: str, p: Prediction) -> Solution:
  return Solution(f"{split}:{p.id}", p.caption, p.relation, None, None, p.text, p.label)


def training_examples(
  index: BehaviorIndex,
  solutions: list[Solution],
  images: list[str],
  full_share: float,
  behavior_tokens: int,
) -> list[Conversation]:
  """Verified answers as training data: every 1/full_share-th stays a full chain, the others come in the short form."""
  rows = []
  plans = plan_answers(index, [s.caption for s in solutions], behavior_tokens)
  for solution, image, plan in zip(solutions, images, plans, strict=True):
    answer = verified_chain(solution)
    if answer is None:
      continue
    if plan.behavior is None or int((len(rows) + 1) * full_share) > int(len(rows) * full_share):
      rows.append(Conversation(image, question(solution.caption, "chain"), solution.text))
    else:
      short = short_from_chain(plan.behavior, answer, solution.names)
      rows.append(Conversation(image, plan.question, short))
  return rows


COMMAND = Command("behaviors", run, check=check)
