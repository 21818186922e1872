"""Prompts of policy optimization: training rounds from an endless stream, and validation."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spatial_vlm import hosts, sharding
from spatial_vlm.config import Config, UsageError
from spatial_vlm.data.pipeline import prompt_order
from spatial_vlm.data.reading import Reader
from spatial_vlm.data.records import ExampleSource
from spatial_vlm.data.split_guard import refuse_shared_records
from spatial_vlm.inference.generation import BatchGenerator, Row
from spatial_vlm.inference.policy import Policy, PromptShape, collate
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.processor.tokenizer import token_bytes
from spatial_vlm.rewards.accuracy import is_correct
from spatial_vlm.rewards.verdict_automaton import (
  VerdictAutomaton,
  compile_automaton,
  verdicts,
)
from spatial_vlm.rollout.engine import Engine, Requests
from spatial_vlm.tasks import find_task
from spatial_vlm.types import Params


class RlData(NamedTuple):
  """The questions of a run."""

  read: Reader
  """Reads the question about a training record by its number; skipped records are counted in it."""
  requests_at: Callable[[int], Requests]
  """Cursor -> the prompts of a round."""
  validate: Callable[[Params], float]
  """Trainable parameters -> accuracy on validation records."""

  def host_state(self) -> dict[str, Any]:
    """Returns the records that each process has skipped, for a checkpoint; all processes call it."""
    return {"skipped": hosts.all_gather_json(self.read.skipped)}

  def restore(self, host: Mapping[str, Any]) -> None:
    """Reports and counts the records that an earlier start skipped, as if this start had read them."""
    for number in own_skipped(host["skipped"]):
      self.read(number)


def open_data(
  config: Config, policy: Policy, mesh: Mesh, automaton: VerdictAutomaton, engine: Engine
) -> RlData:
  """Opens the records that a run samples answers for, and those that it validates on.

  Raises UsageError if a training record is validated or evaluated on, or if a file has too few records.
  """
  source = open_records(config, config.data.records)
  refuse_evaluation_records(config, source)
  read = question_reader(config, policy, mesh, source)
  return RlData(
    read,
    training_requests(config, policy, mesh, read),
    validation(config, policy, mesh, automaton, engine),
  )


def answer_automaton(config: Config, policy: Policy) -> VerdictAutomaton:
  """Compiles the grammar of the task's answers over the policy's tokens."""
  pieces = token_bytes(policy.processor.tokenizer)
  return compile_automaton(find_task(config.task).grammar, pieces, policy.special.eos)


def check_blocks(config: Config, mesh: Mesh) -> None:
  """Raises UsageError unless every process can read the block of prompts that its devices answer."""
  _, blocks = sharding.process_rows(mesh)
  parts = sharding.axis_product(mesh, sharding.ROWS)
  for name in ("rollout_batch_size", "validate_batch"):
    if blocks > 1 and config[name] % parts:
      raise UsageError(
        f"{name} is {config[name]}; it must be a multiple of sampling_mesh.slice × data × fsdp = {parts}"
      )


def refuse_evaluation_records(config: Config, source: ExampleSource) -> None:
  """Raises UsageError when a training record is validated or evaluated on."""
  remedy = "remove them from the training records (spatial-vlm data --config.drop_shared=true)"
  evaluated = (config.data.validation, config.data.evaluation)
  refuse_shared_records(source.pairs, evaluated, remedy)


def open_records(config: Config, records: str) -> ExampleSource:
  """Opens a file of records of the config's task."""
  data = config.data
  return find_task(config.task).read(records, data.images, None, data.max_bad_share)


def question_reader(config: Config, policy: Policy, mesh: Mesh, source: ExampleSource) -> Reader:
  """Returns a reader of the questions about records, each asking for a full chain."""
  data = config.data
  shape = PromptShape(data.prompt_tokens, data.patches)
  chains = QuestionBuilder(find_task(config.task), "chain")
  generator = BatchGenerator(policy, mesh, shape, config.max_new_tokens, chains)
  return Reader(source, generator.encode, data.max_bad_share)


def training_requests(
  config: Config, policy: Policy, mesh: Mesh, read: Reader
) -> Callable[[int], Requests]:
  """Returns cursor -> the prompts of a round, from the endless shuffled stream of records.

  The next usable record of the file replaces one that cannot be used. A prompt's id is its position in the stream, so a
  record that comes twice gets other answers.
  """
  order = prompt_order(config.seed, len(read))

  def usable(number: int) -> Row:
    following = (read(n % len(read)) for n in itertools.count(number))
    return next(found for found in following if found is not None)

  def requests_at(cursor: int) -> Requests:
    ids = [cursor + i for i in own_rows(mesh, config.rollout_batch_size)]
    return as_requests(config, policy, mesh, [usable(order(id)) for id in ids], ids)

  return requests_at


def own_rows(mesh: Mesh, count: int) -> range:
  """Of `count` rows of a batch, those that this process reads."""
  index, blocks = sharding.process_rows(mesh)
  rows = count // blocks
  return range(index * rows, (index + 1) * rows)


def own_skipped(skipped: Sequence[Sequence[int]]) -> Sequence[int]:
  """Of the records that each process had skipped, those that this one counts; all, if their number has changed."""
  if len(skipped) == jax.process_count():
    return skipped[jax.process_index()]
  return sorted({number for numbers in skipped for number in numbers})


def as_requests(
  config: Config, policy: Policy, mesh: Mesh, questions: Sequence[Row], ids: Sequence[int]
) -> Requests:
  """Returns the whole batch over the mesh, from the questions of this process."""
  shape = PromptShape(config.data.prompt_tokens, config.data.patches)
  rows = [row for _, _, row in questions]
  labels = [example.record.label for example, _, _ in questions]
  prompts = collate(policy.processor, rows, ids, labels, shape)
  return Requests(
    prompts=sharding.make_global_batch(mesh, prompts),
    texts=[question.text for _, question, _ in questions],
    images=[example.image for example, _, _ in questions],
  )


def validation(
  config: Config, policy: Policy, mesh: Mesh, automaton: VerdictAutomaton, engine: Engine
) -> Callable[[Params], float]:
  """Returns trainable parameters -> accuracy of greedy answers to the first `validate_prompts` validation records.

  Raises UsageError where the records do not fill one batch.
  """
  source = open_records(config, config.data.validation)
  read = question_reader(config, policy, mesh, source)
  questions = list(itertools.islice(read, config.validate_prompts))
  size = config.validate_batch
  count = len(questions) // size * size
  if not count:
    raise UsageError(
      f"{len(questions)} validation records do not fill one batch of validate_batch {size}; lower it, or raise "
      "validate_prompts"
    )
  own = own_rows(mesh, size)
  batches = [
    as_requests(config, policy, mesh, [questions[start + i] for i in own], own)
    for start in range(0, count, size)
  ]
  greedy = policy.sampling(config.max_new_tokens)
  key = jax.random.key(0)  # a greedy choice draws nothing

  def accuracy(params: Params) -> float:
    engine.publish(params)
    right = 0
    for requests in batches:
      completions = engine.generate(requests, key, greedy)
      verdict = verdicts(automaton, completions.tokens, completions.mask)
      right += int(jnp.sum(is_correct(verdict, requests.prompts.label)))
    engine.release()
    return right / count

  return accuracy
