"""Batched generation: questions of one padded shape in, judged answers out."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from spatial_vlm import sharding
from spatial_vlm.config import Config, UsageError
from spatial_vlm.data.records import Example
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.inference.policy import (
  AskedQuestion,
  Generation,
  Policy,
  PromptFormat,
  decode_completions,
  encode_question,
  longest_prefix,
  make_requests,
  prompt_format,
)
from spatial_vlm.inference.questions import PreparedQuestion, QuestionBuilder
from spatial_vlm.processor.chat import Encoded, Processor, Size
from spatial_vlm.processor.image import padded_length
from spatial_vlm.rollout.engine import CompiledEngine
from spatial_vlm.rollout.prefix_cache import PrefixCache
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.rollout.slot_engine import SlotEngine, slots_per_part
from spatial_vlm.rollout.slot_requests import SlotSettings
from spatial_vlm.tasks.task import Question, Task

Row = tuple[Example, PreparedQuestion, Encoded]
"""An example, the question about it, and both encoded."""


def asked_questions(rows: Sequence[Row]) -> list[AskedQuestion]:
  """Returns the rows as an engine is asked them."""
  return [
    AskedQuestion(question.text, _shown(example), encoded, question.system)
    for example, question, encoded in rows
  ]


def _shown(example: Example) -> Any:
  return example.images if example.more_images else example.image


class QuestionEncoder(NamedTuple):
  """Builds and encodes the question about an example."""

  processor: Processor
  format: PromptFormat
  questions: QuestionBuilder

  def __call__(self, example: Example) -> Row:
    """Raises UnusableRecord when the prompt is too long."""
    question = self.questions(example.record.caption)
    row = encode_question(self.processor, _shown(example), question.text, question.system)
    self.format.check(row)
    return example, question, row


def inference_engine(
  policy: Policy,
  mesh: Mesh,
  prefix_cache: PrefixCache | None = None,
  slots: SlotSettings | None = None,
) -> CompiledEngine:
  """Returns an engine that answers with the policy's weights, which lie on the mesh already (see `load_policy`).

  With `slots`, batches wait in a queue for free slots; without, their answers start together.
  """
  forbidden = policy.forbidden_tokens
  decoding = slots and SlotEngine(policy.processor, forbidden, mesh, slots, prefix_cache)
  engine = CompiledEngine(
    policy.model, forbidden, mesh, lambda params: params, prefix_cache, decoding
  )
  engine.publish(policy.params)
  return engine


class BatchGenerator(NamedTuple):
  """Asks a policy about examples, in batches, and judges its answers."""

  policy: Policy
  engine: CompiledEngine
  """The rows of a batch are spread over its mesh; one that does not divide (one question) is on all of its devices."""
  encode: QuestionEncoder
  max_new_tokens: int
  judge: "Judge"

  def answer(self, rows: Sequence[Row], ids: Sequence[int]) -> list[Prediction]:
    """Returns predictions for the rows whose id is not −1; the others only fill the batch."""
    requests = self.requests(rows, ids)
    sampling = self.policy.sampling(self.max_new_tokens)
    key = jax.random.key(0)  # a greedy choice draws nothing
    completions = self.engine.generate(requests, key, sampling)
    texts = decode_completions(self.policy, completions)
    verdicts = self.judge(self, rows, requests, texts)
    extract = self.encode.questions.task.extract
    return [
      _prediction(*row, text, verdict, extract(text.text, row[0].record))
      for row, id, text, verdict in zip(rows, ids, texts, verdicts, strict=True)
      if id >= 0
    ]

  def program(self, row: Row) -> tuple[bool, Size]:
    """Returns what decides which program answers a row alone: whether a cached text precedes it, and its size."""
    prefix, rest = self.encode.format.split(row[2])
    return bool(prefix), self.encode.format.size([rest])

  def fill_prefixes(self, row: Row, id: int) -> None:
    """Computes the keys and values of a row's system turn, if the engine caches them."""
    self.engine.fill_prefixes(self.requests([row], [id]))

  def forget_captions(self) -> None:
    """See `QuestionBuilder.forget_captions`."""
    self.encode.questions.forget_captions()

  def requests(self, rows: Sequence[Row], ids: Sequence[int]) -> Requests:
    """Returns the rows as one batch over the engine's mesh."""
    labels = [-1] * len(rows)
    mesh, format = self.engine.mesh, self.encode.format
    return make_requests(self.policy, mesh, asked_questions(rows), ids, labels, format)


Judge = Callable[[BatchGenerator, Sequence[Row], Requests, Sequence[Generation]], list[int]]
"""Returns the verdict of each answer, −1 for none."""
PREFIX_BUCKET = 16
"""Cached system turns are padded to a multiple of it."""


def format_with_prefixes(
  policy: Policy, shapes: Sequence[tuple[int, int]], systems: Collection[str]
) -> PromptFormat:
  """Returns the format of prompts of these padded (tokens, patches), each after one of the cached system turns."""
  longest = longest_prefix(policy.processor, systems)
  length = padded_length([longest], PREFIX_BUCKET) if longest else 0
  return prompt_format(shapes, policy.dtype, length)


