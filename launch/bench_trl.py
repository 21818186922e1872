"""Times a DAPO step next to one of TRL's GRPOTrainer (`loss_type="dapo"`), in turns in one process.

Both start from one Hugging Face folder and read the same rendered scenes. A step answers `groups_per_batch` prompts
`group_size` times, computes the old log-probabilities and makes `minibatches` updates with AdamW in float32. No answer
ends early, and every second one counts as right, so that every step has the same work. TRL samples by `generate`.

The first round is not counted. In it the tokens of prompts, their patches and the log-probabilities of TRL's answers
are compared; the script ends where they differ. Times are CPU times, which other work on the machine changes least.

  pip install torch torchvision trl accelerate datasets    # next to spatial-vlm, best in an environment of its own
  OMP_NUM_THREADS=1 taskset -c 1 python launch/bench_trl.py        # freed memory stays with the process, as in commands
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 OMP_NUM_THREADS=1 taskset -c 1 python launch/bench_trl.py         # huge pages
  python launch/bench_trl.py --config.group_size=4 --config.remat=none           # settings of configs/dapo.py:tiny
"""

import argparse
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from endless_dapo import STEP, EndlessDapo
from etils import epath
from trl_trainer import OLD_LOGPROBS, SAMPLING, UPDATE, FirstAnswers, Trainer

from spatial_vlm import allocator
from spatial_vlm.benchmark.measure import ratios
from spatial_vlm.benchmark.results import description
from spatial_vlm.benchmark.row import Spread
from spatial_vlm.config import Config, load
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.data.scenes.writing import write_split
from spatial_vlm.hosts import user_errors
from spatial_vlm.text import markdown_table

CHECKPOINT = Path(__file__).parents[1] / "spatial_vlm" / "assets" / "tiny_base"
ROWS = {
  STEP: "DAPO step",
  SAMPLING: "sampling, rewards",
  OLD_LOGPROBS: "old log-probabilities",
  UPDATE: "update",
}
"""Phase → its name in the table."""
MAX_DIFFERENCE = {"patches": 1e-5, "log-probabilities": 3e-4}
"""Rounding: log-probabilities of thousands of sampled tokens, some of them below −10, differ by up to 8e-5."""

Seconds = dict[str, float]
"""CPU seconds of one step: of STEP and of each phase."""


def compare_inputs(first: FirstAnswers, ours: EndlessDapo) -> str:
  """Compares the first mini-batch's prompts, patches and log-probabilities; returns their differences in words.

  Raises SystemExit where they differ by more than rounding. Call it before our first step.
  """
  settings = ours.settings
  groups, length = settings.groups_per_batch // settings.minibatches, settings.max_new_tokens
  answers = slice(groups * settings.group_size)
  of_prompts = slice(0, answers.stop, settings.group_size)
  prompts = ours.prompts(groups)
  assert prompts.vision is not None  # every prompt has an image
  theirs = zip(first.tokens[of_prompts, :-length], first.mask[of_prompts, :-length], strict=True)
  own = zip(np.asarray(prompts.tokens), np.asarray(prompts.segments), strict=True)
  for number, pair in enumerate(zip(theirs, own, strict=True)):
    compare_tokens(number, *(row[real > 0].tolist() for row, real in pair))
  patches = first.patches.reshape(len(first.tokens), -1, first.patches.shape[-1])[of_prompts]
  completions = first.tokens[answers, -length:].astype(np.int32)
  logp = ours.logprobs(completions.reshape(groups, settings.group_size, length))
  differences = [
    difference("patches", patches, np.asarray(prompts.vision.patches)[:, : patches.shape[1]]),
    difference("log-probabilities", first.logp[answers], logp.reshape(-1, length)),
  ]
  return f"{groups} prompts have the same tokens; {'; '.join(differences)}"


def compare_tokens(number: int, theirs: list[int], own: list[int]) -> None:
  """Raises SystemExit where the tokens of a prompt differ."""
  if theirs != own:
    raise SystemExit(f"prompt {number} has the tokens {theirs} in TRL and {own} here")


