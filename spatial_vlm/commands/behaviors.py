"""Distil correct chains into named behaviors, and index them for retrieval.

The policy answers training records in full chains. With --config.chains, a file of chains that `synthesize` wrote takes
their place, and neither policy nor images are needed. Chains that are right and whose numbers agree are verified.
--config.extractor says how behaviors are made of them: from the comparison that they end in (pattern), from similar
reasonings (clusters), or by a teacher that reflects on each (teacher).

Writes WORKDIR/index (searched by ScaNN), behaviors.yaml (the handbook, to read and edit) and conversations.jsonl (the
verified chains, most of them in the short form that cites its behavior: `sft` trains on them). To review the handbook,
edit behaviors.yaml and start the same command with --config.review=WORKDIR/behaviors.yaml: the index is then made from
the edited file. After an interruption, the same command resumes: answers of the policy and of a teacher are stored.

  spatial-vlm behaviors --config configs/behaviors.py:tiny --workdir runs/behaviors
  spatial-vlm behaviors --config configs/behaviors.py:chains --config.chains=runs/synthesize/chains.jsonl \\
    --config.evaluation=vsr/test.jsonl --workdir runs/behaviors
"""

import argparse
from collections.abc import Sequence

from etils import epath

from spatial_vlm import answers
from spatial_vlm.commands.ending import ending, leaf
from spatial_vlm.config import Config, UsageError, snapshot
from spatial_vlm.data import conversations
from spatial_vlm.data.split_guard import is_held_out
from spatial_vlm.evaluation.results import read_recalls
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.questions import QuestionBuilder, Recall
from spatial_vlm.inputs import check_inputs
from spatial_vlm.remote import write_whole
from spatial_vlm.reuse.chains.chain_check import reading_report
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.embedding.embedder import load_embedder
from spatial_vlm.reuse.handbook import review_file
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.reuse.handbook.handbook import Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.reuse.index.index_folder import save_index
from spatial_vlm.synthesis.text_teacher import check_text_teacher
from spatial_vlm.tasks import find_training_task
from spatial_vlm.train.behavior_data import training_examples
from spatial_vlm.train.behavior_sources import (
  REVIEW_FILE,
  prepare_extraction,
  reviewed_behaviors,
)
from spatial_vlm.train.chain_sources import chains_of_file, chains_of_policy, split_name

HARMLESS = (
  *("evaluation", "extractor", "min_support", "*_similarity", "max_entries", "max_handbook_tokens"),
  *("max_instruction_tokens", "behavior_tokens", "embedder", "text_embedder", "review", "recalls"),
  *("full_share", "in_flight", "mesh.*", "ask.*"),
)
"""Settings that may change between two starts: the answers do not depend on them, and everything else is made again."""


def run(config: Config, workdir: epath.Path, args) -> None:
  with user_errors():
    check(config)
    check_inputs(config, inputs(config))
    task = find_training_task(config.task)
    embedder = load_embedder(config.embedder)
    handbook = Handbook(config.max_entries, config.max_handbook_tokens)
    min_similarity = config.min_similarity
    index = BehaviorIndex(
      handbook, embedder, embedder.min_similarity if min_similarity is None else min_similarity
    )
    recalls = read_recalls(config.recalls)
    source = (chains_of_file if config.chains else chains_of_policy)(config, task, workdir)
    reviewed = reviewed_behaviors(config, workdir, source.count_tokens)
    extract = prepare_extraction(config, workdir, source.count_tokens) if reviewed is None else None
    snapshot(config, workdir, HARMLESS)
  solutions, images = source.read()
  if extract:
    found, unused = extract(solutions)
    for reason, count in unused.most_common():
      print(f"not used: {count} ({reason})")
    index.upsert(found, recalls)
  else:
    found = reviewed or []
    index.upsert(found)
  if not index.handbook:
    raise UsageError(why_empty(config, found, solutions))
  save_index(index, workdir / "index", config.embedder)
  kept = index.handbook.behaviors
  if reviewed is None:
    write_whole(workdir / REVIEW_FILE, review_file.render(kept, reasonings(solutions, kept)))
  questions = QuestionBuilder(task, "chain", Recall(index, config.behavior_tokens))
  examples = training_examples(questions, solutions, images, config.full_share)
  conversations.write(workdir / "conversations.jsonl", examples.rows)
  if len(found) > len(kept):
    print(f"merged or dropped by the limits on the handbook: {len(found) - len(kept)} behaviors")
  for behavior in kept:
    print(f"{behavior.line}  [chains: {len(behavior.provenance)}]")
  print(f"comparisons: {reading_report(solutions)}")
  print(f"{workdir / 'conversations.jsonl'}: {', '.join(examples.report())}")


def inputs(config: Config) -> list[str]:
  """Returns the leaves that name files to read."""
  source = ["chains"] if config.chains else ["checkpoint", "data.records", "data.images"]
  return [*source, "evaluation", "review"]


def why_empty(config: Config, found: Sequence[Behavior], solutions: Sequence[Solution]) -> str:
  """Returns why the handbook has no behavior, and what to do."""
  if found:
    best = max(found, key=lambda b: b.rank)
    return (
      f"max_handbook_tokens={config.max_handbook_tokens} drops all {len(found)} behaviors that were found; the best "
      f"one ({best.name}) has {best.tokens} tokens; raise max_handbook_tokens"
    )
  return (
    f"no procedure is shared by {config.min_support} verified chains among {len(solutions)} answers; give a policy "
    "that answers more of them right, more records, a lower min_support or another extractor "
    f"({reading_report(solutions)})"
  )


def reasonings(solutions: Sequence[Solution], behaviors: Sequence[Behavior]) -> dict[str, str]:
  """Returns record → Reasoning of the chains that behaviors come from."""
  sources = {record for behavior in behaviors for record in behavior.provenance}
  parsed = {s.record: answers.STATEMENT.parse(s.text) for s in solutions if s.record in sources}
  return {
    record: answer.steps["reasoning"]
    for record, answer in parsed.items()
    if answer is not None and answer.form == "chain"
  }


def check(config: Config) -> None:
  """Raises UsageError for a teacher that cannot be asked, and for records of a split to measure on."""
  find_training_task(config.task)
  if config.extractor == "teacher":
    check_text_teacher(config.ask)
  for name, split in (
    ("data.split", split_name(config)),
    ("chains", epath.Path(config.chains).stem),
  ):
    if is_held_out(split):
      raise UsageError(
        f"{name} is {split!r}, a split to measure on; behaviors come from training records"
      )


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  words = ["sft", leaf("data.conversations", workdir / "conversations.jsonl")]
  words += [leaf("checkpoint", config.checkpoint)] if config.checkpoint else []
  return ending(
    f"index, {REVIEW_FILE} and conversations.jsonl in {workdir}",
    args.config,
    [*words, leaf("data.images", config.data.images), "--workdir", "runs/sft_reuse"],
    ["evaluate", leaf("method", "reuse"), leaf("behaviors", workdir / "index")],
  )
