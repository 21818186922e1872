"""The stages of the demo: which command each runs, with which settings, and which stages it waits for."""

from typing import NamedTuple

from etils import epath

from spatial_vlm import config as config_lib
from spatial_vlm.config import Config

DONE = "finished.json"
TIMED = "timed.json"


class Stage(NamedTuple):
  """One command of the method, with the settings that differ from its preset."""

  title: str
  folder: str
  command: str
  """Name of the command."""
  preset: str
  changes: dict[str, object]
  seconds: float
  """Expected on one of two busy cores; the time left is scaled by this machine's pace so far."""
  needs: tuple[str, ...] = ()
  """Names of the stages that it waits for."""
  note: str = DONE
  """File in its folder that marks its end and says when it ran."""

  @property
  def name(self) -> str:
    """Folder and note: two stages may share a folder."""
    return f"{self.folder}/{self.note}"

  def settings(self) -> Config:
    """Loads the config of its command; raises UsageError for a leaf or a value that does not exist."""
    changes = [f"--config.{leaf}={value}" for leaf, value in self.changes.items()]
    return config_lib.load(f"configs/{self.command}.py:{self.preset}", changes)


def stages(config: Config, workdir: epath.Path) -> list[Stage]:
  """Returns the stages of the method, each after those that it needs, the longest chain of them first."""
  make = StageMaker(config, workdir)
  base = config.base
  trained = [
    make.scenes(28),
    make.sft("SFT on chains of thought", "sft", "tiny", base, 364),
    make.dapo("dapo", "sft", 380),
    make.behaviors("behaviors", "dapo", 104),
    make.sft("fine-tuning on its own answers", "sft_reuse", "reuse", "dapo", 471),
    make.sft("SFT on direct answers", "sft_direct", "direct", base, 366),
  ]
  measured = [
    make.evaluate("reuse", "evaluate_reuse", 38, "sft_reuse"),
    make.evaluate("chain", "evaluate_reuse_chain", 16, "sft_reuse", **PART),
    make.evaluate("majority", "evaluate_majority", 3, base),
    make.evaluate("zero-shot", "evaluate_zero_shot", 43, base, **WORD),
    make.evaluate("direct", "evaluate_direct", 24, "sft_direct", **WORD),
    make.evaluate("chain", "evaluate_sft", 64, "sft"),
    make.evaluate("chain", "evaluate_dapo", 59, "dapo"),
  ]
  untimed = [*trained, *measured]
  return untimed + one_by_one(untimed, measured, config.timed_questions)


def one_by_one(before: list[Stage], measured: list[Stage], questions: int) -> list[Stage]:
  """Returns the same evaluations again, to time single questions: each runs when all other stages have ended.

  Without `questions` nothing is timed.
  """
  if not questions:
    return []
  timed = []
  for stage in measured:
    changes = {**stage.changes, "timed_questions": questions}
    needs = tuple(s.name for s in [*before, *timed])
    title = stage.title.replace("evaluation", "seconds per answer")
    if stage.changes["method"] != "majority":
      timed.append(stage._replace(title=title, changes=changes, seconds=3, needs=needs, note=TIMED))
  return timed


WORD = {"max_new_tokens": 16}
"""Room for an answer of one word."""
PART = {"limit": 1000}
"""Enough examples to see whether the full chain is unlearnt."""
PROMPT_SHAPES = ((64, 64),)
"""As in DAPO, whose compiled program for validation then serves the evaluations too."""


class StageMaker(NamedTuple):
  """Makes the stages of one demo: which stage reads the files of which. `seconds` is the expected duration."""

  config: Config
  workdir: epath.Path

  @property
  def scenes_folder(self) -> epath.Path:
    """Workdir of the stage that renders the scenes."""
    return self.workdir / "scenes"

  @property
  def labels(self) -> dict[str, object]:
    """Leaves for the labelled training records."""
    folder = self.scenes_folder
    return {"data.records": folder / "train.jsonl", "data.images": folder / "images"}

  def policy(self, source: str) -> object:
    """Returns the checkpoint that the stage `source` writes, or the base."""
    return source if source == self.config.base else self.workdir / source / "export"

  def needs(self, *folders: str) -> tuple[str, ...]:
    """Returns the names of the stages that write these folders; the base has none."""
    return tuple(f"{folder}/{DONE}" for folder in folders if folder != self.config.base)

  def scenes(self, seconds: float) -> Stage:
    """Renders scenes and writes chains about them."""
    config = self.config
    changes = {
      "seed": config.seed,
      "counts.train": config.training_scenes,
      "counts.validation": config.validation_scenes,
      "counts.test": config.test_scenes,
      "chains": config.chains,
    }
    return Stage("scenes", "scenes", "scenes", "tiny", changes, seconds)

  def sft(self, title: str, folder: str, preset: str, source: str, seconds: float) -> Stage:
    """Fine-tunes the policy of `source` on the conversations of the preset."""
    own = self.workdir / "behaviors" / "conversations.jsonl"
    conversations = {
      "direct": self.scenes_folder / "direct.jsonl",
      "tiny": self.scenes_folder / "chains.jsonl",
    }
    epochs = {"direct": self.config.direct_epochs, "tiny": self.config.sft_epochs}
    changes = {
      "seed": self.config.seed,
      "checkpoint": self.policy(source),
      "data.conversations": conversations.get(preset, own),
      "data.images": self.scenes_folder / "images",
      "epochs": epochs.get(preset, self.config.reuse_epochs),
    }
    read = "behaviors" if preset == "reuse" else "scenes"
    return Stage(title, folder, "sft", preset, changes, seconds, self.needs(read, source))

  def dapo(self, folder: str, source: str, seconds: float) -> Stage:
    """Aligns the policy of `source`."""
    changes = {
      "seed": self.config.seed,
      "checkpoint": self.policy(source),
      "data.validation": self.scenes_folder / "validation.jsonl",
      "validate_prompts": min(512, self.config.validation_scenes),
      "validate_batch": min(256, self.config.validation_scenes),
      "steps": self.config.dapo_steps,
    }
    needs = self.needs("scenes", source)
    return Stage("DAPO", folder, "dapo", "tiny", self.labels | changes, seconds, needs)

  def behaviors(self, folder: str, source: str, seconds: float) -> Stage:
    """Extracts behaviors from the answers of the policy of `source`."""
    changes = {
      "checkpoint": self.policy(source),
      "limit": self.config.behavior_scenes,
      "min_support": self.config.min_support,
    }
    title = "behaviors from the policy's own chains"
    changes = self.labels | changes
    return Stage(title, folder, "behaviors", "tiny", changes, seconds, self.needs("scenes", source))

  def evaluate(
    self, method: str, folder: str, seconds: float, source: str, **changes: object
  ) -> Stage:
    """Measures a method with the policy of `source` on the test scenes."""
    held_out = {
      "checkpoint": self.policy(source),
      "data.records": self.scenes_folder / "test.jsonl",
      "data.images": self.scenes_folder / "images",
      "data.boxes": self.scenes_folder / "test.boxes.jsonl",
      "data.training_records": self.scenes_folder / "train.jsonl",
      "timed_questions": 0,  # a stage at the end times them
      "prompt_shapes": PROMPT_SHAPES,
      "method": method,
    }
    read = ()
    if method == "reuse":
      read = ("behaviors",)
      held_out |= {"behaviors": self.workdir / "behaviors" / "index"}
    title = f"evaluation, {folder.removeprefix('evaluate_').replace('_', ' ')}"
    needs = self.needs("scenes", source, *read)
    return Stage(title, folder, "evaluate", "tiny", held_out | changes, seconds, needs)
