"""Prompts of policy optimization: training rounds from an endless stream, and validation."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spatial_vlm.config import Config, UsageError
from spatial_vlm.data.pipeline import prompt_order
from spatial_vlm.data.reading import Reader
from spatial_vlm.data.split_guard import refuse_shared_records
from spatial_vlm.inference.generation import QuestionEncoder, Row
from spatial_vlm.inference.policy import Policy, PromptShape, make_requests
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.process_rows import process_shard
from spatial_vlm.processor.chat import Processor
from spatial_vlm.rewards.accuracy import is_correct
from spatial_vlm.rewards.verdict_automaton import VerdictAutomaton, verdicts
from spatial_vlm.rollout.engine import Engine, Requests
from spatial_vlm.tasks import find_task
from spatial_vlm.tasks.task import ExampleSource
from spatial_vlm.types import Params


def refuse_evaluation_records(config: Config, source: ExampleSource) -> None:
  """Raises UsageError when a training record is validated or evaluated on."""
  remedy = "remove them from the training records (spatial-vlm data --config.drop_shared=true)"
  evaluated = (config.data.validation, config.data.evaluation)
  refuse_shared_records(source.pairs, evaluated, remedy)


def prompt_shape(config: Config) -> PromptShape:
  """Returns the shape that every prompt of the run is padded to."""
  return PromptShape(config.data.prompt_tokens, config.data.patches)


def question_reader(config: Config, processor: Processor, records: str) -> Reader:
  """Returns a reader of the questions about a file of records, each asking for a full chain."""
  data, task = config.data, find_task(config.task)
  source = task.read(records, data.images, None, data.max_bad_share)
  chains = QuestionBuilder(task, "chain")
  encode = QuestionEncoder(processor, prompt_shape(config), chains)
  return Reader(source, encode, data.max_bad_share)


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
    ids = [cursor + i for i in process_shard(mesh).rows(config.rollout_batch_size)]
    return as_requests(config, policy, mesh, [usable(order(id)) for id in ids], ids)

  return requests_at


def own_skipped(skipped: Sequence[Sequence[int]]) -> Sequence[int]:
  """Of the records that each process had skipped, those that this one counts; all, if their number has changed."""
  if len(skipped) == jax.process_count():
    return skipped[jax.process_index()]
  return sorted({number for numbers in skipped for number in numbers})


def as_requests(
  config: Config, policy: Policy, mesh: Mesh, rows: Sequence[Row], ids: Sequence[int]
) -> Requests:
  """Returns the whole batch over the mesh, from the questions of this process with their labels."""
  asked = [(question.text, example.image, encoded) for example, question, encoded in rows]
  labels = [example.record.label for example, _, _ in rows]
  return make_requests(policy, mesh, asked, ids, labels, prompt_shape(config))


def validation(
  config: Config, policy: Policy, mesh: Mesh, automaton: VerdictAutomaton, engine: Engine
) -> Callable[[Params], float]:
  """Returns trainable parameters -> accuracy of greedy answers to the first `validate_prompts` validation records.

  Raises UsageError where the records do not fill one batch.
  """
  read = question_reader(config, policy.processor, config.data.validation)
  questions = list(itertools.islice(read, config.validate_prompts))
  size = config.validate_batch
  count = len(questions) // size * size
  if not count:
    raise UsageError(
      f"{len(questions)} validation records do not fill one batch of validate_batch {size}; lower it, or raise "
      "validate_prompts"
    )
  own = process_shard(mesh).rows(size)
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
