"""The layers of the package: what a file may import, read from its source."""

import ast
from pathlib import Path

import pytest

from spatial_vlm.cli import COMMANDS

PACKAGE = Path(__file__).parents[1] / "spatial_vlm"

LAYERS = (
  (
    *("types", "text", "jsonl", "workdir", "disk_errors", "settings", "config", "progress"),
    *("streams", "extras", "remote"),
    *("inputs", "workdir_lock", "answers", "answer_extraction"),
    *("contents", "compilation_cache", "allocator"),
  ),
  (
    *("parameters", "sharding", "process_rows", "stop_signals", "rendezvous", "hosts"),
    *("checkpoint", "metrics", "compile_clock"),
    *("model", "huggingface", "processor", "objectives", "optim"),
  ),
  (
    *("data", "evaluation", "tasks", "rewards", "rollout", "reuse", "inference"),
    *("synthesis", "train", "planning", "benchmark", "serving"),
  ),
  ("demo", "commands", "command_line", "cli"),
)
"""Files and folders from the lowest layer up; on a layer, in the order in which data passes through them."""

FOLDERS = {
  "settings": ("ranges", "names", "shared_ranges", "range_table", "comments"),
  "command_line": ("terminal", "parsing", "help_pages", "completion"),
  "parameters": ("paths", "partition", "int8", "lora"),
  "optim": ("moments", "schedules", "optimizers"),
  "model": (
    *("config", "stack", "attention", "blocked", "flash", "vision", "text", "qwen3_vl"),
    "xlm_roberta",
  ),
  "huggingface": (
    *("folder", "tensor_table", "tensor_slices", "safetensors_folder", "checkpoint_folder"),
    *("question_template", "model_card"),
    *("weights", "peft_adapter", "encoder_table", "torch_zip", "encoder_folder"),
  ),
  "processor": (
    *("tokenizer", "image", "bicubic", "video", "video_files"),
    *("tiny_tokenizer", "chat", "sentencepiece", "encoder_tokenizer"),
  ),
  "objectives": (
    *("vocabulary", "cross_entropy", "token_logprobs", "advantage"),
    *("policy_terms", "dapo", "gspo", "kl", "policy_objectives", "contrastive"),
  ),
  "data": (
    *("shards", "image_locations", "image_archives", "image_files"),
    *("relations", "relation_wordings", "benchmark_record", "records", "statement"),
    *("measurements", "vsr", "split_guard", "statistics", "split_report", "splits", "store"),
    *("scenes", "messages", "conversations", "sizes", "batch_plan"),
    *("reading", "skipped_records", "pipeline", "mixing", "contact_sheet", "benchmarks"),
  ),
  "data/benchmarks": ("table", "tsv_table", "parquet_table", "json_table", "fields", "source"),
  "data/scenes": ("render", "scene_layout", "source", "writing"),
  "evaluation": (
    *(
      "predictions",
      "statistics",
      "extracted_scores",
      "boxes",
      "contrastive_pairs",
      "scores",
      "results",
    ),
    *(
      "results_report",
      "box_drawing",
      "figures",
      "reuse_comparison",
      "runs",
      "runs_comparison",
      "runs_report",
      "seed_report",
    ),
  ),
  "tasks": ("task", "explanations", "statements", "choices", "benchmarks"),
  "rewards": ("verdict_automaton", "accuracy", "overlong", "length", "table"),
  "rollout": (
    *("sampler", "prefix_cache", "requests", "slots", "slot_requests", "slot_queue", "slot_engine"),
    *("batch_queue", "engine"),
    *("vllm_client", "vllm_weights", "vllm_engine"),
  ),
  "reuse": ("statements", "handbook", "chains", "embedding", "extraction", "index", "retrieval"),
  "reuse/statements": ("relation_keys", "captions", "masking"),
  "reuse/handbook": ("behavior", "duplicates", "handbook", "review_file"),
  "reuse/chains": (
    *("solutions", "comparison", "box_values", "comparison_words", "reasoning_patterns"),
    *("chain_objects", "reasoning", "relation_verdict", "rule", "chain_check", "restatement"),
  ),
  "reuse/embedding": ("encoder_embedder", "embedder"),
  "reuse/extraction": (
    *("merging", "extractor", "patterns", "abstraction", "clusters"),
    *("stated_comparisons", "teacher_extraction", "extractors"),
  ),
  "reuse/index": ("searchers", "vector_files", "vector_index", "behavior_index", "index_folder"),
  "reuse/retrieval": ("recall", "choosers", "paraphrases", "recall_report"),
  "inference": (
    *("controls", "policy", "loading", "questions", "unfamiliar", "comparison_arms", "generation"),
    *("stored_answers", "timing"),
  ),
  "synthesis": (
    *("errors", "hashing", "teacher", "draft", "formats"),
    *("scene_teacher", "scene_conversations", "chain_file"),
    *("teachers", "verify", "local", "run", "teacher_table", "setup", "text_teacher"),
  ),
  "synthesis/teachers": (
    "wire",
    "gemini_models",
    "gemini",
    "gemini_batch",
    "openai_chat",
    "policy_teacher",
  ),
  "synthesis/verify": (
    *("check_settings", "limits", "statement_patterns", "number_words", "visible_numbers"),
    *("written_values", "proportions", "object_parts", "quantities", "box_checks", "text_checks"),
    *("checks", "selection", "synthesis_report"),
  ),
  "synthesis/local": (
    *("faults", "local_model", "local_gemini", "local_openai", "local_server", "scene_answers"),
  ),
  "synthesis/run": (
    *("questions", "journal", "ledger", "limiter", "progress", "requests", "batch_requests"),
    *("text_answers", "estimate", "results"),
  ),
  "train": (
    *(
      "update",
      "policy_knowledge",
      "policy_folder",
      "trained_weights",
      "prolonging",
      "run",
      "sft",
      "sft_data",
      "chain_sources",
    ),
    *("behavior_sources", "behavior_data"),
    *(
      "rl_settings",
      "rollout_buffer",
      "rl_data",
      "answer_scores",
      "policy_optimization",
      "rl_engine",
    ),
    "engines",
  ),
  "planning": (
    *("chips", "hlo_text", "hlo", "collectives", "hbm_traffic", "flops", "inputs", "compiled"),
    *("generation_programs", "training_programs", "rl_programs", "inference_programs"),
    *("programs", "batch_rows", "target", "cache", "search", "advice", "plan_report"),
  ),
  "benchmark": (
    *("row", "measure", "limits", "inputs", "weights", "subject", "correctness"),
    *("inference_rows", "prefix_rows", "training_rows", "dapo_rows", "against_transformers"),
    *("measurements", "results"),
  ),
  "serving": (
    *("address", "api_error", "limits", "fields", "chat_messages", "chat_request", "images"),
    *("text_stream", "prompts", "chat_response", "answer_stream", "server_metrics"),
    *("engine_thread", "admission", "service", "setup", "request_body", "connection"),
    *("bounded_connection", "http_guard", "sample_scenes", "page_routes", "app", "server"),
    *("lmms_eval_manifest", "lmms_eval_model", "lmms_eval_tasks"),
  ),
  "serving/lmms_eval_tasks": ("utils",),
  "demo": ("methods", "stages", "schedule", "workers", "demo_report"),
}
"""The same order inside each folder. Commands are independent of each other, but for those of CALLERS."""

