"""The engine over HTTP: a vLLM server samples, and gets new weights by its weight-update calls.

The server runs elsewhere, e.g. on a GPU, and tokenizes and resizes images itself. Three checks keep it equal to the
trainer's policy: checksums of its weights after every update, the tokens of every prompt, and the metric
`rollout_logprob_gap`, which compares log-probabilities. Start the server on the folder that the run starts from (see
`vllm_client` for the pull requests that it needs):

  VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --dtype bfloat16 --logprobs-mode processed_logprobs \\
    --weight-transfer-config '{"backend": "disk"}' --mm-processor-kwargs '{"use_fast": false}'
"""

import concurrent.futures
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Bool, PRNGKeyArray
from PIL import Image

from spatial_vlm import hosts
from spatial_vlm.config import UsageError
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.parameters.partition import checksums
from spatial_vlm.process_rows import make_global_batch, own_rows
from spatial_vlm.processor.image import data_url, png
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.rollout.sampler import Completions, SamplingSettings
from spatial_vlm.rollout.vllm_client import VllmClient
from spatial_vlm.rollout.vllm_weights import check_served, write_weights
from spatial_vlm.types import Params

FORBIDDEN_BIAS = -100.0
"""The lowest bias that vLLM accepts; in float32 it takes all probability from a token."""


class ServedModel(NamedTuple):
  """A vLLM server and how weights reach it."""

  client: VllmClient
  folder: epath.Path
  """Folder for weights that this machine and the server see at the same path."""
  transfer: str
  """Name of TRANSFERS."""
  compares_checksums: bool
  """Whether the server's weights are verified after an update."""
  dtype: np.dtype
  """Type that the server computes in."""
  in_flight: int
  """Prompts that are with the server at a time."""


class VllmEngine:
  """Samples answers from a vLLM server.

  Each prompt is one request for `group_size` choices. vLLM gives choice i the seed of its request plus i; the seed is a
  function of (key, prompt), so that a completion does not depend on its batch. It does depend on the server: another
  GPU or version may round differently.

  Args:
    served: the server.
    model: sizes of the model.
    forbidden_tokens: ids that are never sampled.
    mesh: where completions are put.
    leaf_at: published weights → (path → array or parts of a kernel), see `checkpoint_folder.stream_tensors`.

  Raises UsageErrorOfAll, on all processes, where the server lacks what updates need.
  """

  def __init__(
    self,
    served: ServedModel,
    model: ModelConfig,
    forbidden_tokens: Bool[np.ndarray, "V"],
    mesh: Mesh,
    leaf_at: Callable[[Params], Callable[[str], Any]],
  ):
    self.served, self.model, self.mesh = served, model, mesh
    self._leaf_at = leaf_at
    with hosts.user_errors():
      self._name, self._longest = served.client.model()
      if jax.process_index() == 0:
        served.client.check_updates(served.transfer, served.compares_checksums)
    self._bias = {str(id): FORBIDDEN_BIAS for id in np.flatnonzero(forbidden_tokens)}
    self._published: dict[str, int] | None = None
    self._updates = 0

  def publish(self, weights: Params) -> None:
    """Sends the weights to the server, unless it has them, and compares its checksums with those of what was sent.

    Without `compares_checksums` nothing is compared.

    Raises UsageErrorOfAll, on all processes, where the server fails or holds other weights.
    """
    found = checksums(weights)
    if found == self._published:
      return
    self._published = None
    self._updates += 1
    first = jax.process_index() == 0
    name = f"weights-{self._updates:06d}"
    folder = self.served.folder / name
    with hosts.user_errors():
      expected = write_weights(
        folder if first else None, self.model, self._leaf_at(weights), self.served.dtype
      )
    with hosts.user_errors():
      if first:
        client = self.served.client
        client.update_weights(folder, name, self.served.transfer)
        if self.served.compares_checksums:
          check_served(expected, client.checksums(), client.url)
        folder.rmtree()
    self._published = found

  def generate(
    self, requests: Requests, key: PRNGKeyArray, sampling: SamplingSettings
  ) -> Completions:
    """Samples completions of every prompt.

    Raises UsageErrorOfAll, on all processes, for a request that fails or a prompt whose tokens differ in the server.
    """
    if self._published is None:
      raise RuntimeError("the engine has no weights; call publish first")
    ids = own_rows(requests.prompts.ids)
    tokens, segments = own_rows(requests.prompts.tokens), own_rows(requests.prompts.segments)
    prefixes = requests.prefixes or [()] * len(ids)
    prompts = [
      [*prefix, *row[real > 0].tolist()]
      for prefix, row, real in zip(prefixes, tokens, segments, strict=True)
    ]
    seeds = [request_seed(key, int(id)) for id in ids]
    questions = enumerate(zip(prompts, seeds, strict=True))
    calls = [functools.partial(self._answers, requests, sampling, *each) for each in questions]
    answers = []
    with hosts.user_errors():
      answers = _in_threads(calls, self.served.in_flight)
    return Completions(*make_global_batch(self.mesh, _padded(answers, sampling)))

  def release(self) -> None:
    """Does nothing: the server's memory is not the trainer's."""

  def _answers(
    self,
    requests: Requests,
    sampling: SamplingSettings,
    row: int,
    question: tuple[Sequence[int], int],
  ) -> list["Answer"]:
    """Returns the answers to the prompt of one row: its tokens and its seed."""
    prompt, seed = question
    length = len(prompt) + sampling.max_new_tokens
    if length > self._longest:
      raise UsageError(
        f"a prompt of {len(prompt)} tokens and {sampling.max_new_tokens} new ones are {length}, but the server takes "
        f"{self._longest}; raise vLLM's --max-model-len or lower max_new_tokens"
      )
    body = request_body(requests, row, sampling, seed)
    body |= {"model": self._name, "logit_bias": self._bias}
    found = self.served.client.complete(body)
    check_prompt(prompt, found.get("prompt_token_ids"))
    return read_answers(found, sampling, self.model.text.vocab_size)


