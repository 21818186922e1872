"""Settings of every test: eight CPU devices, strict broadcasting, no network; and the smallest model there is."""

import dataclasses
import functools
import json
import os
from unittest import mock

import compiled_programs

from spatial_vlm import compilation_cache

# Read when jax, transformers and the thread pools are first imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# Two processes compile for TPUs at a time, on a machine without one.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["TPU_ACCELERATOR_TYPE"] = "v5e-1"
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Most of the time goes into compiling programs that run once or twice, on small arrays. Without optimization and with
# XLA's older emitters, compilation takes a third of the time. XLA_FLAGS= (empty) tests the code that users run.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1",
)

# Commands that tests start in processes of their own inherit these settings and find the same programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_programs.cache_folder()))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import filelock  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
import shape_checks  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

# torchvision's Python code, installed without dependencies, registers kernels on import for operators of a
# compiled library. Declaring these operators here lets transformers be imported.
_torchvision = torch.library.Library("torchvision", "DEF")
for _operator in ("nms", "qnms"):
  _torchvision.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

# Functions of these packages check the arrays in their annotations. `data` is excluded: it draws scenes point by point.
CHECKED = (
  *("huggingface", "model", "objectives", "optim", "parameters", "processor"),
  *("reuse", "rewards", "rollout", "train"),
)
shape_checks.install([f"spatial_vlm.{name}" for name in CHECKED])

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples everywhere, and no failure for a busy machine.
hypothesis.settings.register_profile(
  "project",
  derandomize=True,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("project")


def pytest_configure(config):
  if not hasattr(config, "workerinput"):  # once: not in the worker processes of xdist
    compilation_cache.prune(compiled_programs.CACHE, compiled_programs.CACHE_BYTES)


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
  """Hugging Face folder of a tiny model that is smaller still (about 60,000 parameters), all of them random."""
  from checkpoint_folders import write_checkpoint

  from spatial_vlm.model.config import PRESETS
  from spatial_vlm.model.qwen3_vl import init_params
  from spatial_vlm.processor.tiny_tokenizer import train_tokenizer
  from spatial_vlm.processor.tokenizer import fit_config, load_tokenizer
  from spatial_vlm.synthesis.scene_teacher import vocabulary_texts

  folder = tmp_path_factory.mktemp("nano")
  train_tokenizer(vocabulary_texts(300, 0), 512, folder)
  tiny = PRESETS["tiny"]
  width = {"hidden_size": 32, "intermediate_size": 64}
  vision = {"depth": 2, "num_heads": 2, "out_hidden_size": 32, "deepstack_visual_indexes": (0,)}
  text = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
  rotary = {"head_dim": 16, "mrope_section": (4, 2, 2)}
  sizes = dataclasses.replace(
    tiny,
    vision=dataclasses.replace(tiny.vision, **width, **vision),
    text=dataclasses.replace(tiny.text, **width, **text, **rotary),
  )
  model = fit_config(sizes, load_tokenizer(folder))
  write_checkpoint(folder, model, jax.device_get(init_params(model, jax.random.key(0))))
  return folder


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory):
  """What `spatial-vlm scenes` writes: 64 training, 32 validation and 32 test records, and 16 chains."""
  from spatial_vlm import cli

  workdir = tmp_path_factory.mktemp("scenes")
  counts = {
    "counts.train": 64,
    "counts.validation": 32,
    "counts.test": 32,
    "chains": 16,
    "sheet": 4,
  }
  settings = [f"--config.{name}={count}" for name, count in counts.items()]
  assert cli.main(["scenes", "--workdir", str(workdir), *settings]) == 0
  return workdir


@pytest.fixture(scope="session")
def on_devices():
  """Context in which a command finds only the first `count` devices: compiling for one device takes half the time."""
  from spatial_vlm import sharding

  def limit(count):
    mesh_of = functools.partial(sharding.make_mesh, devices=jax.devices()[:count])
    return mock.patch.object(sharding, "make_mesh", mesh_of)

  return limit


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
  """The folder of this test session, one for all worker processes of xdist."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def object_store(tmp_path_factory):
  """An emulator of Google Cloud Storage with the bucket `bucket`."""
  import object_store

  with object_store.running(tmp_path_factory.mktemp("object_store") / "log") as store:
    yield store


@pytest.fixture
def gcs_folder(object_store, tmp_path):
  """An empty folder on gs://, and the emulator; this process finds it there."""
  from object_store import in_this_process

  with in_this_process(object_store):
    yield f"gs://bucket/{tmp_path.parent.name}/{tmp_path.name}", object_store


@pytest.fixture(scope="session")
def taught(shared_folder, nano, scenes_folder, on_devices):
  """The nano model after `sft` on two chains of the teacher, one true and one false, both of them for every record.

  Its answers parse and their numbers agree, and by chance half of them are right, so that
  `dapo` and `behaviors` have mixed outcomes.
  """
  from spatial_vlm import cli
  from spatial_vlm.data import conversations
  from spatial_vlm.tasks import statements

  workdir = shared_folder / "taught"
  pair = [
    conversations.parse(line)
    for line in (scenes_folder / "chains.jsonl").read_bytes().splitlines()[:2]
  ]
  records = map(json.loads, (scenes_folder / "train.jsonl").read_text().splitlines())
  rows = [
    conversations.Conversation(
      record["image"], statements.question(record["caption"], "chain"), chain.answer
    )
    for record in records
    for chain in pair
  ]
  changes = {
    "checkpoint": nano,
    "data.conversations": workdir.with_suffix(".jsonl"),
    "data.images": scenes_folder / "images",
    "data.shapes": "((192, 64),)",  # one program
    "epochs": 7,
    "batch_size": 8,
    "optimizer.method": "adamw",
    "optimizer.learning_rate": 1e-2,
    "checkpoint_steps": 1000,
  }
  settings = [f"--config.{name}={value}" for name, value in changes.items()]
  # The first worker process trains it; the others would train the same bits.
  with filelock.FileLock(shared_folder / "taught.lock"), on_devices(1):
    if not (workdir / "export").exists():
      conversations.write(workdir.with_suffix(".jsonl"), rows)
      assert cli.main(["sft", "--workdir", str(workdir), *settings]) == 0
  return workdir / "export"


@pytest.fixture(scope="session")
def v5e():
  """A topology of four absent chips, to compile for."""
  from spatial_vlm.planning.chips import topology_devices

  pytest.importorskip("libtpu")
  return topology_devices("v5e:2x2", 1)[1]
