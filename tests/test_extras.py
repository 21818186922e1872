"""Libraries that only some commands need: what is said where one is missing."""

import json
import sys
import tomllib
from types import SimpleNamespace

import pytest

from spatial_vlm import extras
from spatial_vlm.config import PACKAGE_FOLDER, UsageError


def test_every_extra_exists():
  project = tomllib.loads((PACKAGE_FOLDER.parent / "pyproject.toml").read_text())["project"]
  assert extras.EXTRAS.keys() <= project["optional-dependencies"].keys()


def test_a_missing_library_is_named_with_a_line_to_paste(monkeypatch):
  monkeypatch.setitem(sys.modules, "scann", None)  # as where it is not installed
  with pytest.raises(UsageError) as refused:
    extras.require("reuse", "the search")
  root = PACKAGE_FOLDER.parent
  assert str(refused.value) == (
    f"the search needs scann, not installed here: pip install -e '{root}[reuse]' -c {root}/constraints.txt"
  )
  extras.require("plan", "the command", ["json"])


@pytest.mark.parametrize(
  ("origin", "line"),
  [
    (None, "pip install 'spatial-vlm[reuse]'"),
    (
      {"url": "https://host/it.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
      "pip install 'spatial-vlm[reuse] @ git+https://host/it.git@abc'",
    ),
    ({"url": "file:///it.whl"}, "pip install 'spatial-vlm[reuse] @ file:///it.whl'"),
  ],
)
def test_an_installed_package_is_installed_again_from_where_it_came(
  monkeypatch, tmp_path, origin, line
):
  text = json.dumps(origin) if origin else None
  found = SimpleNamespace(read_text=lambda name: text)
  monkeypatch.setattr(extras.importlib.metadata, "distribution", lambda name: found)
  monkeypatch.setattr(extras, "PACKAGE_FOLDER", tmp_path / "spatial_vlm")
  assert extras.install_line("reuse") == line
