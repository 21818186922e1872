"""Align a fine-tuned model by DAPO: it samples answers, and learns from which of them are right.

Reads a Hugging Face folder and labelled records; no chain of thought is read, only labels. Writes a Hugging Face
folder to WORKDIR/export. Prompts whose answers are all right or all wrong teach nothing: more are drawn, up to a
bounded number of rounds. Interrupted at any moment, the same command goes on from the last checkpoint, also in
the middle of collecting a batch. What trains is told as in `sft`: all of it, a part, or low-rank pairs.

  spatial-vlm dapo --config configs/dapo.py:tiny --workdir runs/dapo
"""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from spatial_vlm import hosts, metrics, sharding
from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config, UsageError, settings_from
from spatial_vlm.data import split_guard
from spatial_vlm.data.pipeline import Reader, prompt_order
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.generation import BatchGenerator, Row, greedy
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import Policy, PromptShape, collate
from spatial_vlm.inference.questions import plain_question
from spatial_vlm.optim.optimizers import OptimizerSettings, make_optimizer
from spatial_vlm.parameters.partition import subset_from_config
from spatial_vlm.processor.tokenizer import token_bytes
from spatial_vlm.rewards.accuracy import is_correct
from spatial_vlm.rewards.verdict_automaton import VerdictAutomaton, compile_automaton, verdicts
from spatial_vlm.train import policy_optimization
from spatial_vlm.train.policy_optimization import check
from spatial_vlm.train.run import (
  partition_policy,
  place_state,
  progress,
  record_settings,
)
from spatial_vlm.train.trained_weights import base_record, check_base, write_trained
from spatial_vlm.types import Params, Prompts, Purpose, RlState, Rollout, TrainState


def run(config: Config, workdir: epath.Path, args) -> None:
  with user_errors():
    check(config)
    mesh = sharding.make_mesh(config.mesh)
    sampling_mesh = sharding.reshape_mesh(mesh, config.sampling_mesh)
    check_blocks(config, sampling_mesh)
    subset = subset_from_config(config, config.lora)
    policy = load_policy(config.checkpoint, mesh=mesh, subset=subset)
    trained, frozen = partition_policy(mesh, policy.params, subset, config.seed)
    automaton = compile_automaton(token_bytes(policy.processor.tokenizer), policy.special.eos)
    settings = settings_from(
      policy_optimization.RlSettings, config, eos=policy.special.eos, pad=policy.special.pad
    )
    updates = config.steps * config.minibatches
    optimizer = make_optimizer(
      settings_from(OptimizerSettings, config.optimizer, total_steps=updates)
    )
    read = question_reader(config, policy, sampling_mesh, config.data.records)
    guard(config, read.source)
    prompts_at = training_prompts(config, policy, sampling_mesh, read)
    to_sample = sampler(config, sampling_mesh, trained, frozen)
    validate = validation(config, policy, automaton, sampling_mesh, to_sample)
  record_settings(config, workdir)
  key = jax.random.fold_in(jax.random.key(config.seed), Purpose.ROLLOUT)
  groups_of = functools.partial(
    policy_optimization.sample_groups,
    automaton=automaton,
    forbidden_tokens=policy.forbidden_tokens,
    model=policy.model,
    settings=settings,
  )

  with jax.set_mesh(sampling_mesh):
    groups = jax.eval_shape(groups_of, jax.eval_shape(to_sample, trained), prompts_at(0), key)
  to_train = jax.jit(lambda x: x, out_shardings=sharding.batch_sharding(mesh, groups))

  def sample(params: Params, prompts: Prompts, cursor: int) -> Rollout:
    with jax.set_mesh(sampling_mesh):
      return to_train(groups_of(to_sample(params), prompts, jax.random.fold_in(key, cursor)))

  state = place_state(mesh, trained, optimizer)
  base = base_record(config, frozen)
  loop = functools.partial(
    policy_optimization.rl_loop,
    prompts_at=prompts_at,
    sample=sample,
    collect_round=functools.partial(policy_optimization.collect, settings=settings),
    update_policy=functools.partial(
      policy_optimization.update,
      forbidden_tokens=policy.forbidden_tokens,
      frozen=frozen,
      model=policy.model,
      optimizer=optimizer,
      settings=settings,
    ),
    settings=settings,
    steps=config.steps,
  )
  with (
    jax.set_mesh(mesh),  # for kernels, which are cut for it by hand
    Checkpoints(workdir / "checkpoints", config.max_to_keep) as checkpoints,
  ):
    state = place_run(mesh, state, groups, settings)
    if checkpoints.latest() is not None:
      with user_errors():
        state, host = checkpoints.restore(state)
        check_base(host["base"], base["checksums"])
        for number in own_skipped(host["skipped"]):
          read(number)  # reported and counted as if this start had met it

    def note():
      return {"skipped": hosts.all_gather_json(read.skipped), "base": base}

    state = train(config, workdir, state, loop, validate, checkpoints, note)
  write_trained(workdir, base, policy.model, mesh, subset, state.train.params)