def make_generator(
  policy: Policy, mesh: Mesh, questions: QuestionBuilder, config: Config, judge: Judge
) -> BatchGenerator:
  """Returns a generator with the prompt shapes, the batch size and the answers' limit of a command's config.

  The keys and values of system turns are computed once for all questions that share them.
  """
  systems = set(questions.systems)
  format = format_with_prefixes(policy, config.prompt_shapes, systems)
  slots = None
  if config.prompt_slots:
    eos = policy.special.eos
    slots = slot_settings(format, mesh, config.prompt_slots, config.max_new_tokens, eos)
  texts = min(prefixes_at_once(config.batch_size, mesh, slots), len(systems))
  cache = (
    PrefixCache(policy.model, mesh, texts, format.prefix_tokens) if format.prefix_tokens else None
  )
  encode = QuestionEncoder(policy.processor, format, questions)
  engine = inference_engine(policy, mesh, cache, slots)
  return BatchGenerator(policy, engine, encode, config.max_new_tokens, judge)


PROMPTS_READ = 8
"""Most prompts that each part of the mesh reads into slots at a time."""
SHARE_READ = 8
"""At most one slot in so many is filled at a time, since slots stay empty until enough of them are free."""


def slot_settings(
  format: PromptFormat, mesh: Mesh, prompt_slots: int, max_new_tokens: int, eos: int
) -> SlotSettings:
  """Returns slots in which batches are answered.

  Prompts are always read in the same number, so that an answer does not depend on the other batches in flight.
  """
  share = slots_per_part(mesh, prompt_slots) // SHARE_READ
  return SlotSettings(
    prompt_slots=prompt_slots,
    max_new_tokens=max_new_tokens,
    sizes=format.sizes,
    end_tokens=(eos,),
    prefill_prompts=(min(PROMPTS_READ, max(1, share)),),
  )


def serving_slots(config: Config, format: PromptFormat, eos: int) -> SlotSettings:
  """Returns the slots of a server: one prompt is read at a time, or several where several wait."""
  return SlotSettings(
    prompt_slots=config.slots,
    max_new_tokens=config.max_new_tokens,
    sizes=format.sizes,
    end_tokens=(eos,),
    decode_tokens=config.decode_tokens,
  )


def prefixes_at_once(batch_size: int, mesh: Mesh, slots: SlotSettings | None) -> int:
  """Returns the most cached texts that one program reads: those of a batch, or of the prompts read into slots.

  Prompts that are read into slots together may come from several batches.
  """
  if slots is None:
    return batch_size
  parts = sharding.axis_product(mesh, sharding.ROWS)
  return max(batch_size, parts * slots.prefill_prompts[-1])


def parsed_verdicts(
  generator: BatchGenerator, rows: Sequence[Row], requests: Requests, texts: Sequence[Generation]
) -> list[int]:
  """Parses the verdicts; −1 where an answer does not parse or was cut off."""
  task = generator.encode.questions.task
  return [
    parsed_verdict(task, text, example.record)
    for (example, _, _), text in zip(rows, texts, strict=True)
  ]


def parsed_verdict(task: Task, answer: Generation, record: Question) -> int:
  """Parses the verdict of one answer; −1 where it does not parse or was cut off."""
  return -1 if answer.truncated else task.strict(task.grammar, answer.text, record)


def likeliest_verdicts(
  generator: BatchGenerator, rows: Sequence[Row], requests: Requests, texts: Sequence[Generation]
) -> list[int]:
  """Returns the verdict whose first word is the most likely first token of the answer; the lowest of equals.

  Of a multiple-choice question, only its own options count. Raises UsageError for a word of several tokens.
  """
  first_words = generator.encode.questions.task.first_words
  verdicts = sorted(first_words)
  words = [generator.policy.processor.encode_text(first_words[verdict]) for verdict in verdicts]
  if long := [first_words[v] for v, word in zip(verdicts, words, strict=True) if len(word) != 1]:
    raise UsageError(
      f"method 'zero-shot' compares first tokens, and {long[0]!r} is not one token of this checkpoint; choose another "
      "method or template"
    )
  logits = np.asarray(generator.engine.first_token_logits(requests))
  scores = logits[:, [token for (token,) in words]]
  for scored, (example, _, _) in zip(scores, rows, strict=True):
    if options := example.record.options:
      scored[[v >= len(options) or not options[v] for v in verdicts]] = -np.inf
  return [verdicts[i] for i in scores.argmax(axis=-1)]


def check_batch(config: Config, mesh: Mesh, in_slots: bool = False) -> None:
  """Raises UsageError for batches that do not divide over the devices or cannot be in flight together.

  Also raises it in a run of several processes, which would all ask the same questions. Batches that share slots take
  turns, so they may be in flight together on any mesh.
  """
  if jax.process_count() > 1:
    raise UsageError(
      f"{jax.process_count()} processes see each other's devices here; one process asks the questions: use a machine "
      "that is not part of a larger TPU slice, or start one process"
    )
  parts = sharding.axis_product(mesh, sharding.ROWS)
  if config.batch_size % parts:
    raise UsageError(
      f"batch_size is {config.batch_size}; it must be a multiple of mesh.slice × mesh.data × mesh.fsdp = {parts}, "
      "over which its rows are spread"
    )
  if config.in_flight > 1 and mesh.size > 1 and not in_slots:
    raise UsageError(
      f"in_flight is {config.in_flight} on a mesh of {mesh.size} devices; batches in flight together would wait for "
      "each other's devices: set in_flight to 1"
    )


def _prediction(
  example: Example,
  question: PreparedQuestion,
  row: Encoded,
  text: Generation,
  verdict: int,
  extracted: int,
) -> Prediction:
  return Prediction.about(
    example,
    verdict=verdict,
    text=text.text,
    generated_tokens=text.tokens,
    prompt_tokens=len(row.tokens),
    truncated=text.truncated,
    retrieved=question.behavior.name if question.behavior else None,
    extracted=extracted,
  )
