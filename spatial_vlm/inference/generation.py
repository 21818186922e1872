"""Batched generation: questions of one padded shape in, judged answers out."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spatial_vlm import sharding
from spatial_vlm.config import Config, UsageError
from spatial_vlm.data.records import Example
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.inference.policy import (
  Generation,
  Policy,
  PromptShape,
  collate,
  decode_completions,
  encode_question,
)
from spatial_vlm.inference.questions import PreparedQuestion, QuestionBuilder
from spatial_vlm.model.qwen3_vl import prefill
from spatial_vlm.process_rows import make_global_batch
from spatial_vlm.processor.chat import Encoded
from spatial_vlm.rollout import sampler
from spatial_vlm.tasks.task import Task
from spatial_vlm.types import Params, Prompts


def greedy(
  policy: Policy, params: Params, prompts: Prompts, max_new_tokens: int
) -> sampler.Completions:
  """Generates the answer to every prompt from the most likely token at each step."""
  return sampler.generate(
    params,
    prompts,
    jax.random.key(0),  # greedy decoding draws nothing
    policy.forbidden_tokens,
    model=policy.model,
    sampling=policy.sampling(max_new_tokens),
  )


Judge = Callable[[Task, Policy, Prompts, Sequence[Generation]], list[int]]
"""Returns the verdict of each answer, −1 for none."""


def parsed_verdicts(
  task: Task, policy: Policy, prompts: Prompts, texts: Sequence[Generation]
) -> list[int]:
  """Parses the verdicts; −1 where an answer does not parse or was cut off."""
  parsed = [None if text.truncated else task.grammar.parse(text.text) for text in texts]
  return [-1 if answer is None else answer.verdict for answer in parsed]


def likeliest_verdicts(
  task: Task, policy: Policy, prompts: Prompts, texts: Sequence[Generation]
) -> list[int]:
  """Returns the verdict whose first word is the most likely first token of the answer; the lowest of equals."""
  verdicts = sorted(task.first_words)
  words = [policy.processor.encode_text(task.first_words[verdict]) for verdict in verdicts]
  ids = [token for (token,) in words]
  logits = _first_token_logits(policy.params, prompts, policy.model)
  best = np.asarray(jnp.argmax(logits[:, jnp.array(ids)], axis=-1))
  return [verdicts[i] for i in best]


@functools.partial(jax.jit, static_argnames="model")
def _first_token_logits(params, prompts, model):
  return prefill(params, model, prompts)[0]


Row = tuple[Example, PreparedQuestion, Encoded]


class BatchGenerator(NamedTuple):
  """Asks a policy about examples, in batches, and judges its answers."""

  policy: Policy
  mesh: Mesh
  """The rows of a batch are spread over it; a batch that does not divide (one question) is on all of its devices."""
  shape: PromptShape
  max_new_tokens: int
  questions: QuestionBuilder
  judge: Judge = parsed_verdicts

  def encode(self, example: Example) -> Row:
    """Builds and encodes the question; raises UnusableRecord when the prompt is too long."""
    question = self.questions(example.record.caption)
    row = encode_question(self.policy.processor, example.image, question.text)
    self.shape.check(row)
    return example, question, row

  def answer(self, rows: Sequence[Row], ids: Sequence[int]) -> list[Prediction]:
    """Returns predictions for the rows whose id is not −1; the others only fill the batch."""
    policy = self.policy
    encoded = [row for _, _, row in rows]
    prompts = collate(policy.processor, encoded, ids, [-1] * len(ids), self.shape)
    prompts = make_global_batch(self.mesh, prompts)
    with jax.set_mesh(self.mesh):  # kernels are partitioned by hand and read the mesh
      completions = greedy(policy, policy.params, prompts, self.max_new_tokens)
    texts = decode_completions(policy, completions)
    verdicts = self.judge(self.questions.task, policy, prompts, texts)
    return [
      _prediction(*row, text, verdict)
      for row, id, text, verdict in zip(rows, ids, texts, verdicts, strict=True)
      if id >= 0
    ]


def check_batch(config: Config, mesh: Mesh) -> None:
  """Raises UsageError for batches that do not divide over the devices or cannot be in flight together.

  Also raises it in a run of several processes, which would all ask the same questions.
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
  if config.in_flight > 1 and mesh.size > 1:
    raise UsageError(
      f"in_flight is {config.in_flight} on a mesh of {mesh.size} devices; batches in flight together would wait for "
      "each other's devices: set in_flight to 1"
    )


def _prediction(
  example: Example, question: PreparedQuestion, row: Encoded, text: Generation, verdict: int
) -> Prediction:
  return Prediction(
    id=example.id,
    caption=example.record.caption,
    relation=example.record.relation,
    label=example.record.label,
    verdict=verdict,
    text=text.text,
    boxes_true=example.boxes,
    generated_tokens=text.tokens,
    prompt_tokens=len(row.tokens),
    truncated=text.truncated,
    retrieved=question.behavior.name if question.behavior else None,
  )