def train(
  config: Config,
  workdir: epath.Path,
  state: RlState,
  loop: Callable,
  validate: Callable[[Params], float],
  checkpoints: Checkpoints,
  note: Callable[[], dict[str, Any]],
) -> RlState:
  """Runs the loop to its end; writes metrics, checkpoints and the bar."""
  saved = checkpoints.latest()
  with (
    metrics.MetricsWriter(workdir) as writer,
    progress("dapo", int(state.batches), config.steps) as bar,
  ):
    if saved is None:
      writer.write(0, {"validation/accuracy": validate(state.train.params)})
    started = time.perf_counter()
    for state, sums in loop(state):  # noqa: B020 (the state goes round)
      batch = int(state.batches)
      if sums is not None:
        values = metrics.means(sums) | {"time/step_s": time.perf_counter() - started}
        if batch % config.validate_steps == 0 or batch == config.steps:
          values["validation/accuracy"] = validate(state.train.params)
        writer.write(batch, values)
        report(config, batch, values, bar)
        started = time.perf_counter()
      event = int(state.cursor) // config.rollout_batch_size + batch
      preempted = hosts.preempted(event)
      if preempted or event % config.checkpoint_steps == 0 or batch == config.steps:
        checkpoints.save(event, state, note())
      if preempted:
        raise hosts.Preempted
  return state


def report(config: Config, batch: int, values: dict[str, float], bar) -> None:
  groups = int(values["kept/groups"])
  if groups < config.groups_per_batch and not bar.disable:
    consequence = "the update took these" if groups else "no update was made"
    bar.write(
      f"batch {batch}: after {values['rounds']:.0f} rounds {groups} of {config.groups_per_batch} groups were neither "
      f"all right nor all wrong; {consequence}"
    )
  bar.set_postfix(
    sampled=f"{values['sampled/accuracy']:.3f}",
    tokens=f"{values['sampled/length_tokens']:.0f}",
    entropy=f"{values.get('entropy', 0.0):.3f}",
  )
  bar.update()


def check_blocks(config: Config, mesh: Mesh) -> None:
  """Raises UsageError unless every process can read the block of prompts that its devices sample answers to."""
  _, blocks = sharding.process_block(mesh)
  parts = sharding.axis_product(mesh, sharding.ROWS)
  for name in ("rollout_batch_size", "validate_batch"):
    if blocks > 1 and config[name] % parts:
      raise UsageError(
        f"{name} is {config[name]}; it must be a multiple of sampling_mesh.slice × data × fsdp = {parts}"
      )


def guard(config: Config, source: JsonlSource) -> None:
  """Raises UsageError when a training record is one that is validated or evaluated on."""
  for file in filter(None, (config.data.validation, config.data.evaluation)):
    remedy = f"leave those of {file} out of it (spatial-vlm data --config.drop_shared=true)"
    split_guard.guard(source.pairs, file, remedy)


def place_run(
  mesh: Mesh, train: TrainState, groups: Rollout, settings: policy_optimization.RlSettings
) -> RlState:
  """A run that has drawn nothing yet, its buffer for `groups` (shapes) laid out over the mesh like a batch.

  `train` becomes part of it without a copy.
  """

  shapes = jax.eval_shape(lambda t: policy_optimization.init_state(t, groups, settings), train)
  rest = jax.jit(
    lambda: policy_optimization.init_state(None, groups, settings),
    out_shardings=policy_optimization.state_shardings(mesh, shapes).replace(train=None),
  )
  return rest().replace(train=train)


