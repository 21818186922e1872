"""`dapo` with `engine.kind=vllm`: a server samples the answers that this process learns from."""

import types

import numpy as np
import pytest
import vllm_imitation
from safetensors.numpy import load_file

from spatial_vlm import config as config_lib
from spatial_vlm import metrics
from spatial_vlm.commands.dapo import fit
from spatial_vlm.config import UsageErrorOfAll
from spatial_vlm.metrics import PhaseClock


@pytest.mark.slow  # transformers samples token by token
def test_it_learns_from_the_answers_of_a_server(run, dapo_changes, taught, tmp_path):
  small = {
    "steps": 1,
    "groups_per_batch": 4,
    "micro_batches": 1,
    "rollout_batch_size": 4,
    "optimizer.warmup_steps": 0,
    "validate_prompts": 2,
    "validate_batch": 2,
  }
  with vllm_imitation.serving(taught) as server:
    engine = {
      "kind": "vllm",
      "url": server.url,
      "folder": tmp_path / "weights",
      "dtype": "float32",
    }
    changes = {**dapo_changes, **small, **{f"engine.{leaf}": v for leaf, v in engine.items()}}
    assert run("dapo", tmp_path / "run", changes).code == 0
  (record,) = [r for r in metrics.read_metrics(tmp_path / "run") if "rollout_logprob_gap" in r]
  assert record["kept/groups"] > 0
  assert 0 < record["rollout_logprob_gap"] < 1e-4
  # Validation before the update, then the round and the validation after it: two different weights.
  # The check at the start looks for the path once.
  assert server.calls.count("/weight_checker") == 3
  before, after = (
    load_file(f / "model.safetensors") for f in (taught, tmp_path / "run" / "export")
  )
  assert not any(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("gap", "is_refused"), [(0.4, True), (float("nan"), True), (0.05, False)])
def test_an_engine_of_another_policy_ends_the_run_before_a_checkpoint(gap, is_refused):
  """Pixels that are resized in another way change log-probabilities, but no token of a prompt."""
  config = config_lib.load("configs/dapo.py:tiny")
  state = types.SimpleNamespace(batches=1, cursor=4)
  sums = {"rollout_logprob_gap": (10 * gap, 10), "kept/groups": (4, 1)}
  sums |= {"sampled/accuracy": (1, 1), "sampled/length_tokens": (1, 1), "rounds": (1, 1)}
  written, saved = [], []
  files = types.SimpleNamespace(
    is_new=False,
    metrics=types.SimpleNamespace(write=lambda batch, values: written.append(values)),
    save=lambda *args, **kwargs: saved.append(args),
  )
  call = (config, state, types.SimpleNamespace(host_state=None), lambda _: [(state, sums)])
  if is_refused:
    with pytest.raises(UsageErrorOfAll, match="above engine.max_logprob_gap = 0.1"):
      fit(*call, files, PhaseClock())
  else:
    fit(*call, files, PhaseClock())
  assert written and bool(saved) != is_refused


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kind": "sglang"}, "engine.kind is 'sglang'; choose one of compiled, slots, vllm"),
    ({"transfer": "nccl"}, "engine.transfer is 'nccl'; choose one of disk, reload"),
    ({"dtype": "int8"}, "engine.dtype is 'int8'; choose one of float32, bfloat16"),
    ({"url": "localhost"}, "engine.url is 'localhost'; give the base address"),
    ({"in_flight": 0}, "in_flight is 0"),
    ({"timeout_s": 0.0}, "engine.timeout_s is 0.0"),
    ({"max_logprob_gap": 0.0}, "engine.max_logprob_gap is 0.0"),
    ({"kind": "vllm"}, "engine.folder is ''; the engine vllm needs the absolute path"),
    (
      {"kind": "vllm", "folder": "/tmp/spatial_vlm_none", "url": "http://127.0.0.1:9"},
      "http://127.0.0.1:9/v1/models cannot be reached",
    ),
  ],
)
def test_engines_that_cannot_work_are_refused(refused, dapo_changes, changes, message):
  settings = {f"engine.{leaf}": value for leaf, value in changes.items()}
  assert message in refused("dapo", {**dapo_changes, **settings})