CALLERS = ("demo",)
"""`demo` runs the other commands."""

RESERVED = {
  "av": {"processor/video_files.py"},
  "scann": {"reuse/index/searchers.py"},
  "google": {"synthesis/teachers/gemini.py"},
  "httpx2": {"synthesis/teachers/gemini.py"},
  "lmms_eval": {"serving/lmms_eval_manifest.py", "serving/lmms_eval_model.py"},
  "openai": {"synthesis/teachers/openai_chat.py", "serving/lmms_eval_model.py"},
  "prometheus_client": {"serving/server_metrics.py"},
  "pyarrow": {"data/vsr.py", "data/benchmarks/parquet_table.py"},
  "tensorflow": {"processor/sentencepiece.py"},
  "tensorflow_text": {"processor/sentencepiece.py"},
  "torch": {"benchmark/against_transformers.py"},
  "starlette": {
    f"serving/{file}.py" for file in ("app", "connection", "page_routes", "request_body", "server")
  },
  "torchvision": set(),
  "tqdm": {"progress.py"},
  "uvicorn": {"serving/bounded_connection.py", "serving/server.py"},
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
  """Returns (layer, place on the layer, place in the folder, place in its subfolder) of a file or an imported name.

  None outside the package.
  """
  for layer, names in enumerate(LAYERS):
    if parts and parts[0] in names:
      inner = [_index(parts[:depth], parts[depth : depth + 1]) for depth in (1, 2)]
      return layer, names.index(parts[0]), *inner
  return None


def _index(folder, name):
  order = FOLDERS.get("/".join(folder), ())
  return order.index(name[0]) if name and name[0] in order else -1


def _violations(file, source):
  """Returns the forbidden imports of `file`, as messages."""
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
    is_later = position[2:] >= own_position[2:] and position[2] >= 0 <= own_position[2]
    if position[:2] > own_position[:2] or (same_folder and is_later):
      yield (
        f"{file} (layer {own_position[0]}) imports {name} (layer {position[0]}): allowed are lower layers and, on "
        f"its own, what stands above it: {', '.join(_above(own))}"
      )


def _above(own):
  layer, place, *inner = _position(own)
  names = list(LAYERS[layer][:place])
  for depth, number in enumerate(inner, 1):
    folder = "/".join(own[:depth])
    names += [f"{folder}/{name}" for name in FOLDERS.get(folder, ())[: max(number, 0)]]
  return names or ["nothing"]


def test_every_file_has_a_place():
  """A new file goes into the tables above, in the order of the data flow."""
  homeless = []
  for file in _files():
    *folders, name = file.with_suffix("").parts
    known = _position((folders or [name])[:1]) is not None or file.as_posix() == "__init__.py"
    for depth in range(1, len(folders) + 1):
      folder, inner = "/".join(folders[:depth]), [*folders, name][depth]
      known &= inner == "__init__" or folder == "commands" or inner in FOLDERS.get(folder, ())
    if not known:
      homeless.append(str(file))
  assert not homeless, f"no place in LAYERS and FOLDERS of this test: {homeless}"


def test_imports_keep_to_the_layers():
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
    ("demo/stages.py", "from spatial_vlm.commands import dapo", True),
    ("commands/sft.py", "def run():\n  from spatial_vlm import cli", True),
    ("train/sft.py", "def f():\n  import torch.nn", True),
    ("model/stack.py", "from spatial_vlm.optim import optimizers", True),
    ("parameters/lora.py", "from spatial_vlm.optim import optimizers", True),
    ("synthesis/run/requests.py", "from spatial_vlm.synthesis.teachers import gemini", False),
    ("synthesis/teachers/gemini.py", "from spatial_vlm.synthesis.run import requests", True),
    ("synthesis/run/journal.py", "from spatial_vlm.synthesis.run.ledger import Ledger", True),
    ("reuse/index/searchers.py", "import scann", False),
    ("inference/questions.py", "from scann import scann_ops_pybind", True),
    ("processor/image.py", "from google import genai", True),
  ],
)
def test_the_check_finds_forbidden_imports(file, source, broken):
  assert bool(list(_violations(Path(file), source))) == broken


