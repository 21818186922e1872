"""Compare reuse with full chains and with other behaviors in the prompt, on the same held-out records.

Rows: the full chain; reuse (a recalled behavior and the short form, the full chain where none is recalled); the short
form without a behavior, with a wrong one, a random one, and all of them; reuse from parts of the handbook, and from
one with a behavior of every relation of VSR; and a policy that was trained on short answers without behaviors
(`bc_checkpoint`). WORKDIR gets results.json, report.md and a figure. After an interruption, the same command resumes
with the first batch of answers that is missing.

  spatial-vlm compare --config configs/compare.py:tiny --workdir runs/compare
"""

import argparse
import re

from etils import epath

from spatial_vlm import sharding
from spatial_vlm.commands.ending import ending
from spatial_vlm.config import Config, snapshot
from spatial_vlm.data.records import Take
from spatial_vlm.evaluation import reuse_comparison
from spatial_vlm.evaluation.results import results_json
from spatial_vlm.evaluation.reuse_comparison import Arm
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.comparison_arms import (
  BC_SFT,
  FULL_CHAIN,
  NO_BEHAVIOR,
  arms,
  behaviors_of,
)
from spatial_vlm.inference.generation import (
  check_batch,
  make_generator,
  parsed_verdicts,
)
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.questions import load_recall
from spatial_vlm.inference.stored_answers import AnswerStore, refuse_other_origin, stored_answers
from spatial_vlm.inference.timing import choosing_seconds, with_seconds
from spatial_vlm.inference.unfamiliar import warn_of_forms
from spatial_vlm.inputs import check_inputs
from spatial_vlm.remote import write_whole
from spatial_vlm.tasks import find_task

HARMLESS = ("timed_questions", "in_flight", "mesh.*", "handbook_shares", "bc_checkpoint")
"""Settings that may change between two starts. `refuse_other_origin` checks the answers of `bc_checkpoint`."""
INPUTS = (
  *("checkpoint", "bc_checkpoint", "behaviors"),
  *("data.records", "data.images", "data.boxes"),
)
"""Leaves that name files to read."""
FIGURE = "accuracy_tokens.png"


def run(config: Config, workdir: epath.Path, args) -> None:
  with user_errors():
    check_inputs(config, INPUTS)
    data, task = config.data, find_task(config.task)
    source = task.read(data.records, data.images, data.boxes or None, data.max_bad_share)
    examples = Take(source, config.limit or len(source))
    mesh = sharding.make_mesh(config.mesh)
    check_batch(config, mesh, in_slots=config.prompt_slots > 0)
    recall = load_recall(config.behaviors, config.behavior_tokens)
    recall.index.handbook.refuse_leaks((epath.Path(data.records).stem,), source.pairs)
    warn_of_forms(config.checkpoint, task, ["chain", "short"])
    policies = {"": load_policy(config.checkpoint, mesh)}
    if config.bc_checkpoint:
      policies[BC_SFT] = load_policy(config.bc_checkpoint, mesh)
    snapshot(config, workdir, HARMLESS)
    refuse_other_origin(workdir, recall.index.origin, f"behaviors {config.behaviors}")
    if config.bc_checkpoint:
      name = str(config.bc_checkpoint)
      folder, setting = arm_folder(workdir, BC_SFT), f"bc_checkpoint {name}"
      refuse_other_origin(folder, {"bc_checkpoint": name}, setting)
  questions = arms(task, recall, config.handbook_shares)
  if config.bc_checkpoint:
    questions[BC_SFT] = questions[NO_BEHAVIOR]
  measured: dict[str, Arm] = {}
  for name, builder in questions.items():
    policy = policies.get(name, policies[""])
    generator = make_generator(policy, mesh, builder, config, parsed_verdicts)
    store = AnswerStore.from_config(arm_folder(workdir, name), config)
    predictions = stored_answers(store, generator, examples, name)
    predictions = with_seconds(predictions, generator, examples, config.timed_questions)
    seconds = choosing_seconds(builder, examples, config.timed_questions)
    measured[name] = Arm(predictions, seconds, behaviors_of(name, builder, recall))
  measured = reuse_comparison.on_common_examples(measured)
  reference = measured[FULL_CHAIN]
  rows = [
    reuse_comparison.comparison_row(name, arm, reference, task.score(arm.predictions))
    for name, arm in measured.items()
  ]
  left_out = len(examples) - len(reference.predictions)
  write_whole(workdir / "results.json", results_json(rows, left_out=left_out))
  reuse_comparison.draw_comparison(rows, workdir / FIGURE)
  provenance = {
    **{"records": str(data.records), "policy": str(config.checkpoint)},
    **{"handbook": f"{config.behaviors}, {len(recall.index.handbook)} behaviors"},
  }
  report = reuse_comparison.comparison_report(rows, left_out, FIGURE, provenance)
  write_whole(workdir / "report.md", report)
  print(reuse_comparison.comparison_table(rows))
  print(reuse_comparison.paired_table(rows))


def arm_folder(workdir: epath.Path, name: str) -> epath.Path:
  """Returns the folder of the answers of the arm `name`."""
  return workdir / re.sub(r"\W+", "_", name)


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  policy = ["--checkpoint", config.checkpoint, "--behaviors", config.behaviors]
  return ending(
    f"report.md, results.json and {FIGURE} in {workdir}",
    args.config,
    ["answer", "PHOTO", "STATEMENT", *policy],
    ["serve", *policy],
  )