def sampler(
  config: Config, mesh: Mesh, trained: Params, frozen: Params
) -> Callable[[Params], Params]:
  """What trains -> the parameters to sample from, laid out over the mesh of sampling.

  There they are cut by heads and hidden units: cut by width, as for training, every token of an answer would gather the
  whole model.
  """
  make = functools.partial(policy_optimization.rollout_weights, dtype=config.dtype)
  shapes = jax.eval_shape(make, trained, frozen)
  placed = jax.jit(make, out_shardings=sharding.param_shardings(mesh, shapes))
  return lambda params: placed(params, frozen)


def question_reader(config: Config, policy: Policy, mesh: Mesh, records: str) -> Reader:
  """The questions of a file of records, each asking for a full chain."""
  data = config.data
  source = JsonlSource(records, data.images, max_bad_share=data.max_bad_share)
  shape = PromptShape(data.prompt_tokens, data.patches)
  asker = BatchGenerator(
    policy, mesh, shape, config.max_new_tokens, functools.partial(plain_question, form="chain")
  )
  return Reader(source, asker.encode, data.max_bad_share)


def training_prompts(
  config: Config, policy: Policy, mesh: Mesh, read: Reader
) -> Callable[[int], Prompts]:
  """cursor -> the prompts of a round, from the endless shuffled stream of records.

  In place of a record that cannot be used comes the next in the file that can. A prompt's id is its place in the
  stream: a record that comes twice gets other answers.
  """
  order = prompt_order(config.seed, len(read))

  def usable(number: int) -> Row:
    following = (read(n % len(read)) for n in itertools.count(number))
    return next(found for found in following if found is not None)

  def prompts_at(cursor: int) -> Prompts:
    ids = [cursor + i for i in own_rows(mesh, config.rollout_batch_size)]
    return ask(config, policy, mesh, [usable(order(id)) for id in ids], ids)

  return prompts_at


def own_skipped(notes: Sequence[Sequence[int]]) -> Sequence[int]:
  """Of the records that each process had left out, those that this one counts; all, if there were others then."""
  if len(notes) == jax.process_count():
    return notes[jax.process_index()]
  return sorted({number for numbers in notes for number in numbers})


def own_rows(mesh: Mesh, count: int) -> range:
  """Of `count` rows of a batch, those that this process reads."""
  index, blocks = sharding.process_block(mesh)
  rows = count // blocks
  return range(index * rows, (index + 1) * rows)


def ask(
  config: Config, policy: Policy, mesh: Mesh, questions: Sequence[Row], ids: Sequence[int]
) -> Prompts:
  """The whole batch over the mesh, from the questions of this process."""
  shape = PromptShape(config.data.prompt_tokens, config.data.patches)
  rows = [row for _, _, row in questions]
  labels = [example.record.label for example, _, _ in questions]
  return sharding.make_global_batch(mesh, collate(policy.processor, rows, ids, labels, shape))


def validation(
  config: Config,
  policy: Policy,
  automaton: VerdictAutomaton,
  mesh: Mesh,
  to_sample: Callable[[Params], Params],
) -> Callable[[Params], float]:
  """What trains -> share of right greedy answers to the first `validate_prompts` records of the validation split."""
  read = question_reader(config, policy, mesh, config.data.validation)
  questions = list(itertools.islice(read, config.validate_prompts))
  size = config.validate_batch
  count = len(questions) // size * size
  if not count:
    raise UsageError(
      f"{len(questions)} validation records do not fill one batch; validate_batch is {size}: lower it, or raise "
      "validate_prompts"
    )
  own = own_rows(mesh, size)
  batches = [
    ask(config, policy, mesh, [questions[start + i] for i in own], own)
    for start in range(0, count, size)
  ]

  def accuracy(params: Params) -> float:
    params, right = to_sample(params), 0
    for prompts in batches:
      with jax.set_mesh(mesh):
        completions = greedy(policy, params, prompts, config.max_new_tokens)
      verdict = verdicts(automaton, completions.tokens, completions.mask)
      right += int(jnp.sum(is_correct(verdict, prompts.label)))
    return right / count

  return accuracy


COMMAND = Command("dapo", run, check=check, multi_process=True)