class Answer(NamedTuple):
  """One sampled completion."""

  tokens: list[int]
  logp: list[float]


def request_seed(key: PRNGKeyArray, id: int) -> int:
  """Returns the seed of a prompt's first answer: 62 bits, since those of its other answers follow it."""
  high, low = np.asarray(jax.random.bits(jax.random.fold_in(key, id), (2,), np.uint32)).tolist()
  return (high >> 2) << 32 | low


def request_body(
  requests: Requests, row: int, sampling: SamplingSettings, seed: int
) -> dict[str, Any]:
  """Returns the chat completion request about one prompt, without the model.

  Settings that the served folder's generation_config.json would otherwise fill in (top-p, top-k, penalties) are given:
  they would bias the ratio of policies.
  """
  shown = requests.images[row]
  content = [
    *(
      {"type": "image_url", "image_url": {"url": _png_url(image)}}
      for image in (shown if isinstance(shown, list) else [shown])
    ),
    {"type": "text", "text": requests.texts[row]},
  ]
  system = [{"role": "system", "content": requests.systems[row]}] if requests.systems[row] else []
  return {
    "messages": [*system, {"role": "user", "content": content}],
    "n": sampling.group_size,
    "seed": seed,
    "max_completion_tokens": sampling.max_new_tokens,
    "temperature": sampling.temperature,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "stop_token_ids": [sampling.eos],
    "logprobs": True,
    "top_logprobs": 0,
    "return_token_ids": True,
  }


def _png_url(image: Image.Image | np.ndarray) -> str:
  """Returns an image as a PNG in a data URL: the server sees the same pixels."""
  picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
  return data_url(png(picture, compress_level=1))  # fast: the server is near


def check_prompt(expected: Sequence[int], found: Any) -> None:
  """Raises UsageError unless the server read the prompt as the trainer does, token for token."""
  if not isinstance(found, list):
    raise UsageError("the server returned no prompt_token_ids; a newer vLLM is needed")
  if list(expected) == found:
    return
  same = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
  where = f"differs at token {same}" if same is not None else "goes on"
  raise UsageError(
    f"the server reads a prompt as {len(found)} tokens and the trainer as {len(expected)}, which {where}; serve the "
    "folder that the run starts from, with its chat template and image settings"
  )


def read_answers(found: Any, sampling: SamplingSettings, vocabulary: int) -> list[Answer]:
  """Returns the choices of a chat completion in their order; raises UsageError for one that is not as asked."""
  try:
    choices = sorted(found["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(sampling.group_size)):
      raise ValueError(f"{len(choices)} choices for n = {sampling.group_size}")
    return [_answer(choice, sampling, vocabulary) for choice in choices]
  except (KeyError, TypeError, ValueError) as error:
    raise UsageError(
      f"the server's completion cannot be used ({error}); it must return token_ids and logprobs as vLLM 0.16 and later"
    ) from error


def _answer(choice: Any, sampling: SamplingSettings, vocabulary: int) -> Answer:
  tokens = choice["token_ids"]
  logp = [float(entry["logprob"]) for entry in choice["logprobs"]["content"]]
  if not all(isinstance(token, int) and 0 <= token < vocabulary for token in tokens):
    raise ValueError(f"a token id is outside 0 … {vocabulary - 1}")
  if not 1 <= len(tokens) <= sampling.max_new_tokens or len(logp) != len(tokens):
    raise ValueError(f"{len(tokens)} token_ids and {len(logp)} logprobs")
  if not all(map(math.isfinite, logp)):
    raise ValueError("a logprob is not finite")
  reason, ended = choice["finish_reason"], tokens[-1] == sampling.eos
  whole = ended if reason == "stop" else len(tokens) == sampling.max_new_tokens
  if reason not in ("stop", "length") or not whole:
    raise ValueError(
      f"finish_reason is {reason!r} after {len(tokens)} tokens, the last {tokens[-1]}"
    )
  return Answer(tokens, logp)


def _padded(
  answers: Sequence[Sequence[Answer]], sampling: SamplingSettings
) -> tuple[np.ndarray, ...]:
  """Returns tokens, mask and log-probabilities of the answers to this process's prompts, as padded rows."""
  rows = [answer for group in answers for answer in group]
  shape = (len(rows), sampling.max_new_tokens)
  tokens = np.full(shape, sampling.pad, np.int32)
  mask, logp = np.zeros(shape, bool), np.zeros(shape, np.float32)
  for row, answer in enumerate(rows):
    length = len(answer.tokens)
    tokens[row, :length], logp[row, :length] = answer.tokens, answer.logp
    mask[row, :length] = True
  return tokens, mask, logp


def _in_threads(calls: Sequence[Callable[[], Any]], threads: int) -> list[Any]:
  """Returns the results of the calls in their order; after the first error no further call is begun."""
  with concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="vllm") as pool:
    futures = [pool.submit(call) for call in calls]
    try:
      return [future.result() for future in futures]
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
