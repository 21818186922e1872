"""Prompts of policy optimization: training rounds from an endless stream, and validation."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from spatial_vlm import hosts
from spatial_vlm.config import Config, UsageError
from spatial_vlm.data.pipeline import prompt_order
from spatial_vlm.data.reading import Reader
from spatial_vlm.data.records import ExampleSource
from spatial_vlm.data.split_guard import read_pairs, refuse_shared_records
from spatial_vlm.inference.generation import QuestionEncoder, Row, asked_questions
from spatial_vlm.inference.policy import Policy, PromptFormat, make_requests, prompt_format
from spatial_vlm.inference.questions import QuestionBuilder, load_recall
from spatial_vlm.process_rows import process_shard
from spatial_vlm.processor.tokenizer import token_bytes
from spatial_vlm.rewards.accuracy import is_correct
from spatial_vlm.rewards.verdict_automaton import (
  VerdictAutomaton,
  compile_automaton,
  verdicts,
)
from spatial_vlm.rollout.engine import Engine
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.tasks import find_task
from spatial_vlm.types import Params


class RlData(NamedTuple):
  """The questions of a run."""

  read: Reader
  """Reads the question about a training record by its number; skipped records are counted in it."""
  requests_of: Callable[[Mesh, Sequence[int]], Requests]
  """(mesh, numbers) -> those prompts of the training stream."""
  validate: Callable[[Params], float]
  """Trainable parameters -> accuracy on validation records."""
  behaviors: Mapping[str, str] = MappingProxyType({})
  """What the recalled behaviors depend on, see `BehaviorIndex.origin`; empty without behaviors."""

  def host_state(self) -> dict[str, Any]:
    """Returns the records that each process has skipped and the behaviors, for a checkpoint; all processes call it."""
    return {"skipped": hosts.all_gather_json(self.read.skipped), "behaviors": dict(self.behaviors)}

  def restore(self, host: Mapping[str, Any]) -> None:
    """Reports and counts the records that an earlier start skipped, as if this start had read them.

    Raises UsageError where the behaviors have changed: an update reads the prompts of stored answers again.
    """
    before, now = host.get("behaviors", {}), dict(self.behaviors)
    if before != now:
      changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
      raise UsageError(
        f"the index of behaviors is not the one that the run began with (different: {', '.join(changed)}); restore it, "
        "or give another --workdir"
      )
    for number in own_skipped(host["skipped"]):
      self.read(number)


def open_data(
  config: Config, policy: Policy, mesh: Mesh, automaton: VerdictAutomaton, engine: Engine
) -> RlData:
  """Opens the records that a run samples answers for, and those that it validates on over the sampling mesh.

  Raises UsageError if a training record is validated or evaluated on, or if a file has too few records.
  """
  source = open_records(config, config.data.records)
  refuse_evaluation_records(config, source)
  # Built once: the index of behaviors holds the weights of its embedder.
  questions = question_builder(config)
  encode = QuestionEncoder(policy.processor, rl_format(config), questions)
  read = Reader(source, encode, config.data.max_bad_share)
  return RlData(
    read,
    training_requests(config, policy, read),
    validation(config, policy, encode, mesh, automaton, engine),
    questions.recall.index.origin if questions.recall else {},
  )


def question_builder(config: Config) -> QuestionBuilder:
  """Returns the builder of a run's questions: full chains, or short answers wherever a behavior is recalled.

  Raises LeakError if the behaviors were extracted from records that are validated or evaluated on.
  """
  recall = None
  if config.behaviors:
    recall = load_recall(config.behaviors, config.behavior_tokens)
    for file in filter(None, (config.data.validation, config.data.evaluation)):
      recall.index.handbook.refuse_leaks((epath.Path(file).stem,), read_pairs(file))
  return QuestionBuilder(find_task(config.task), "chain", recall)


def answer_automaton(config: Config, policy: Policy) -> VerdictAutomaton:
  """Compiles the grammar of the task's answers over the policy's tokens."""
  pieces = token_bytes(policy.processor.tokenizer)
  return compile_automaton(find_task(config.task).grammar, pieces, policy.special.eos)


def refuse_evaluation_records(config: Config, source: ExampleSource) -> None:
  """Raises UsageError when a training record is validated or evaluated on."""
  remedy = "remove them from the training records (spatial-vlm data --config.drop_shared=true)"
  evaluated = (config.data.validation, config.data.evaluation)
  refuse_shared_records(source.pairs, evaluated, remedy)


def open_records(config: Config, records: str) -> ExampleSource:
  """Opens a file of records of the config's task."""
  data = config.data
  return find_task(config.task).read(records, data.images, None, data.max_bad_share)


