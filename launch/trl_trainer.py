"""TRL's GRPOTrainer on the step that a config of `spatial-vlm dapo` describes, with a clock around its phases."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from endless_dapo import EndlessDapo

from spatial_vlm.benchmark.dapo_rows import half_right_verdicts
from spatial_vlm.config import Config
from spatial_vlm.metrics import PhaseClock
from spatial_vlm.rewards.table import RewardTerms, weighted_reward
from spatial_vlm.train.rl_settings import RlSettings

SAMPLING, OLD_LOGPROBS, UPDATE = "time/sampling_s", "time/old_logprobs_s", "time/update_s"


class FirstAnswers(NamedTuple):
  """What TRL computes the first old log-probabilities from; a row is an answer."""

  tokens: np.ndarray
  """Prompt and answer."""
  mask: np.ndarray
  """0 at padding."""
  patches: np.ndarray
  """Rows of patches; those of a prompt come once for each of its answers."""
  logp: np.ndarray
  """Log-probabilities of the answers' tokens."""


class Trainer:
  """TRL's trainer with a clock around its phases."""

  def __init__(self, config: Config, ours: EndlessDapo, args: argparse.Namespace):
    declare_torchvision_operators()
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration
    from trl import GRPOTrainer  # pyright: ignore[reportMissingImports]

    folder = config.checkpoint
    suppressed = ours.policy.special.never_sampled
    self.trainer = GRPOTrainer(
      model=Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=config.dtype),
      processing_class=AutoProcessor.from_pretrained(folder, padding_side="left"),
      reward_funcs=reward_function(ours.settings),
      args=trl_config(config, suppressed, args),
      train_dataset=dataset(config, ours),
    )
    self.clock = PhaseClock(time.process_time)
    self.first: FirstAnswers | None = None
    self._add_clock()

  def _add_clock(self) -> None:
    """Times two methods of the trainer. Log-probabilities that are computed without gradients are the old ones."""
    import torch

    sample = self.trainer._generate_and_score_completions
    score = self.trainer._get_per_token_logps_and_entropies

    def timed_sample(*args: Any) -> Any:
      with self.clock.phase(SAMPLING):  # and the old log-probabilities
        return sample(*args)

    def timed_score(model: Any, tokens: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
      if torch.is_grad_enabled():
        return score(model, tokens, mask, *args, **kwargs)
      with self.clock.phase(OLD_LOGPROBS):
        logp, *others = score(model, tokens, mask, *args, **kwargs)
      if self.first is None:
        arrays = (tokens, mask, kwargs["pixel_values"], logp)
        self.first = FirstAnswers(*(array.numpy().copy() for array in arrays))
      return logp, *others

    self.trainer._generate_and_score_completions = timed_sample
    self.trainer._get_per_token_logps_and_entropies = timed_score


def trl_config(config: Config, suppressed: Sequence[int], args: argparse.Namespace) -> Any:
  """Returns the GRPOConfig of the step that our config describes."""
  from trl import GRPOConfig  # pyright: ignore[reportMissingImports]

  optimizer, parts = config.optimizer, args.trl_micro_batches
  answers_of_update = config.groups_per_batch * config.group_size // config.minibatches
  return GRPOConfig(
    output_dir=str(Path(config.data.records).parent / "trl"),
    use_cpu=True,
    bf16=False,
    loss_type="dapo",
    beta=0.0,
    epsilon=config.eps_low,
    epsilon_high=config.eps_high,
    mask_truncated_completions=False,  # no answer ends
    per_device_train_batch_size=answers_of_update // parts,
    gradient_accumulation_steps=parts,
    steps_per_generation=config.minibatches * parts,
    num_generations=config.group_size,
    max_completion_length=config.max_new_tokens,
    temperature=config.temperature,
    generation_kwargs={"suppress_tokens": [*suppressed]},
    gradient_checkpointing=args.trl_checkpointing,
    shuffle_dataset=False,
    max_steps=config.minibatches * (args.rounds + 1),
    learning_rate=optimizer.learning_rate,
    lr_scheduler_type="constant",
    adam_beta1=optimizer.beta1,
    adam_beta2=optimizer.beta2,
    adam_epsilon=optimizer.eps,
    weight_decay=optimizer.weight_decay,
    max_grad_norm=optimizer.clip_norm,
    seed=config.seed,
    save_strategy="no",
    logging_strategy="no",
    report_to=[],
    disable_tqdm=True,
    dataloader_pin_memory=False,
  )


def reward_function(settings: RlSettings) -> Any:
  """Returns a reward function for TRL: our rewards, of verdicts of which every second one is right."""

  def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    lengths: Any = np.array([*map(len, completion_ids)]).reshape(-1, settings.group_size)
    label: Any = np.ones(len(lengths), np.int32)  # rewards depend on right and wrong alone
    terms = RewardTerms(
      verdict=half_right_verdicts(label, settings.group_size),
      label=label[:, None],
      length_tokens=lengths,
      max_new_tokens=settings.max_new_tokens,
      overlong_cache_tokens=settings.overlong_cache_tokens,
    )
    return np.asarray(weighted_reward(settings.rewards, terms)).ravel().tolist()

  return reward


def dataset(config: Config, ours: EndlessDapo) -> Any:
  """Returns TRL's data set: the same prompts in the same order."""
  import datasets  # pyright: ignore[reportMissingImports]

  rows, images = ours.rows(), Path(config.data.images)
  columns = {
    "prompt": [[{"role": "user", "content": question.text}] for _, question, _ in rows],
    "image": [str(images / example.record.image) for example, _, _ in rows],
  }
  return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


OPERATORS: list[Any] = []
"""Libraries of operators that this script declares; an operator goes with its library."""


def declare_torchvision_operators() -> None:
  """Lets transformers import a torchvision that was built for another torch: its Python code needs two operators."""
  import torch

  try:
    import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
  except RuntimeError:
    OPERATORS.append(torch.library.Library("torchvision", "DEF"))
    for name in ("nms", "qnms"):
      OPERATORS[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
