"""Distil a policy's correct answers into named behaviors, and index them for retrieval.

The policy answers training records in full chains. Chains that are right and whose numbers agree are verified;
procedures that many of them share become behaviors (WORKDIR/index, searched by ScaNN). WORKDIR/conversations.jsonl
contains the same verified answers, most of them in the short form that cites its behavior: `sft` trains on them.
After an interruption, the same command resumes with the first batch of answers that is missing.

  spatial-vlm behaviors --config configs/behaviors.py:tiny --workdir runs/behaviors
"""

from etils import epath

from spatial_vlm import sharding
from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config, UsageError, check_algorithm, check_positive, snapshot
from spatial_vlm.data import conversations
from spatial_vlm.data.records import Take
from spatial_vlm.evaluation.results import read_recalls
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.generation import (
  BatchGenerator,
  QuestionEncoder,
  check_batch,
  inference_engine,
  parsed_verdicts,
)
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import prompt_format
from spatial_vlm.inference.questions import QuestionBuilder, Recall
from spatial_vlm.inference.stored_answers import AnswerStore, stored_answers
from spatial_vlm.reuse.behaviors import Handbook
from spatial_vlm.reuse.embedder import LexicalEmbedder
from spatial_vlm.reuse.extraction import extract_behaviors
from spatial_vlm.reuse.index import BehaviorIndex
from spatial_vlm.reuse.solutions import Solution
from spatial_vlm.tasks import find_task
from spatial_vlm.train.behavior_data import training_examples

HELD_OUT = ("validation", "val", "dev", "test")
"""Splits that no behavior may come from."""
HARMLESS = (
  *("min_support", "max_entries", "max_handbook_tokens", "behavior_tokens", "min_similarity"),
  *("recalls", "full_share", "in_flight", "mesh.*"),
)
"""Settings that may change between two starts: the answers do not depend on them, and everything else is made again."""


def run(config: Config, workdir: epath.Path, args) -> None:
  with user_errors():
    check(config)
    data, task = config.data, find_task(config.task)
    source = task.read(data.records, data.images, None, data.max_bad_share)
    examples = Take(source, config.limit or len(source))
    mesh = sharding.make_mesh(config.mesh)
    check_batch(config, mesh)
    policy = load_policy(config.checkpoint, mesh)
    handbook = Handbook(config.max_entries, config.max_handbook_tokens)
    index = BehaviorIndex(handbook, LexicalEmbedder(), config.min_similarity)
    recalls = read_recalls(config.recalls)
    snapshot(config, workdir, HARMLESS)
  format = prompt_format(config.prompt_shapes, policy.dtype)
  encode = QuestionEncoder(policy.processor, format, QuestionBuilder(task, "chain"))
  engine = inference_engine(policy, mesh)
  generator = BatchGenerator(policy, engine, encode, config.max_new_tokens, parsed_verdicts)
  store = AnswerStore.from_config(workdir, config)
  predictions = stored_answers(store, generator, examples, "full chains")
  split = epath.Path(data.records).stem
  solutions = [
    Solution(f"{split}:{p.id}", p.caption, p.relation, None, None, p.text, p.label)
    for p in predictions
  ]
  count_tokens = lambda text: len(policy.processor.encode_text(text))  # noqa: E731
  index.upsert(extract_behaviors(solutions, count_tokens, config.min_support), recalls)
  if not index.handbook:
    raise UsageError(
      f"no procedure is shared by {config.min_support} verified chains among {len(solutions)} answers; give a policy "
      "that answers more of them right, more records, or a lower min_support"
    )
  index.save(workdir / "index")
  questions = QuestionBuilder(task, "chain", Recall(index, config.behavior_tokens))
  images = [source.image_name(p.id) for p in predictions]
  rows = training_examples(questions, solutions, images, config.full_share)
  conversations.write(workdir / "conversations.jsonl", rows)
  for behavior in index.handbook.behaviors:
    print(f"{behavior.line}  [{len(behavior.provenance)} chains]")
  print(
    f"{len(rows)} verified answers of {len(predictions)} are in {workdir / 'conversations.jsonl'}"
  )


def check(config: Config) -> None:
  """Raises UsageError for a config of another command, and for settings out of their range."""
  check_algorithm(config, "behaviors")
  find_task(config.task)
  check_positive(config, "batch_size", "in_flight", "max_new_tokens", "min_support")
  if epath.Path(config.data.records).stem in HELD_OUT:
    raise UsageError(
      f"data.records is {config.data.records}, a split to measure on; behaviors come from training records"
    )
  if not 0 <= config.full_share <= 1:
    raise UsageError(f"full_share is {config.full_share}; it is a share, from 0 to 1")


COMMAND = Command("behaviors", run, check=check)
