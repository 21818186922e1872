"""Measure how fast this machine runs the programs of the other commands, next to its limits.

Draws random weights and inputs, so it needs no files. Rows: the attention kernel and a small model against the
formulas, a forward pass with images, prefill and decoding, a training step, a DAPO step with its phases, and compile
times with and without the persistent cache. Each time stands next to the measured peak of a matrix product and the
measured bandwidth of memory. `--against transformers` times transformers with torch in the same rounds.

WORKDIR/results.json and WORKDIR/results.md have all rows. Later starts, of other presets too, add rows to them and
replace rows of the same name.

  spatial-vlm bench --against transformers                                   # the tiny base on a CPU
  spatial-vlm bench --config configs/bench.py:8b --workdir runs/bench_h100
  spatial-vlm bench --config configs/bench.py:2b --workdir runs/bench_h100 --against transformers
"""

import argparse
import os
import time

import jax
from etils import epath

from spatial_vlm import sharding
from spatial_vlm.benchmark.against_transformers import Peer, import_libraries
from spatial_vlm.benchmark.correctness import ATTENTION, use_formula
from spatial_vlm.benchmark.limits import measure_limits
from spatial_vlm.benchmark.measure import Rounds
from spatial_vlm.benchmark.measurements import check, measure
from spatial_vlm.benchmark.results import TABLE, Results
from spatial_vlm.benchmark.subject import MODELS, Subject
from spatial_vlm.commands.ending import ending
from spatial_vlm.config import Config
from spatial_vlm.hosts import user_errors


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  """Measures and writes row by row."""
  with user_errors():
    check(config)
    if args.against:
      import_libraries()
  if args.against:  # torch needs some of the accelerator's memory
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  use_compilation_cache(workdir / "compile_cache")
  mesh = sharding.make_mesh(config.mesh)
  limits = measure_limits(config.dtype)
  results = Results(workdir)
  results.start(config.model, config.dtype, limits)
  unchecked = ATTENTION not in config.measurements
  if unchecked and any(row.error and row.name.startswith(ATTENTION) for row in results.rows):
    use_formula()  # an earlier start, or one that was killed, found the kernel wrong
  rounds = Rounds(config.rounds, config.round_s)
  subject = Subject(config, MODELS[config.model], mesh, limits, rounds)
  if args.against:
    with user_errors():
      subject.peer = Peer(subject.model, subject.params, config.dtype, workdir / "checkpoint")
  for row, running in measure(subject):
    results.add(row, (config.model, running) if running else None)
    if row:
      said = f"{row.model}, {row.name}: {row.summary}"
    else:
      said = f"{config.model}, {running}: begins"
    if row or running:
      print(f"{time.strftime('%H:%M:%S')} {said}", flush=True)
  print(f"\n{(workdir / TABLE).read_text()}")


def use_compilation_cache(folder: epath.Path) -> None:
  """Makes JAX keep compiled programs in an empty folder, so that a row's first compilation is a real one."""
  if folder.exists():
    folder.rmtree()
  folder.mkdir(parents=True)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  return ending(f"{TABLE} and results.json in {workdir}", args.config)
