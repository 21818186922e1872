"""Putting questions to a policy: prompts of one fixed shape in, written answers out."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from spatial_vlm import answers, sharding
from spatial_vlm.config import Config, UsageError
from spatial_vlm.data.pipeline import ordered_batches
from spatial_vlm.data.reading import ReadOptions
from spatial_vlm.data.records import Example, Take
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.inference.policy import (
  Generation,
  Policy,
  PromptShape,
  collate,
  encode_question,
  written,
)
from spatial_vlm.inference.questions import Plan
from spatial_vlm.processor.chat import Encoded
from spatial_vlm.rollout import sampler
from spatial_vlm.types import Params, Prompts


def greedy(
  policy: Policy, params: Params, prompts: Prompts, max_new_tokens: int
) -> sampler.Completions:
  """The likeliest answer to every prompt, token by token."""
  return sampler.generate(
    params,
    prompts,
    jax.random.key(0),  # a greedy choice draws nothing
    policy.forbidden_tokens,
    model=policy.model,
    sampling=sampler.SamplingSettings(
      group_size=1,
      max_new_tokens=max_new_tokens,
      temperature=0.0,
      eos=policy.special.eos,
      pad=policy.special.pad,
    ),
  )


def written_verdicts(policy: Policy, prompts: Prompts, texts: Sequence[Generation]) -> list[int]:
  """1 yes, 0 no, −1 when the answer does not parse or was cut off."""
  parsed = [None if text.truncated else answers.parse(text.text) for text in texts]
  return [-1 if answer is None else answer.verdict for answer in parsed]


Row = tuple[Example, Plan, Encoded]


class BatchGenerator(NamedTuple):
  """How statements are put to a policy, and its answers judged."""

  policy: Policy
  mesh: Mesh
  """Batches are spread over it by rows; a batch that does not divide (one question) lies on all of its devices."""
  shape: PromptShape
  max_new_tokens: int
  plan: Callable[[str], Plan]
  """Caption -> the form and words of the question."""
  judge: Callable[[Policy, Prompts, Sequence[Generation]], list[int]] = written_verdicts

  def encode(self, example: Example) -> Row:
    """Raises UnusableRecord when the prompt is too long."""
    plan = self.plan(example.record.caption)
    row = encode_question(self.policy.processor, example.image, plan.question)
    self.shape.check(row)
    return example, plan, row

  def answer(self, rows: Sequence[Row], ids: Sequence[int]) -> list[Prediction]:
    """Predictions for the rows whose id is not −1: those only fill the batch."""
    policy = self.policy
    encoded = [row for _, _, row in rows]
    prompts = collate(policy.processor, encoded, ids, [-1] * len(ids), self.shape)
    prompts = sharding.make_global_batch(self.mesh, prompts)
    with jax.set_mesh(self.mesh):  # for kernels, which are cut for it by hand
      completions = greedy(policy, policy.params, prompts, self.max_new_tokens)
    texts = written(policy, completions)
    verdicts = self.judge(policy, prompts, texts)
    return [
      prediction(*row, text, verdict)
      for row, id, text, verdict in zip(rows, ids, texts, verdicts, strict=True)
      if id >= 0
    ]


def on_mesh(policy: Policy, mesh: Mesh) -> Policy:
  """The same, its weights over the mesh."""
  shardings = sharding.param_shardings(mesh, policy.params)
  return policy._replace(params=jax.device_put(policy.params, shardings))


def check_batch(config: Config, mesh: Mesh) -> None:
  """Raises UsageError for batches that the devices cannot share out, or that cannot be in flight together; and where
  other processes would ask the same."""
  if jax.process_count() > 1:
    raise UsageError(
      f"{jax.process_count()} processes see each other's devices here; questions are asked by one: use a machine that "
      "is not part of a larger TPU slice, or start one process"
    )
  parts = sharding.axis_product(mesh, sharding.ROWS)
  if config.batch_size % parts:
    raise UsageError(
      f"batch_size is {config.batch_size}; it must be a multiple of mesh.slice × mesh.data × mesh.fsdp = {parts}, "
      "which share its rows"
    )
  if config.in_flight > 1 and mesh.size > 1:
    raise UsageError(
      f"in_flight is {config.in_flight} on a mesh of {mesh.size} devices; batches in flight together would wait for "
      "each other's devices: set in_flight to 1"
    )


END = '{"end": true}'
"""Last line of a part; without it the part was being written when the run was killed."""


def stored_answers(
  folder: epath.Path,
  asker: BatchGenerator,
  examples: Take,
  batch_size: int,
  in_flight: int,
  max_bad_share: float,
  name: str,
) -> list[Prediction]:
  """Answers to all examples: those that earlier starts left in `folder`, one file a batch, and the missing ones.

  `in_flight` batches are answered at a time.
  """
  folder.mkdir(parents=True, exist_ok=True)
  batches = -(-len(examples) // batch_size)
  predictions: list[Prediction] = []
  done = 0
  while done < batches and (stored := read_part(folder / f"part-{done:05d}.jsonl")) is not None:
    predictions += stored
    done += 1
  start = min(done * batch_size, len(examples))
  missing = ordered_batches(
    examples,
    asker.encode,
    lambda rows, ids: (rows, ids.tolist()),
    batch_size,
    ReadOptions(max_bad_share=max_bad_share),
    start=start,
    skipped=sorted({*range(start)} - {p.id for p in predictions}),
  )
  right = sum(p.right for p in predictions)
  results = in_order(lambda batch: asker.answer(*batch), missing, in_flight)
  bar = tqdm(results, desc=name, initial=done, total=batches, dynamic_ncols=True)
  for number, answered in enumerate(bar, done):
    lines = [*(p.to_json() for p in answered), END]
    (folder / f"part-{number:05d}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    predictions += answered
    right += sum(p.right for p in answered)
    bar.set_postfix(accuracy=f"{right / max(len(predictions), 1):.3f}")
  return predictions


def in_order(work: Callable[[Any], Any], items: Iterable[Any], in_flight: int) -> Iterator[Any]:
  """`work(item)` of each item in turn, while `in_flight` of them are worked on in threads.

  On a CPU the small products of decoding keep one core busy: two batches keep two. On an accelerator the words of one
  batch are read while the next is generated. Where reading the items fails, those read before are worked on first.
  """
  waiting: collections.deque[Future] = collections.deque()
  pool = ThreadPoolExecutor(in_flight)
  try:
    for item in _failing_last(items):
      waiting.append(item if isinstance(item, Future) else pool.submit(work, item))
      if len(waiting) > in_flight:  # one more than are worked on: no thread waits for the caller
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def _failing_last(items: Iterable[Any]) -> Iterator[Any]:
  """The items, and in place of an error behind them a future that raises it."""
  try:
    yield from items
  except Exception as error:
    future: Future = Future()
    future.set_exception(error)
    yield future


def read_part(path: epath.Path) -> list[Prediction] | None:
  """Predictions of a finished part, else None."""
  if not path.exists():
    return None
  *lines, last = path.read_text().splitlines() or [""]
  return [Prediction.from_json(line) for line in lines] if last == END else None


def prediction(
  example: Example, plan: Plan, row: Encoded, text: Generation, verdict: int
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
    retrieved=plan.behavior.name if plan.behavior else None,
  )