MOST_LINES, MOST_PARAMETERS = 90, 7
EXCEPTIONS = {
  "model/text.py::run_layers": "what a layer reads besides its parameters, each an array of its own",
}
"""Functions with more parameters, and why."""


def _functions(file):
  tree = ast.parse((PACKAGE / file).read_text())
  return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def _parameters(function):
  arguments = function.args
  names = [a.arg for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
  return len([name for name in names if name not in ("self", "cls")])


def test_functions_keep_the_size_limits():
  """Arguments that always travel together become one value; a function with several tasks becomes several functions."""
  too_large = [
    f"{file}::{function.name}"
    for file in _files()
    for function in _functions(file)
    if function.end_lineno - function.lineno >= MOST_LINES
    or _parameters(function) > MOST_PARAMETERS
  ]
  assert sorted(too_large) == sorted(EXCEPTIONS)


QUESTION_CALLERS = {
  "inference/controls.py": "adds an option to the question of another task",
  "inference/questions.py": "the builder",
  "synthesis/scene_teacher.py": "training texts of a tokenizer, which no model is asked",
}
"""Files that call a task's `question`, and why."""


def _calls_a_tasks_question(source):
  return any(
    isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and node.func.attr == "question"
    and ast.unparse(node.func.value).split(".")[-1] in ("statements", "task", "TASK")
    for node in ast.walk(ast.parse(source))
  )


def test_questions_come_from_the_builder():
  callers = [str(f) for f in _files() if _calls_a_tasks_question((PACKAGE / f).read_text())]
  assert callers == [*QUESTION_CALLERS]


def test_only_tests_of_commands_import_a_command():
  tests = Path(__file__).parent
  found = [
    f"{path.relative_to(tests)}: {name}"
    for path in sorted(tests.rglob("*.py"))
    if path.relative_to(tests).parts[0] != "commands"
    for name in _imports(path.relative_to(tests), path.read_text())
    if name.startswith("spatial_vlm.commands")
  ]
  assert not found
