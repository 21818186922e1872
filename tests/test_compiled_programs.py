"""The cache of compiled programs: its folder, and that it stays small."""

import os

import compiled_programs


def test_files_used_least_recently_are_deleted(tmp_path):
  for age, name in enumerate(["new", "older", "oldest"]):
    path = tmp_path / "machine" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(100))
    os.utime(path, (1e9 - age, 1e9 - age))
  compiled_programs.prune(tmp_path, 250)
  assert {path.name for path in (tmp_path / "machine").iterdir()} == {"new", "older"}
  compiled_programs.prune(tmp_path / "absent", 0)


def test_another_version_has_another_folder(monkeypatch):
  here = compiled_programs.cache_folder()
  assert here == compiled_programs.cache_folder() and here.parent == compiled_programs.CACHE
  monkeypatch.setattr(compiled_programs.importlib.metadata, "version", lambda name: "0.0")
  assert compiled_programs.cache_folder() != here