def difference(name: str, theirs: np.ndarray, own: np.ndarray) -> str:
  """Returns the largest difference in words; raises SystemExit where it is above MAX_DIFFERENCE."""
  if theirs.shape != own.shape:
    raise SystemExit(f"{name} have the shape {theirs.shape} in TRL and {own.shape} here")
  largest, most = float(np.abs(theirs - own).max()), MAX_DIFFERENCE[name]
  if not largest <= most:
    raise SystemExit(
      f"{name} of TRL and ours differ by {largest:.1e}; rounding is at most {most:.0e}"
    )
  return f"{name} differ by at most {largest:.1e}"


def phases_of(readings: Mapping[str, float], total: float) -> Seconds:
  """Returns TRL's times of a step; sampling is without the old log-probabilities, and the update is the rest."""
  sampling, old = readings[SAMPLING], readings[OLD_LOGPROBS]
  return {STEP: total, SAMPLING: sampling - old, OLD_LOGPROBS: old, UPDATE: total - sampling}


def take_turns(theirs: Trainer, ours: EndlessDapo) -> list[tuple[Seconds, Seconds]]:
  """Returns the times of TRL and of ours in each round but the first, in which programs compile."""
  from transformers import TrainerCallback

  measured: list[tuple[Seconds, Seconds]] = []
  start = time.process_time()

  class OurTurn(TrainerCallback):
    """Makes one of our steps after each step of TRL."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
      nonlocal start
      if state.global_step % ours.settings.minibatches:
        return
      times = phases_of(theirs.clock.read(), time.process_time() - start)
      if not measured:
        assert theirs.first is not None  # TRL has computed old log-probabilities
        print(compare_inputs(theirs.first, ours), flush=True)
      measured.append((times, ours.step()))
      seconds = " s, here ".join(f"{of[STEP]:.2f}" for of in measured[-1])
      print(f"round {len(measured) - 1}: TRL {seconds} s", flush=True)
      start = time.process_time()

  theirs.trainer.add_callback(OurTurn())
  theirs.trainer.train()
  return measured[1:]


def table(measured: Sequence[tuple[Seconds, Seconds]]) -> str:
  """Returns medians over the rounds, and the ratio of each round as median and extremes."""
  cells = []
  for phase, name in ROWS.items():
    theirs, own = ([seconds[phase] for seconds in of] for of in zip(*measured, strict=True))
    medians = [f"{Spread.of(of).median:.2f}" for of in (theirs, own)]
    ratio = "{:.2f} ({:.2f} … {:.2f})".format(*ratios(theirs, own))
    cells.append([name, *medians, ratio])
  return markdown_table(["phase", "TRL, CPU s", "ours, CPU s", "TRL / ours (min … max)"], cells)


def read_config(checkpoint: str, folder: str, overrides: Sequence[str]) -> Config:
  """Returns the config of `dapo` with scenes in `folder` and a constant learning rate."""
  files = {"records": "train.jsonl", "images": "images", "validation": "validation.jsonl"}
  chosen = {f"data.{leaf}": f"{folder}/{name}" for leaf, name in files.items()}
  chosen |= {"checkpoint": checkpoint, "optimizer.schedule": "constant"}
  chosen["optimizer.warmup_steps"] = "0"
  fixed = [f"--config.{leaf}={value}" for leaf, value in chosen.items()]
  return load("configs/dapo.py:tiny", [*fixed, *overrides])


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--checkpoint", default=str(CHECKPOINT), help="Hugging Face folder; default: the tiny base")
  add("--rounds", type=int, default=5, help="steps of each (default 5)")
  add("--trl-micro-batches", type=int, default=1, help="parts of TRL's mini-batches (default 1)")
  add("--trl-checkpointing", action="store_true", help="gradient checkpointing in TRL")
  args, overrides = parser.parse_known_args()
  allocator.keep_freed_memory()  # as the commands do; for TRL too
  with tempfile.TemporaryDirectory() as folder:
    with user_errors():
      config = read_config(args.checkpoint, folder, overrides)
    write_split(SceneSource("train", config.seed, config.groups_per_batch), epath.Path(folder))
    ours = EndlessDapo(config)
    measured = take_turns(Trainer(config, ours, args), ours)
  machine = description()
  machine["versions"]["trl"] = importlib.metadata.version("trl")
  print(f"\n{machine}, {len(os.sched_getaffinity(0))} used")
  print(
    f"{config.groups_per_batch} groups of {config.group_size} answers of {config.max_new_tokens} tokens, "
    f"{config.minibatches} mini-batches; {len(measured)} rounds"
  )
  print(table(measured))


if __name__ == "__main__":
  main()
