"""Answers requests, apart from HTTP: admits them, makes their prompts, runs them and returns their answers."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence

from spatial_vlm.processor.tokenizer import token_bytes
from spatial_vlm.rollout.slot_requests import Progress, SlotRequest
from spatial_vlm.serving.admission import Admission
from spatial_vlm.serving.answer_stream import AnswerStream
from spatial_vlm.serving.api_error import ApiError
from spatial_vlm.serving.chat_messages import ImageUrl, MessageLimits
from spatial_vlm.serving.chat_request import ChatRequest, Defaults
from spatial_vlm.serving.chat_response import Completion, Piece
from spatial_vlm.serving.engine_thread import EngineThread
from spatial_vlm.serving.images import decoded, download, download_failed, is_remote
from spatial_vlm.serving.limits import Limits
from spatial_vlm.serving.prompts import Prompt, PromptBuilder
from spatial_vlm.serving.server_metrics import ServerMetrics

log = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 32
"""Texts of more characters for each token that fits are refused before they are tokenized."""
TOKENS_PER_TURN = 4
"""Fewest tokens of a message in the chat template."""
COMMAS_PER_TOKEN, FREE_COMMAS = 4, 1000
"""Bodies of more commas are refused before they are parsed."""
DECODERS = 2
"""Requests whose images are decoded at a time: their memory is bounded by this number."""
DOWNLOADS = 8
"""Requests whose images are downloaded at a time."""
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
    self.limits, self.metrics = limits, metrics
    self.created = int(time.time())
    max_new_tokens, temperature = defaults
    limit = prompts.format.limit.tokens
    self.max_model_len = limit + max_new_tokens
    self.defaults = Defaults(
      model=model,
      max_new_tokens=max_new_tokens,
      temperature=temperature,
      samples=limits.samples,
      messages=MessageLimits(
        characters=limit * CHARACTERS_PER_TOKEN,
        turns=max(1, limit // TOKENS_PER_TURN),
        parts=limit,
        images=limits.images,
      ),
      commas=limit * COMMAS_PER_TOKEN + FREE_COMMAS,
    )
    self._table = token_bytes(prompts.processor.tokenizer)
    self._ids = itertools.count()
    self.admission = Admission(slots + limits.queued_answers)
    self._decoders = concurrent.futures.ThreadPoolExecutor(DECODERS, "decoder")
    # The tokenizer's caches and those of the handbook are for one thread at a time.
    self._encoding = threading.Lock()
    self._downloads = concurrent.futures.ThreadPoolExecutor(DOWNLOADS, "downloads")
    self._downloading = asyncio.Semaphore(DOWNLOADS)

  def start(self) -> None:
    """Starts the engine's thread."""
    self.engine.start()

  def stop(self) -> None:
    """Ends the threads; requests that still run get no answer."""
    self.engine.stop()
    for pool in (self._decoders, self._downloads):
      pool.shutdown(wait=False, cancel_futures=True)

  @contextlib.contextmanager
  def admitted(self) -> Iterator[None]:
    """Holds a place in the queue; ApiError 429 if there is none, 503 if no engine runs."""
    if not self.engine.alive:
      raise ApiError(503, "the engine does not run; restart the server")
    with self.admission.places(1):
      self.metrics.requests.inc()
      try:
        yield
      finally:
        self.metrics.requests.dec()

  async def prepare(self, request: ChatRequest) -> Completion:
    """Reads the images and makes the prompt; ApiError for a request that cannot be asked."""
    loop = asyncio.get_running_loop()
    remote = any(is_remote(image) for image in request.image_urls)
    # Downloaded files of few requests are in memory at a time, and images of fewer: files decode to much more.
    async with self._downloading if remote else contextlib.nullcontext():
      files = [await self._downloaded(image) for image in request.image_urls]
      abandoned = threading.Event()
      try:
        prompt = await loop.run_in_executor(
          self._decoders, self._encoded, request, files, abandoned
        )
      finally:
        abandoned.set()
    self.metrics.prompt_tokens.inc(prompt.tokens)
    # The turns hold the images of the body, which the answer does not need.
    request = dataclasses.replace(request, turns=())
    completion = Completion(self.model, self.prompts.task, request, prompt)
    if prompt.behavior:
      self.metrics.recalls.inc()
      self.metrics.saved_tokens.inc(max(0, completion.saved_tokens))
    return completion

  async def _downloaded(self, image: ImageUrl) -> bytes | None:
    """Returns the file of an image; None for a data URL."""
    if not is_remote(image):
      return None
    loop, limits = asyncio.get_running_loop(), self.limits
    reading = loop.run_in_executor(self._downloads, download, image, limits)
    try:  # the look-up of the host's address has no time limit of its own
      return await asyncio.wait_for(reading, limits.image_timeout_s + 1)
    except TimeoutError:
      raise download_failed(image, limits) from None

  def _encoded(
    self, request: ChatRequest, files: Sequence[bytes | None], abandoned: threading.Event
  ) -> Prompt:
    """Decodes the images of one request and makes its prompt, in a thread.

    Raises CancelledError before the next image once the request is abandoned. The image that is being decoded cannot be
    interrupted; the limits of its pixels and scans bound its time.
    """
    images = []
    for image, file in zip(request.image_urls, files, strict=True):
      images.append(decoded(image, file, self.limits))
      if abandoned.is_set():
        raise concurrent.futures.CancelledError
    with self._encoding:
      return self.prompts(request, images)

  async def pieces(self, completion: Completion) -> AsyncGenerator[Piece, None]:
    """Yields the parts of the answers as the engine writes them, until all have ended.

    Closing the iterator frees the slots. Raises ApiError if the engine fails.
    """
    arrived: asyncio.Queue[tuple[int, Progress | Exception]] = asyncio.Queue()
    stop, samples = completion.request.stop, range(len(completion.samples))
    streams = [AnswerStream(sample, self._table, stop) for sample in samples]
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
        piece = streams[sample].piece(progress)
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
        top_logprobs=request.top_logprobs,
      )
      put = functools.partial(_put, arrived, sample)
      self.engine.submit(slot_request, put)
    return ids

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