def rl_format(config: Config) -> PromptFormat:
  """Returns how the run lays out its prompts."""
  return prompt_format(config.data.prompt_shapes, config.dtype)


def training_requests(
  config: Config, policy: Policy, read: Reader
) -> Callable[[Mesh, Sequence[int]], Requests]:
  """Returns (mesh, numbers) -> those prompts of the endless shuffled stream of records, over the mesh.

  The next usable record of the file replaces one that cannot be used. A prompt's number is its position in the stream,
  so a record that comes twice gets other answers. A prompt is a function of its number: it can be read again.
  """
  order = prompt_order(config.seed, len(read))

  def usable(number: int) -> Row:
    following = (read(n % len(read)) for n in itertools.count(order(number)))
    return next(found for found in following if found is not None)

  def requests(mesh: Mesh, numbers: Sequence[int]) -> Requests:
    own = [int(numbers[row]) for row in process_shard(mesh).rows(len(numbers))]
    return as_requests(config, policy, mesh, [usable(number) for number in own], own)

  return requests


def own_skipped(skipped: Sequence[Sequence[int]]) -> Sequence[int]:
  """Of the records that each process had skipped, those that this one counts; all, if their number has changed."""
  if len(skipped) == jax.process_count():
    return skipped[jax.process_index()]
  return sorted({number for numbers in skipped for number in numbers})


def as_requests(
  config: Config, policy: Policy, mesh: Mesh, rows: Sequence[Row], ids: Sequence[int]
) -> Requests:
  """Returns the whole batch over the mesh, from the questions of this process with their labels."""
  labels = [example.record.label for example, _, _ in rows]
  return make_requests(policy, mesh, asked_questions(rows), ids, labels, rl_format(config))


def validation(
  config: Config,
  policy: Policy,
  encode: QuestionEncoder,
  mesh: Mesh,
  automaton: VerdictAutomaton,
  engine: Engine,
) -> Callable[[Params], float]:
  """Returns trainable parameters -> accuracy of greedy answers to the first `validate_prompts` validation records.

  The prompts are read again at every call, a batch at a time. The last batch is filled up with its first records, which
  count once.
  """
  source = open_records(config, config.data.validation)
  read = Reader(source, encode, config.data.max_bad_share)
  found = (number for number in range(len(read)) if read(number) is not None)
  usable = list(itertools.islice(found, config.validate_prompts))
  count, size = len(usable), config.validate_batch
  if not usable:
    raise UsageError(f"{config.data.validation} has no record that can be asked about")
  own = process_shard(mesh).rows(size)
  greedy = policy.sampling(config.max_new_tokens)
  key = jax.random.key(0)  # a greedy choice draws nothing

  def right_answers(start: int) -> int:
    rows = [read(usable[(start + row) % count]) for row in own]
    requests = as_requests(config, policy, mesh, rows, own)
    completions = engine.generate(requests, key, greedy)
    verdict = verdicts(automaton, completions.tokens, completions.mask)
    is_first_time = jnp.arange(start, start + size) < count
    return int(jnp.sum(is_correct(verdict, requests.prompts.label) & is_first_time))

  def accuracy(params: Params) -> float:
    engine.publish(params)
    right = sum(right_answers(start) for start in range(0, count, size))
    engine.release()
    return right / count

  return accuracy
