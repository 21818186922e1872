"""A policy of this project as its own teacher (rejection sampling): sampled chains that pass the checks are kept.

Concurrent questions are answered as one batch by one compiled program. A sample depends only on the question and its
seed, so that a resumed run, or one that asks in another order, gets the same answers.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
from etils import epath
from jax.sharding import Mesh

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import UnusableRecord
from spatial_vlm.inference.generation import inference_engine
from spatial_vlm.inference.policy import (
  AskedQuestion,
  Generation,
  Policy,
  decode_completions,
  encode_question,
  make_requests,
  prompt_format,
)
from spatial_vlm.processor.chat import Encoded, encode
from spatial_vlm.processor.image import UnreadableImage, open_image
from spatial_vlm.synthesis.errors import RefusedError
from spatial_vlm.synthesis.hashing import hash_seed
from spatial_vlm.synthesis.teacher import Question, Reply, Usage
from spatial_vlm.types import Purpose

_GATHER_S = 0.05
"""Time that a partial batch waits for further questions."""
_PIECES, _PIECE_BYTES = 64, 4096
"""Pieces of each weight file that are hashed; training changes nearly all of a file."""


@dataclasses.dataclass(frozen=True)
class PolicySettings:
  """Batch shape and sampling settings."""

  batch_size: int
  """Questions of one batch; set `concurrency` to at least as many."""
  prompt_shape: tuple[int, int]
  """Tokens and patches that every prompt is padded to: an answer must not depend on what else is asked."""
  max_output_tokens: int
  temperature: float | None
  """1 samples from the policy itself."""


def check(settings: PolicySettings) -> None:
  """Raises UsageError for settings that cannot work."""
  if settings.temperature is None:
    raise UsageError(
      "temperature is none, but a policy is sampled at one; give e.g. temperature=1.0"
    )
  numbers = dataclasses.asdict(settings)
  if min(*numbers.pop("prompt_shape"), *numbers.values()) <= 0:
    numbers["prompt_shape"] = settings.prompt_shape
    raise UsageError(
      f"{', '.join(f'{name} is {value}' for name, value in numbers.items())}; all must be above 0"
    )


class PolicyTeacher:
  """Asks a policy, as `async with PolicyTeacher(policy, mesh, version, settings) as teacher`.

  It answers blind, plain-text questions of the format `formats.CHAIN`, and questions without an image.
  """

  def __init__(self, policy: Policy, mesh: Mesh, version: str, settings: PolicySettings):
    """Asks a policy whose weights lie on `mesh`; `version` identifies them (see `weights_version`)."""
    check(settings)
    self.settings = settings
    self._policy, self._version = policy, version
    self._engine = inference_engine(policy, mesh)
    self._format = prompt_format([settings.prompt_shape], policy.dtype)
    self._waiting: asyncio.Queue[_PendingQuestion] = asyncio.Queue()
    self._worker: asyncio.Task[None] | None = None

  async def __aenter__(self) -> Self:
    self._worker = asyncio.create_task(self._work())
    return self

  async def __aexit__(self, *error: object) -> None:
    if self._worker is not None:
      self._worker.cancel()
      with contextlib.suppress(asyncio.CancelledError):
        await self._worker

  async def ask(self, question: Question) -> Reply:
    """See Teacher; raises RefusedError for an unreadable image or a prompt that is too long."""
    if question.system or question.schema is not None:
      raise UsageError(
        "a policy takes neither a system turn nor a schema; use the response format CHAIN"
      )
    row = await asyncio.to_thread(self._encode, question)
    answer = asyncio.get_running_loop().create_future()
    self._waiting.put_nowait(_PendingQuestion(question, row, answer))
    return self._reply(row, await answer)

  async def _work(self) -> None:
    """Answers batches until cancelled."""
    while True:
      batch = [
        pending for pending in await self._collect() if not pending.answer.done()
      ]  # not cancelled
      if not batch:
        continue
      try:
        texts = await asyncio.to_thread(self._answers, batch)
      except Exception as error:  # raised again by every waiting `ask`
        for pending in batch:
          if not pending.answer.done():
            pending.answer.set_exception(error)
      else:
        for pending, text in zip(batch, texts, strict=True):
          if not pending.answer.done():
            pending.answer.set_result(text)

  async def _collect(self) -> list["_PendingQuestion"]:
    """Collects the next batch, which may be partial."""
    batch = [await self._waiting.get()]
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_GATHER_S):
        while len(batch) < self.settings.batch_size:
          batch.append(await self._waiting.get())
    return batch

  def _encode(self, question: Question) -> Encoded:
    try:
      row = self._row(question)
      self._format.check(row)
    except (UnreadableImage, UnusableRecord) as error:
      raise RefusedError(str(error)) from error
    return row

  def _row(self, question: Question) -> Encoded:
    if question.image:
      return encode_question(self._policy.processor, open_image(question.image), question.text)
    turn = {"role": "user", "content": [{"type": "text", "text": question.text}]}
    return encode(self._policy.processor, [turn], generation_prompt=True)

  def _answers(self, batch: Sequence["_PendingQuestion"]) -> list[Generation]:
    """Answers a batch; pads a partial one with its last question."""
    policy, settings = self._policy, self.settings
    assert settings.temperature is not None  # see `check`
    full = [*batch, *[batch[-1]] * (settings.batch_size - len(batch))]
    requests = make_requests(
      policy,
      self._engine.mesh,
      [AskedQuestion(p.question.text, p.question.image, p.row) for p in full],
      [sample_id(pending.question) for pending in full],
      [-1] * len(full),
      self._format,
    )
    completions = self._engine.generate(
      requests,
      jax.random.fold_in(jax.random.key(0), Purpose.ROLLOUT),
      policy.sampling(settings.max_output_tokens, settings.temperature),
    )
    return decode_completions(policy, completions)[: len(batch)]

  def _reply(self, row: Encoded, answer: Generation) -> Reply:
    finish = "MAX_TOKENS" if answer.truncated else "STOP"
    usage = Usage(prompt=len(row.tokens), cached=0, answer=answer.tokens, thoughts=0)
    raw = {
      "text": answer.text,
      "finish": finish,
      "model_version": self._version,
      "usage": usage._asdict(),
    }
    return Reply(answer.text or None, finish, self._version, usage, raw)


class _PendingQuestion(NamedTuple):
  """A question waiting for its answer."""

  question: Question
  row: Encoded
  answer: asyncio.Future[Generation]


def sample_id(question: Question) -> int:
  """Returns the number in [0, 2³¹) that the answer's random key folds in; it depends on question and seed alone."""
  return hash_seed(question.seed, question.text, hashlib.sha256(question.image).hexdigest())


def weights_version(folder: epath.PathLike) -> str:
  """Returns the name of a checkpoint folder and a hash of its weights: file sizes and pieces of each file.

  Raises UsageError for a folder without weights.
  """
  folder = epath.Path(folder)
  if not (files := sorted(folder.glob("*.safetensors"))):
    raise UsageError(f"{folder} contains no *.safetensors; give a Hugging Face folder with weights")
  digest = hashlib.sha256()
  for path in files:
    size = path.stat().length
    digest.update(f"{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
      for piece in range(_PIECES):
        file.seek(piece * max(0, size - _PIECE_BYTES) // (_PIECES - 1))
        digest.update(file.read(_PIECE_BYTES))
  return f"{folder.name}@{digest.hexdigest()[:12]}"
