"""The floors of the package: what a file may import, read from its source."""

import ast
from pathlib import Path

import pytest

from spatial_vlm.cli import COMMANDS

PACKAGE = Path(__file__).parents[1] / "spatial_vlm"

FLOORS = (
  ("types", "config", "answers", "markdown", "part_files"),
  (
    *("hosts", "moments", "optim", "sharding", "checkpoint", "metrics"),
    *("model", "processor", "objectives"),
  ),
  ("data", "rollout", "policy", "rewards", "synthesis", "reuse", "train", "evaluation", "planning"),
  ("commands", "cli"),
)
"""Files and folders from the lowest floor up; on a floor, in the order in which data passes through them."""

FOLDERS = {
  "model": (
    *("config", "trainable", "int8", "lora", "stack"),
    "attention",
    "flash",
    "vision",
    "text",
    "qwen3_vl",
    "tensor_table",
    "tensor_slices",
    "safetensors_folder",
    *("weights", "adapter_file"),
  ),
  "processor": (
    *("tokenizer", "image", "bicubic", "video", "video_files"),
    *("tiny_tokenizer", "chat"),
  ),
  "objectives": ("vocabulary", "cross_entropy", "token_logprobs", "advantage", "dapo"),
  "data": (
    *(
      "shards",
      "places",
      "images",
      "relations",
      "records",
      "statement",
      "measurements",
      "vsr",
      "split_guard",
    ),
    *("statistics", "report", "array_records"),
    *("render", "layout", "scenes", "contact_sheet"),
    *("prompts", "conversations", "sizes", "batch_plan", "pipeline", "mixing"),
  ),
  "synthesis": (
    *("teacher", "draft", "scene_teacher"),
    *("wire", "gemini", "gemini_batch", "openai_chat", "policy_teacher"),
    *("quantities", "checks", "selection", "report"),
    *("faults", "local_model", "local_gemini", "local_openai", "local_server", "scene_answers"),
    *("questions", "journal", "ledger", "history", "limiter", "asking", "batch_asking"),
  ),
  "reuse": ("behaviors", "masking", "reasoning", "extraction", "embedder", "index", "prompt"),
  "train": ("sft", "dapo"),
  "evaluation": ("scoring", "report", "figures"),
  "planning": ("chips", "hlo", "flops", "inputs", "program", "search", "report"),
}
"""The same order inside each folder. Commands are independent of each other, but for those of CALLERS."""

CALLERS = ("demo", "programs")
"""`demo` runs the commands; `programs` gives `plan` what they would run."""

RESERVED = {
  "av": {"processor/video_files.py"},
  "scann": {"reuse/index.py"},
  "google": {"synthesis/gemini.py"},
  "httpx2": {"synthesis/gemini.py"},
  "openai": {"synthesis/openai_chat.py"},
  "pyarrow": {"data/vsr.py"},
  "tensorflow": {"reuse/embedder.py"},
  "tensorflow_text": {"reuse/embedder.py"},
  "torch": set(),
  "torchvision": set(),
}
"""Heavy or remote libraries and the files that may import them."""


def _files():
  return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def _imports(file, source):
  """Dotted names that `file` imports; `from a import b` counts as a.b, relative names are made absolute."""
  package = ("spatial_vlm", *file.parts[:-1])
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else ()
      module = ".".join([*base, *filter(None, [node.module])])
      yield from (f"{module}.{alias.name}" for alias in node.names)


def _position(parts):
  """(floor, place on the floor, place in the folder) of a file or of an imported name; None outside the package."""
  for floor, names in enumerate(FLOORS):
    if parts and parts[0] in names:
      order = FOLDERS.get(parts[0], ())
      inner = order.index(parts[1]) if len(parts) > 1 and parts[1] in order else -1
      return floor, names.index(parts[0]), inner
  return None


def _violations(file, source):
  """What `file` imports although it may not, as messages."""
  own = file.with_suffix("").parts
  is_package = own[-1] == "__init__"
  own_position = _position(own[:-1] if is_package else own)
  for name in _imports(file, source):
    parts = tuple(name.split("."))
    library, parts = parts[0], parts[1:]
    if library in RESERVED and file.as_posix() not in RESERVED[library]:
      allowed = sorted(RESERVED[library]) or "no file of the package"
      yield f"{file} imports {name}: only {allowed} may"
    if library != "spatial_vlm" or (position := _position(parts)) is None or own == ("__init__",):
      continue
    if own[0] == "commands" and parts[0] == "commands":
      if own[1] not in CALLERS and parts[1:2] != own[1:2] and {*parts[1:2]} & {*COMMANDS}:
        yield f"{file} imports {name}: only {CALLERS} may call other commands"
      continue
    same_folder = own[0] == parts[0] and len(own) > 1
    if position[:2] > own_position[:2] or (same_folder and position[2] >= own_position[2] >= 0):
      yield (
        f"{file} (floor {own_position[0]}) imports {name} (floor {position[0]}): allowed are lower floors and, on "
        f"its own, what stands above it: {', '.join(_above(own))}"
      )


def _above(own):
  floor, place, inner = _position(own)
  names = list(FLOORS[floor][:place])
  return names + [f"{own[0]}/{name}" for name in FOLDERS.get(own[0], ())[: max(inner, 0)]] or [
    "nothing"
  ]


def test_every_file_has_a_place():
  """A new file is put into the tables above, where data passes through it."""
  homeless = []
  for file in _files():
    *folder, name = file.with_suffix("").parts
    top = folder[0] if folder else name
    known = _position((top,)) is not None or file.as_posix() == "__init__.py"
    if folder and name != "__init__" and top in FOLDERS:
      known = name in FOLDERS[top]
    if not known:
      homeless.append(str(file))
  assert not homeless, f"no place in FLOORS and FOLDERS of this test: {homeless}"


def test_imports_keep_to_the_floors():
  found = [text for file in _files() for text in _violations(file, (PACKAGE / file).read_text())]
  assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
  ("file", "source", "broken"),
  [
    ("model/text.py", "from spatial_vlm.train import sft", True),
    ("model/text.py", "from spatial_vlm.model import qwen3_vl", True),
    ("model/text.py", "from spatial_vlm.model.attention import attend", False),
    ("model/text.py", "from . import vision", False),
    ("model/text.py", "from .qwen3_vl import forward", True),
    ("model/text.py", "from ..train.sft import step", True),
    ("answers.py", "from spatial_vlm import config, types", False),
    ("types.py", "import spatial_vlm.config", True),
    ("objectives/dapo.py", "from spatial_vlm.objectives import advantage", False),
    ("metrics.py", "from spatial_vlm.model import config", True),
    ("commands/sft.py", "from spatial_vlm.commands import dapo", True),
    ("commands/demo.py", "from spatial_vlm.commands import dapo", False),
    ("commands/sft.py", "def run():\n  from spatial_vlm import cli", True),
    ("train/sft.py", "def f():\n  import torch.nn", True),
    ("reuse/index.py", "import scann", False),
    ("reuse/prompt.py", "from scann import scann_ops_pybind", True),
    ("processor/image.py", "from google import genai", True),
  ],
)
def test_the_check_finds_what_is_forbidden(file, source, broken):
  assert bool(list(_violations(Path(file), source))) == broken
