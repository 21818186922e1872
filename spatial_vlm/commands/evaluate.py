"""Measure a method on held-out records: accuracy with its interval, boxes, tokens, seconds per answer.

Every answer is stored in WORKDIR/predictions, one file a batch; results.json and a table on the terminal are made
from them. After an interruption, the same command resumes with the first batch that is missing. Methods: `majority`
(no model), `zero-shot` (the likeliest first word), `direct`, `chain`, `short` (the short form without a behavior, which
`configs/sft.py:bc` teaches) and `reuse` (a recalled behavior and the short form, the full chain where nothing is
similar enough). A handbook may be measured on the training records that it comes from: `behaviors` reads how useful
its behaviors were (`recalls`). Its accuracy there is not a held-out one. A control (`control`) asks the same questions
without the image; `report` sets its answers next to those with the image.

  spatial-vlm evaluate --config.method=chain --config.checkpoint=runs/sft/export --workdir runs/evaluate_sft
"""

import argparse
import json
import logging
from collections.abc import Callable, Sequence

from etils import epath

from spatial_vlm import sharding
from spatial_vlm.commands.ending import ending, leaf
from spatial_vlm.config import Config, UsageError, snapshot
from spatial_vlm.data.reading import Reader
from spatial_vlm.data.records import ExampleSource, Take
from spatial_vlm.data.split_guard import Pair
from spatial_vlm.evaluation import results
from spatial_vlm.evaluation.predictions import Prediction, majority_predictions
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.controls import ControlledSource, find_control, with_cannot_tell
from spatial_vlm.inference.generation import (
  check_batch,
  likeliest_verdicts,
  make_generator,
  parsed_verdicts,
)
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.questions import QuestionBuilder, Recall, load_recall
from spatial_vlm.inference.stored_answers import AnswerStore, refuse_other_origin, stored_answers
from spatial_vlm.inference.timing import with_seconds
from spatial_vlm.inference.unfamiliar import warn_of_forms
from spatial_vlm.inputs import check_inputs
from spatial_vlm.remote import write_whole
from spatial_vlm.tasks import find_worded_task
from spatial_vlm.tasks.task import Task

log = logging.getLogger(__name__)

FORMS = {
  "zero-shot": "direct",
  "direct": "direct",
  "chain": "chain",
  "short": "short",
  "reuse": "chain",
}
"""Method → form in which it answers where it recalls nothing."""
HARMLESS = ("timed_questions", "in_flight", "mesh.*")
"""Settings that may change between two starts, since the stored answers do not depend on them."""


def run(config: Config, workdir: epath.Path, args) -> None:
  with user_errors():
    check(config)
    check_inputs(config, inputs(config))
    data, task = config.data, find_worded_task(config.task, config.template, config.prompt)
    source = task.read(data.records, data.images, data.boxes or None, data.max_bad_share)
    if config.control:
      task, source = controlled(config.control, task, source)
    examples = Take(source, config.limit or len(source))
    recall = recall_of(config, task, source.pairs) if config.method == "reuse" else None
    if config.method == "majority":
      answer = majority(config, task)
    else:
      answer = model_answers(config, task, workdir, recall)
    snapshot(config, workdir, HARMLESS)
    origin = {**(recall.index.origin if recall else {}), **control_origin(config)}
    if origin:
      setting = f"behaviors {config.behaviors}" if recall else f"control {config.control}"
      refuse_other_origin(workdir, origin, setting)
  predictions = answer(examples)
  write_whole(workdir / "predictions.jsonl", "".join(p.to_json() + "\n" for p in predictions))
  figures = task.score(predictions)
  skipped = results.skipped_records(source.bad, predictions, examples)
  row = results.result_row(config.method, figures, len(skipped))
  recalls = results.recalls_json(results.count_recalls(predictions))
  write_whole(workdir / "scores.json", json.dumps(figures, indent=2) + "\n")
  split = split_of(config)
  content = results.results_json(
    [row], split=split, held_out=task.is_measured(split), skipped=skipped, recalls=recalls
  )
  write_whole(workdir / "results.json", content)
  print(results.results_table([row]))


