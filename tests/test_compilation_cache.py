"""The cache of compiled programs: its folder, that it stays small, and who may switch it off."""

import os

import jax
import pytest

from spatial_vlm import compilation_cache


def test_files_used_least_recently_are_deleted(tmp_path):
  for age, name in enumerate(["new", "older", "oldest"]):
    path = tmp_path / "machine" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(100))
    os.utime(path, (1e9 - age, 1e9 - age))
  compilation_cache.prune(tmp_path, 250)
  assert {path.name for path in (tmp_path / "machine").iterdir()} == {"new", "older"}
  compilation_cache.prune(tmp_path / "absent", 0)


def test_another_version_has_another_folder(monkeypatch, tmp_path):
  find = compilation_cache.machine_folder.__wrapped__
  here = find(tmp_path)
  assert here == find(tmp_path) and here.parent == tmp_path
  monkeypatch.setattr(compilation_cache.importlib.metadata, "version", lambda name: "0.0")
  assert find(tmp_path) != here


@pytest.fixture
def settings(monkeypatch, tmp_path):
  """JAX without a cache; restores JAX's settings."""
  names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs")
  names += ("enable_compilation_cache",)
  before = {name: jax.config.values[f"jax_{name}"] for name in names}
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.setattr(compilation_cache, "DEFAULT", str(tmp_path / "home" / "compiled"))
  yield
  for name, value in before.items():
    jax.config.update(f"jax_{name}", value)


def test_the_default_folder_is_used_unless_the_environment_decides(settings, tmp_path):
  compilation_cache.set_up(True)
  folder = jax.config.values["jax_compilation_cache_dir"]
  assert folder.startswith(str(tmp_path / "home")) and os.path.isdir(folder)
  jax.config.update("jax_compilation_cache_dir", "/chosen/by/the/user")
  compilation_cache.set_up(True)
  assert jax.config.values["jax_compilation_cache_dir"] == "/chosen/by/the/user"


def test_a_home_that_cannot_be_written_means_no_cache(settings, tmp_path):
  (tmp_path / "home").write_text("a file in place of the folder")
  compilation_cache.set_up(True)
  assert jax.config.values["jax_compilation_cache_dir"] is None


def test_one_flag_switches_the_cache_off(settings, tmp_path):
  compilation_cache.set_up(False)
  assert not jax.config.values["jax_enable_compilation_cache"] and not (tmp_path / "home").exists()


def test_several_processes_use_no_default_folder(settings, tmp_path, monkeypatch):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  compilation_cache.set_up(True)
  assert jax.config.values["jax_compilation_cache_dir"] is None
