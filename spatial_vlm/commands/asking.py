"""Putting questions to a policy: prompts of one fixed shape in, written answers out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from etils import epath
from tqdm import tqdm

from spatial_vlm import answers, rollout
from spatial_vlm.data.pipeline import ordered
from spatial_vlm.data.records import Example, First
from spatial_vlm.evaluation.scoring import Prediction
from spatial_vlm.policy import Policy, PromptShape, Written, collate, encode_question, written
from spatial_vlm.processor.chat import Encoded
from spatial_vlm.reuse.prompt import Plan
from spatial_vlm.types import Params, Prompts


def greedy(
  policy: Policy, params: Params, prompts: Prompts, max_tokens: int
) -> rollout.Completions:
  """The likeliest answer to every prompt, token by token."""
  return rollout.generate(
    params,
    prompts,
    jax.random.key(0),  # a greedy choice draws nothing
    policy.banned,
    model=policy.model,
    samples=1,
    max_tokens=max_tokens,
    temperature=0.0,
    eos=policy.special.eos,
    pad=policy.special.pad,
  )


def written_verdicts(policy: Policy, prompts: Prompts, texts: Sequence[Written]) -> list[int]:
  """1 yes, 0 no, −1 when the answer does not parse or was cut off."""
  parsed = [None if text.truncated else answers.parse(text.text) for text in texts]
  return [-1 if answer is None else answer.verdict for answer in parsed]


Row = tuple[Example, Plan, Encoded]


class Asker(NamedTuple):
  """How statements are put to a policy, and its answers judged."""

  policy: Policy
  shape: PromptShape
  max_tokens: int
  plan: Callable[[str], Plan]
  """Caption -> the form and words of the question."""
  judge: Callable[[Policy, Prompts, Sequence[Written]], list[int]] = written_verdicts

  def encode(self, example: Example) -> Row:
    """Raises UnusableRecord when the prompt is too long."""
    plan = self.plan(example.record.caption)
    row = encode_question(self.policy.processor, example.image, plan.question)
    self.shape.check(row)
    return example, plan, row

  def answer(self, rows: Sequence[Row], ids: Sequence[int]) -> list[Prediction]:
    """Predictions for the rows whose id is not −1: those only fill the batch."""
    policy = self.policy
    prompts = collate(
      policy.processor, [row for _, _, row in rows], ids, [-1] * len(ids), self.shape
    )
    texts = written(policy, greedy(policy, policy.params, prompts, self.max_tokens))
    verdicts = self.judge(policy, prompts, texts)
    return [
      prediction(*row, text, verdict)
      for row, id, text, verdict in zip(rows, ids, texts, verdicts, strict=True)
      if id >= 0
    ]


END = '{"end": true}'
"""Last line of a part; without it the part was being written when the run was killed."""


def stored_answers(
  folder: epath.Path,
  asker: Asker,
  examples: First,
  batch_size: int,
  max_bad_share: float,
  name: str,
) -> list[Prediction]:
  """Answers to all examples: those that earlier starts left in `folder`, one file a batch, and the missing ones."""
  folder.mkdir(parents=True, exist_ok=True)
  batches = -(-len(examples) // batch_size)
  predictions: list[Prediction] = []
  done = 0
  while done < batches and (stored := read_part(folder / f"part-{done:05d}.jsonl")) is not None:
    predictions += stored
    done += 1
  start = min(done * batch_size, len(examples))
  missing = ordered(
    examples,
    asker.encode,
    lambda rows, ids: (rows, ids.tolist()),
    batch_size=batch_size,
    start=start,
    left_out=sorted({*range(start)} - {p.id for p in predictions}),
    max_bad_share=max_bad_share,
  )
  right = sum(p.right for p in predictions)
  bar = tqdm(missing, desc=name, initial=done, total=batches, dynamic_ncols=True)
  for number, (rows, ids) in enumerate(bar, done):
    answered = asker.answer(rows, ids)
    lines = [*(p.to_json() for p in answered), END]
    (folder / f"part-{number:05d}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    predictions += answered
    right += sum(p.right for p in answered)
    bar.set_postfix(accuracy=f"{right / max(len(predictions), 1):.3f}")
  return predictions


def read_part(path: epath.Path) -> list[Prediction] | None:
  """Predictions of a finished part, else None."""
  if not path.exists():
    return None
  *lines, last = path.read_text().splitlines() or [""]
  return [Prediction.from_json(line) for line in lines] if last == END else None


def prediction(
  example: Example, plan: Plan, row: Encoded, text: Written, verdict: int
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
