"""`bench` writes rows as they are measured, and later starts add theirs."""

import json

import jax
import pytest
from etils import epath

from spatial_vlm.benchmark import limits, measurements
from spatial_vlm.benchmark.limits import Sizes
from spatial_vlm.benchmark.row import Row
from spatial_vlm.commands import bench
from spatial_vlm.model import flash


@pytest.fixture
def short(monkeypatch):
  """Settings with which the machine's limits and two short measurements take seconds."""
  monkeypatch.setitem(limits.SIZES, "cpu", Sizes((64,), 2**20))
  monkeypatch.setattr(
    bench, "use_compilation_cache", lambda folder: None
  )  # that of the tests stays
  return {
    "rounds": 2,
    "round_s": 0.0,
    "decode.tokens": 32,
    "decode.batch_sizes": (2,),
    "decode.new_tokens": 4,
    "sft.tokens": 48,
    "sft.batch_size": 2,
  }


def rows(workdir):
  found = json.loads((workdir / "results.json").read_text())
  return len(found["starts"]), [row["name"] for row in found["rows"]]


def test_starts_of_one_workdir_share_a_table(run, short, tmp_path, capsys):
  assert run("bench", tmp_path, {**short, "measurements": ("forward",)}).code == 0
  assert rows(tmp_path) == (1, ["forward"])
  again = run("bench", tmp_path, {**short, "measurements": ("forward", "decode")})
  assert again.code == 0
  assert rows(tmp_path) == (2, ["forward", "prefill, batch 2", "decode, batch 2"])
  said = capsys.readouterr().out
  assert "tiny, decode: begins\n" in said and "tiny, decode, batch 2: " in said
  assert (tmp_path / "results.md").read_text().rstrip() in said


def test_times_stand_next_to_those_of_transformers(run, short, tmp_path):
  settings = {**short, "measurements": ("forward",)}
  assert run("bench", tmp_path, settings, "--against", "transformers").code == 0
  (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
  assert row["ratio"][1] <= row["ratio"][0] <= row["ratio"][2]
  assert float(row["note"].rpartition("at most ")[2]) < 1e-3


def test_a_start_after_a_wrong_kernel_uses_the_formula(run, short, tmp_path, monkeypatch):
  monkeypatch.setattr(flash, "KERNELS", dict(flash.KERNELS))
  rows_of = {
    "attention": lambda s: iter([Row("tiny", "attention, text", error="errors are large")])
  }
  monkeypatch.setattr(measurements, "MEASUREMENTS", measurements.MEASUREMENTS | rows_of)
  run("bench", tmp_path, {**short, "measurements": ("attention",)})
  assert flash.KERNELS  # the measurement itself takes a wrong kernel out
  run("bench", tmp_path, {**short, "measurements": ("forward",)})
  assert not flash.KERNELS


def test_the_compilation_cache_is_empty_at_each_start(tmp_path):
  of_entries = ("min_compile_time_secs", "min_entry_size_bytes")
  names = ["jax_compilation_cache_dir", *(f"jax_persistent_cache_{name}" for name in of_entries)]
  before = {name: getattr(jax.config, name) for name in names}
  (tmp_path / "cache").mkdir()
  (tmp_path / "cache" / "old").touch()
  try:
    bench.use_compilation_cache(epath.Path(tmp_path / "cache"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
  assert not [*(tmp_path / "cache").iterdir()]


def test_wrong_settings_are_refused(refused):
  assert "model is '9b'; choose one of" in refused("bench", {"model": "9b"})