def check(config: Config) -> None:
  """Raises UsageError for settings that cannot work together."""
  task = find_worded_task(config.task, config.template, config.prompt)
  if config.method == "zero-shot" and not task.first_words:
    raise UsageError(
      f"method is 'zero-shot' and answers of the task {config.task} begin with any word; choose direct or chain"
    )
  if not config.control:
    return
  if config.method == "majority":
    raise UsageError("method is 'majority', which sees no image; set control to ''")
  if find_control(config.control).offers_cannot_tell and config.method == "zero-shot":
    raise UsageError(
      f"control is {config.control!r} and method 'zero-shot' chooses between the first words of the task's answers, "
      'which "Cannot tell." is not; choose another method or control'
    )


def inputs(config: Config) -> list[str]:
  """Returns the leaves that name files to read."""
  records = ["data.records", "data.images", "data.boxes"]
  if config.method == "majority":
    return [*records, "data.training_records"]
  return ["checkpoint", *records, *(["behaviors"] if config.method == "reuse" else [])]


def controlled(name: str, task: Task, source: ExampleSource) -> tuple[Task, ControlledSource]:
  """Returns the task and the source under the control of this name."""
  control = find_control(name)
  return (
    with_cannot_tell(task) if control.offers_cannot_tell else task,
    ControlledSource(source, control),
  )


def control_origin(config: Config) -> dict[str, str]:
  """Returns what the stored answers of a control depend on: its name; nothing without a control."""
  return {"control": config.control} if config.control else {}


def split_of(config: Config) -> str:
  """Returns the name of the split that is measured."""
  return epath.Path(config.data.records).stem


Answerer = Callable[[Take], list[Prediction]]
"""Answers all examples."""


def majority(config: Config, task: Task) -> Answerer:
  """Answers with the most frequent training label of each relation."""
  data = config.data
  train = task.read(data.training_records, data.images, None, data.max_bad_share)
  records = [train.describe(number)[0] for number in range(len(train))]
  labels = [(record.relation, record.label) for record in records if not record.right]

  def answer(examples: Take) -> list[Prediction]:
    read = Reader(examples, lambda example: example, data.max_bad_share)
    return majority_predictions(labels, read)

  return answer


def recall_of(config: Config, task: Task, pairs: Sequence[Pair]) -> Recall:
  """Loads the handbook; LeakError if the records are held out and behaviors come from them or from equal `pairs`."""
  recall = load_recall(config.behaviors, config.behavior_tokens)
  handbook, split = recall.index.handbook, split_of(config)
  if task.is_measured(split):
    handbook.refuse_leaks((split,), pairs)
  elif handbook.records_of((split,), pairs):
    log.warning(
      "%s are records that the behaviors come from: the accuracy is not held-out; give results.json to `behaviors`",
      config.data.records,
    )
  return recall


def model_answers(
  config: Config, task: Task, workdir: epath.Path, recall: Recall | None
) -> Answerer:
  """Answers with a model: reads stored answers, generates the missing ones, then times single questions."""
  mesh = sharding.make_mesh(config.mesh)
  check_batch(config, mesh, in_slots=config.prompt_slots > 0)
  policy = load_policy(config.checkpoint, mesh)
  form = FORMS[config.method]
  warn_of_forms(config.checkpoint, task, [form, "short"] if recall else [form])
  questions = QuestionBuilder(task, form, recall)
  judge = likeliest_verdicts if config.method == "zero-shot" else parsed_verdicts
  generator = make_generator(policy, mesh, questions, config, judge)

  def answer(examples: Take) -> list[Prediction]:
    store = AnswerStore.from_config(workdir, config)
    predictions = stored_answers(store, generator, examples, config.method)
    return with_seconds(predictions, generator, examples, config.timed_questions)

  return answer


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  return ending(
    f"results.json and predictions.jsonl in {workdir}",
    args.config,
    ["report", leaf("runs", f"{workdir},…")],
  )
