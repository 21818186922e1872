"""This project's own model as its own teacher: chains are drawn at random, and those that pass the checks are kept.

Questions asked at the same time are answered together, by one program of one shape. What is drawn depends on the
question and its seed alone, so that a run that goes on, or asks in another order, gets the same answers.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import UnusableRecord
from spatial_vlm.inference.policy import (
  Generation,
  Policy,
  PromptShape,
  collate,
  decode_completions,
  encode_question,
)
from spatial_vlm.processor.chat import Encoded
from spatial_vlm.processor.image import UnreadableImage, open_image
from spatial_vlm.rollout import sampler
from spatial_vlm.synthesis.teacher import Question, Refused, Reply, Usage
from spatial_vlm.types import Purpose

_GATHER_S = 0.05
"""How long a batch that is not full waits for further questions."""
_PIECES, _PIECE_BYTES = 64, 4096
"""What of each weight file is looked at: training changes nearly all of it."""


@dataclasses.dataclass(frozen=True)
class PolicySettings:
  """How every question is answered."""

  batch_size: int
  """Questions answered at once; ask at least as many at a time."""
  prompt_tokens: int
  patches: int
  max_output_tokens: int
  temperature: float
  """1 draws from the policy itself."""


def check(settings: PolicySettings) -> None:
  """Raises UsageError for settings that cannot work."""
  numbers = dataclasses.asdict(settings)
  if min(numbers.values()) <= 0:
    raise UsageError(
      f"{', '.join(f'{name} is {value}' for name, value in numbers.items())}; all have to be above 0"
    )


class PolicyTeacher:
  """Asks a policy, as `async with PolicyTeacher(policy, version, settings) as teacher`.

  It answers questions of the form `draft.CHAIN`: plain text, blind.
  """

  def __init__(self, policy: Policy, version: str, settings: PolicySettings):
    """`version` is what tells these weights from others, such as `weights_version` of their folder."""
    check(settings)
    self.settings = settings
    self._policy, self._version = policy.on_device(), version
    self._shape = PromptShape(settings.prompt_tokens, settings.patches)
    self._waiting: asyncio.Queue[_Asked] = asyncio.Queue()
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
    """See Teacher; Refused for a picture that cannot be read and for a prompt that is too long."""
    if question.system or question.schema is not None:
      raise UsageError("a policy takes neither a system turn nor a schema; ask in the form CHAIN")
    row = await asyncio.to_thread(self._encode, question)
    answer = asyncio.get_running_loop().create_future()
    self._waiting.put_nowait(_Asked(question, row, answer))
    return self._reply(row, await answer)

  async def _work(self) -> None:
    while True:
      batch = [asked for asked in await self._gathered() if not asked.answer.done()]  # cancelled
      if not batch:
        continue
      try:
        texts = await asyncio.to_thread(self._answers, batch)
      except Exception as error:  # of the program or the device: theirs who wait for it
        for asked in batch:
          if not asked.answer.done():
            asked.answer.set_exception(error)
      else:
        for asked, text in zip(batch, texts, strict=True):
          if not asked.answer.done():
            asked.answer.set_result(text)

  async def _gathered(self) -> list["_Asked"]:
    """The next batch, or what of it there is."""
    batch = [await self._waiting.get()]
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_GATHER_S):
        while len(batch) < self.settings.batch_size:
          batch.append(await self._waiting.get())
    return batch

  def _encode(self, question: Question) -> Encoded:
    try:
      row = encode_question(self._policy.processor, open_image(question.image), question.text)
      self._shape.check(row)
    except (UnreadableImage, UnusableRecord) as error:
      raise Refused(str(error)) from error
    return row

  def _answers(self, batch: Sequence["_Asked"]) -> list[Generation]:
    """Repeats the last question where the batch is not full."""
    policy, settings = self._policy, self.settings
    full = [*batch, *[batch[-1]] * (settings.batch_size - len(batch))]
    prompts = collate(
      policy.processor,
      [asked.row for asked in full],
      [draw_id(asked.question) for asked in full],
      [-1] * len(full),
      self._shape,
    )
    completions = sampler.generate(
      policy.params,
      prompts,
      jax.random.fold_in(jax.random.key(0), Purpose.ROLLOUT),
      policy.forbidden_tokens,
      model=policy.model,
      sampling=sampler.SamplingSettings(
        group_size=1,
        max_new_tokens=settings.max_output_tokens,
        temperature=settings.temperature,
        eos=policy.special.eos,
        pad=policy.special.pad,
      ),
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


class _Asked(NamedTuple):
  """A question that waits for its answer."""

  question: Question
  row: Encoded
  answer: asyncio.Future[Generation]


def draw_id(question: Question) -> int:
  """What random keys of an answer fold in, in [0, 2³¹): another one for every question and every seed of it."""
  picture = hashlib.sha256(question.image).hexdigest()
  digest = hashlib.sha256(f"{question.seed}\0{question.text}\0{picture}".encode()).digest()
  return int.from_bytes(digest[:4], "big") >> 1


def weights_version(folder: epath.PathLike) -> str:
  """Name of a checkpoint folder with a hash of its weights: sizes, and pieces all over each file.

  Raises UsageError for a folder without any.
  """
  folder = epath.Path(folder)
  if not (files := sorted(folder.glob("*.safetensors"))):
    raise UsageError(f"{folder} holds no *.safetensors; give a Hugging Face folder with weights")
  digest = hashlib.sha256()
  for path in files:
    size = path.stat().length
    digest.update(f"{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
      for piece in range(_PIECES):
        file.seek(piece * max(0, size - _PIECE_BYTES) // (_PIECES - 1))
        digest.update(file.read(_PIECE_BYTES))
  return f"{folder.name}@{digest.hexdigest()[:12]}"
