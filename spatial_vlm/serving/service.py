"""What the server does with a request, apart from HTTP: admit it, make its prompt, run it, give its answer."""

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import PIL.Image

from spatial_vlm.processor.tokenizer import token_bytes
from spatial_vlm.rollout.slot_requests import Progress, SlotRequest
from spatial_vlm.serving.api_error import ApiError
from spatial_vlm.serving.chat_request import ChatRequest, Defaults
from spatial_vlm.serving.chat_response import Completion, Piece, TokenLogprob
from spatial_vlm.serving.engine_thread import EngineThread
from spatial_vlm.serving.images import is_remote, load_image
from spatial_vlm.serving.limits import Limits
from spatial_vlm.serving.prompts import PromptBuilder
from spatial_vlm.serving.server_metrics import ServerMetrics
from spatial_vlm.serving.text_stream import TextStream

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
"""What a refused client is told to wait."""
CHARACTERS_PER_TOKEN = 32
"""Texts of more characters for each token that fits are refused before they are tokenized."""
DOWNLOADS = 8
"""Images that are downloaded at a time."""
SEEDS = 2**31
"""Seeds of clients count modulo this number."""


class ChatService:
  """Answers requests with one model.

  Args:
    model: served name of the model.
    prompts: encodes requests.
    engine: runs them.
    limits: of requests.
    defaults: (most new tokens, temperature) of requests that give none.
    slots: answers that the engine generates at a time.
    metrics: counts.
  """

  def __init__(
    self,
    model: str,
    prompts: PromptBuilder,
    engine: EngineThread,
    limits: Limits,
    defaults: tuple[int, float],
    slots: int,
    metrics: ServerMetrics,
  ):
    self.model, self.prompts, self.engine = model, prompts, engine
    self.limits, self.slots, self.metrics = limits, slots, metrics
    self.created = int(time.time())
    max_new_tokens, temperature = defaults
    limit = prompts.format.limit.tokens
    self.max_model_len = limit + max_new_tokens
    self.defaults = Defaults(
      model=model,
      max_new_tokens=max_new_tokens,
      temperature=temperature,
      samples=limits.samples,
      text_characters=limit * CHARACTERS_PER_TOKEN,
      images=limits.images,
    )
    self._table = token_bytes(prompts.processor.tokenizer)
    self._ids = itertools.count()
    self._admitted = 0
    # One thread encodes: the tokenizer's caches and those of the handbook belong to it.
    self._encoder = concurrent.futures.ThreadPoolExecutor(1, "encoder")
    self._downloads = concurrent.futures.ThreadPoolExecutor(DOWNLOADS, "downloads")

  def start(self) -> None:
    """Starts the engine's thread."""
    self.engine.start()

  def stop(self) -> None:
    """Ends the threads; requests that still run get no answer."""
    self.engine.stop()
    for pool in (self._encoder, self._downloads):
      pool.shutdown(wait=False, cancel_futures=True)

  @contextlib.contextmanager
  def admitted(self) -> Iterator[None]:
    """Holds a place in the queue; ApiError 429 if there is none, 503 without an engine."""
    if not self.engine.alive:
      raise ApiError(503, "the engine does not run; restart the server")
    most = self.slots + self.limits.queued_requests
    if self._admitted >= most:
      raise ApiError(
        429,
        f"{self._admitted} requests run or wait, which is the limit; try again later",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(RETRY_AFTER_S)},
      )
    self._admitted += 1
    self.metrics.requests.set(self._admitted)
    try:
      yield
    finally:
      self._admitted -= 1
      self.metrics.requests.set(self._admitted)

  async def prepare(self, request: ChatRequest) -> Completion:
    """Reads the images and makes the prompt; ApiError for a request that cannot be asked."""
    loop = asyncio.get_running_loop()
    images: list[PIL.Image.Image] = []
    for image in request.image_urls:
      pool = self._downloads if is_remote(image) else self._encoder
      images.append(await loop.run_in_executor(pool, load_image, image, self.limits))
    prompt = await loop.run_in_executor(self._encoder, self.prompts, request, images)
    self.metrics.prompt_tokens.inc(prompt.tokens)
    completion = Completion(self.model, self.prompts.task, request, prompt)
    if prompt.behavior:
      self.metrics.recalls.inc()
      self.metrics.saved_tokens.inc(max(0, completion.saved_tokens))
    return completion

  async def pieces(self, completion: Completion) -> AsyncIterator[Piece]:
    """Yields what the engine adds to the answers, until all have ended.

    Closing the iterator frees the slots. Raises ApiError if the engine fails.
    """
    arrived: asyncio.Queue[tuple[int, Progress | Exception]] = asyncio.Queue()
    streams = [TextStream(self._table, completion.request.stop) for _ in completion.samples]
    begun = time.monotonic()
    running = self._submit(completion, arrived)
    try:
      while running:
        sample, progress = await arrived.get()
        if isinstance(progress, Exception):
          raise ApiError(500, "the engine failed; try again") from progress
        if sample not in running:
          continue  # a stop string has ended it
        if not any(sample.count for sample in completion.samples):
          self.metrics.first_token_seconds.observe(time.monotonic() - begun)
        piece = self._piece(sample, progress, streams[sample])
        if piece.finished:
          self.engine.cancel(running.pop(sample))
        self._add(completion, piece)
        yield piece
    finally:
      for id in running.values():
        self.engine.cancel(id)

  def _submit(
    self, completion: Completion, arrived: asyncio.Queue[tuple[int, Progress | Exception]]
  ) -> dict[int, int]:
    """Hands in one request for each answer; returns their ids by the number of the answer.

    Answers of one request take slots one by one, so that their number compiles no further program; the number keys
    their random draws.
    """
    request, prompt = completion.request, completion.prompt
    seed = secrets.randbelow(SEEDS) if request.seed is None else request.seed % SEEDS
    ids = {sample: next(self._ids) for sample in range(request.samples)}
    for sample, id in ids.items():
      slot_request = SlotRequest(
        id=id,
        key_id=sample,
        prompt=prompt.rest,
        prefix=prompt.prefix,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=seed,
      )
      put = functools.partial(_put, arrived, sample)
      self.engine.submit(slot_request, put)
    return ids

  def _piece(self, sample: int, progress: Progress, stream: TextStream) -> Piece:
    text, tokens, count = "", [], 0
    for token, logp in zip(progress.tokens, progress.logp, strict=True):
      count += 1
      if piece := self._table[token]:
        tokens.append(TokenLogprob(piece, logp))
        text += stream.push(token)
      if stream.stopped:
        return Piece(sample, text, tokens, count, "stop")
    if progress.finished:
      text += stream.end()
    finished = "stop" if stream.stopped else progress.finished
    return Piece(sample, text, tokens, count, finished)

  def _add(self, completion: Completion, piece: Piece) -> None:
    sample = completion.samples[piece.sample]
    sample.add(piece)
    self.metrics.generated_tokens.inc(piece.count)
    if piece.finished:
      self.metrics.answer_tokens.observe(sample.count)

  def models(self) -> Sequence[dict]:
    """Returns the objects of /v1/models."""
    return [
      {
        "id": self.model,
        "object": "model",
        "created": self.created,
        "owned_by": "spatial_vlm",
        "max_model_len": self.max_model_len,
        "spatial_vlm": {"behaviors": self.prompts.recall is not None},
      }
    ]


def _put(arrived: asyncio.Queue, sample: int, progress: Progress | Exception) -> None:
  arrived.put_nowait((sample, progress))
