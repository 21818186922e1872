"""Configs: overrides by type, errors that help, leaves that were read, and one config per workdir."""

import ast
import copy
import doctest
import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
from etils import epath
from ml_collections import config_dict

from spatial_vlm import config as config_lib

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted({*FOLDER.glob("*.py")} - {FOLDER / "common.py"})

FILE = """
from ml_collections import config_dict

def get_config(preset):
  if preset not in ("tiny", "8b"):
    raise ValueError(f"unknown preset {preset!r}; there are tiny, 8b")
  config = config_dict.ConfigDict()
  config.steps = 10
  config.resume = True
  config.log_steps = 5
  config.name = "run"
  config.sizes = (64, 48)
  config.words = ("a", "b")
  config.files = ()
  config.optim = config_dict.ConfigDict({"rate": 1e-3, "betas": (0.9, 0.95)})
  config.data = config_dict.ConfigDict({
    "limit": config_dict.placeholder(int),
    "folder": config_dict.required_placeholder(str),
    "images": config_dict.required_placeholder(str),
  })
  config.warmup_steps = config.get_oneway_ref("steps") * 2
  return config
"""
REQUIRED = ["--config.data.folder=f", "--config.data.images=i"]


@pytest.fixture
def spec(tmp_path):
  (tmp_path / "some.py").write_text(FILE)
  return f"{tmp_path}/some.py:tiny"


def test_docstrings():
  result = doctest.testmod(config_lib)
  assert result.attempted and not result.failed


@pytest.mark.parametrize(
  ("override", "leaf", "value"),
  [
    ("steps=3", "steps", 3),
    ("--config.steps=-3", "steps", -3),
    ("resume=false", "resume", False),
    ("resume=1", "resume", True),
    ("name=", "name", ""),
    ("name=a=b, c", "name", "a=b, c"),
    ("name=none", "name", "none"),
    ("sizes=(1, 2, 3)", "sizes", (1, 2, 3)),
    ("sizes=1,2", "sizes", (1, 2)),
    ("sizes=7", "sizes", (7,)),
    ("sizes=()", "sizes", ()),
    ("words=left of,near", "words", ("left of", "near")),
    ("words=('x',)", "words", ("x",)),
    ("files=a/b.json, c.json", "files", ("a/b.json", "c.json")),
    ("files=('a.json',)", "files", ("a.json",)),
    ("files=()", "files", ()),
    ("files=1,2", "files", (1, 2)),
    ("optim.rate=1", "optim.rate", 1.0),
    ("optim.rate=2e-5", "optim.rate", 2e-5),
    ("optim.betas=1,0.5", "optim.betas", (1.0, 0.5)),
    ("data.limit=4", "data.limit", 4),
    ("data.limit=none", "data.limit", None),
  ],
)
def test_overrides_are_read_as_the_type_of_the_default(spec, override, leaf, value):
  found = config_lib.leaves(config_lib.load(spec, [*REQUIRED, override]))[leaf]
  assert (found, type(found)) == (value, type(value))
  if isinstance(value, tuple):
    assert [type(item) for item in found] == [type(item) for item in value]


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("steps=3.5", r"--config.steps=3.5: expected int, e.g. 10"),
    ("steps=many", r"expected int"),
    ("steps=", r"expected int"),
    ("steps", r"no value: write --config.steps=VALUE"),
    ("resume=maybe", r"expected bool, e.g. True"),
    ("optim.rate=fast", r"expected float"),
    ("sizes=(1, 2.5)", r"expected tuple"),
    ("sizes=open('x')", r"expected tuple"),
    ("data.limit=x", r"expected int$"),
    ("stebs=1", r"no leaf stebs; did you mean steps"),
    ("rate=1", r"no leaf rate; did you mean"),
    ("optim.rates=1", r"no leaf optim.rates; did you mean optim.rate"),
    ("optim=1", r"is a group; its leaves are optim.betas, optim.rate"),
    ("steps.x=1", r"no leaf steps.x"),
    ("zzz=1", r"no leaf zzz; there are data.folder, .*, words"),
  ],
)
def test_wrong_overrides_name_what_is_allowed(spec, override, message):
  with pytest.raises(config_lib.UsageError, match=message):
    config_lib.load(spec, [*REQUIRED, override])


def test_required_leaves_are_reported_together(spec):
  with pytest.raises(
    config_lib.UsageError, match=r"data.folder, data.images: add --config.data.folder=… "
  ):
    config_lib.load(spec)
  with pytest.raises(config_lib.UsageError, match=r"values for data.images:"):
    config_lib.load(spec, ["data.folder=x"])


def test_references_follow_overrides(spec):
  assert config_lib.load(spec, [*REQUIRED, "steps=4"]).warmup_steps == 8


def test_config_is_locked(spec):
  config = config_lib.load(spec, REQUIRED)
  with pytest.raises(AttributeError):
    config.optim.ratio = 1
  with pytest.raises(TypeError):
    config.steps = "many"


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("some.py", "has the form FILE.py:PRESET"),
    ("some:tiny", "has the form FILE.py:PRESET"),
    ("folder/some.py:tiny", "folder/some.py was not found"),
    ("som.py:tiny", "som.py was not found.*did you mean some.py"),
    ("some.py:huge", "unknown preset 'huge'; there are tiny, 8b"),
    ("empty.py:tiny", "does not define get_config"),
    ("list.py:tiny", "leaf a.b is a list; a leaf is one of bool, int"),
    ("dict.py:tiny", "get_config returns a dict, not a ConfigDict$"),
    ("syntax.py:tiny", r"/syntax.py, line 2: invalid syntax"),
    ("broken.py:tiny", r"/broken.py, line 2: NameError: name 'x' is not defined"),
    ("so\0me.py:tiny", "has the form FILE.py:PRESET"),
    ("secret.py:tiny", "secrets are given in the environment"),
  ],
)
def test_wrong_files_and_presets(tmp_path, monkeypatch, spec, message):
  make = "from ml_collections import ConfigDict\ndef get_config(preset):\n  return ConfigDict("
  (tmp_path / "some.py").write_text(FILE)
  (tmp_path / "empty.py").write_text("x = 1")
  (tmp_path / "list.py").write_text(make + "{'a': {'b': [1]}})")
  (tmp_path / "dict.py").write_text("def get_config(preset):\n  return {}")
  (tmp_path / "syntax.py").write_text("x = 1\nx = = 2\n")
  (tmp_path / "broken.py").write_text("def get_config(preset):\n  return x\n")
  (tmp_path / "secret.py").write_text(make + "{'gemini_api_key': ''})")
  monkeypatch.chdir(tmp_path)
  with pytest.raises(config_lib.UsageError, match=message) as error:
    config_lib.load(spec)
  assert "\n" not in str(error.value)


def test_the_file_of_the_project_comes_first(tmp_path, monkeypatch, caplog):
  """A foreign data set with a folder `configs` runs no code unless its file is named by ./ or a full path."""
  here, project = tmp_path / "here", tmp_path / "project"
  for folder, name in ((here, "here"), (project, "project")):
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "some.py").write_text(FILE.replace('"run"', f'"{name}"'))
  (here / "configs" / "own.py").write_text(FILE)
  monkeypatch.setattr(config_lib, "CONFIG_ROOTS", (project,))
  monkeypatch.chdir(here)

  def name_in(file):
    return config_lib.load(f"{file}:tiny", REQUIRED).name

  assert name_in("configs/some.py") == "project"
  assert "that one is ./configs/some.py" in caplog.text
  caplog.clear()
  assert name_in("./configs/some.py") == name_in(f"{here}/configs/some.py") == "here"
  assert name_in("../project/configs/some.py") == "project"
  assert name_in("configs/own.py") == "run"
  monkeypatch.chdir(project)
  assert name_in("configs/some.py") == "project"
  assert not caplog.text


def test_unread_leaves(spec):
  config = config_lib.load(spec, REQUIRED)
  assert config_lib.unread(config) == sorted(config_lib.leaves(config))
  _ = config.steps, config["name"], config.data["limit"], config.optim, dict(**config.optim)
  assert config_lib.unread(config) == [
    *(
      "data.folder",
      "data.images",
      "files",
      "log_steps",
      "resume",
      "sizes",
      "warmup_steps",
      "words",
    )
  ]


def test_copies_are_equal_and_locked(spec):
  config = config_lib.load(spec, REQUIRED)
  other = copy.deepcopy(config)
  assert other == config and config_lib.unread(config) == sorted(config_lib.leaves(config))
  other.optim.rate = 0.5
  assert config.optim.rate == 1e-3
  with pytest.raises(AttributeError):
    other.data.x = 1


def test_snapshot_is_deterministic_and_stays(spec, tmp_path, monkeypatch):
  monkeypatch.setattr("sys.argv", ["/bin/spatial-vlm", "sft", "--workdir", "a b"])
  texts = []
  for name in ("one", "two"):
    config = config_lib.load(spec, REQUIRED)
    for _ in range(2):
      config_lib.snapshot(config, epath.Path(tmp_path / name))
    texts.append((tmp_path / name / "config.json").read_text())
    assert len(config_lib.unread(config)) == len(config_lib.leaves(config))
  assert texts[0] == texts[1]
  stored = json.loads(texts[0])
  assert stored["config"]["optim.betas"] == [0.9, 0.95]
  assert stored["command"] == "spatial-vlm sft --workdir 'a b'"
  assert {"python", "jax", "flax"} <= stored["versions"].keys()


def test_another_config_is_refused_in_the_same_workdir(spec, tmp_path):
  workdir = epath.Path(tmp_path / "run")
  config_lib.snapshot(config_lib.load(spec, REQUIRED), workdir)
  (workdir / "results.json").touch()
  changed = config_lib.load(spec, [*REQUIRED, "optim.rate=1", "log_steps=1", "data.limit=2"])
  with pytest.raises(config_lib.UsageError) as error:
    config_lib.snapshot(changed, workdir, harmless=("log_*",))
  lines = str(error.value).split("\n")
  assert lines[1:3] == ["  data.limit: null → 2", "  optim.rate: 0.001 → 1.0"]
  assert "another --workdir" in lines[3] and len(lines) == 4
  config_lib.snapshot(changed, workdir, harmless=("log_*", "data.*", "optim.rate"))


def test_other_contents_under_the_same_names_are_refused(spec, tmp_path):
  workdir, config = epath.Path(tmp_path / "run"), config_lib.load(spec, REQUIRED)
  config_lib.snapshot(config, workdir, contents={"data.limit": "aa", "gone": "bb"})
  config_lib.snapshot(config, workdir, contents={"data.limit": "cc"})  # nothing is made yet
  (workdir / "results.json").touch()
  config_lib.snapshot(config, workdir, contents={"data.limit": "cc", "new": "dd"})
  with pytest.raises(config_lib.UsageError, match=r"read other contents .*:\n  data.limit: null\n"):
    config_lib.snapshot(config, workdir, contents={"data.limit": "aa"})


def test_snapshot_cut_off_while_it_was_written_is_written_again(spec, tmp_path):
  config, path = config_lib.load(spec, REQUIRED), tmp_path / "run" / "config.json"
  config_lib.snapshot(config, epath.Path(path.parent))
  whole = path.read_text()
  path.write_text(whole[: len(whole) // 2])
  config_lib.snapshot(config, epath.Path(path.parent))
  assert path.read_text() == whole


def test_other_versions_are_logged(spec, tmp_path, monkeypatch, caplog):
  config = config_lib.load(spec, REQUIRED)
  config_lib.snapshot(config, epath.Path(tmp_path / "run"))
  monkeypatch.setattr(config_lib, "LIBRARIES", ["numpy"])
  with caplog.at_level(logging.WARNING):
    config_lib.snapshot(config, epath.Path(tmp_path / "run"))
  assert "other versions" in caplog.text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_presets_of_the_project(path):
  """`tiny` requires no leaf; `8b` has the same leaves (the demo has no `8b`); others are refused."""
  tiny = config_lib.load(f"{path}:tiny")
  if path.stem != "demo":
    assert (
      config_lib.leaves(config_lib.read_preset(f"{path}:8b")).keys()
      == config_lib.leaves(tiny).keys()
    )
  with pytest.raises(config_lib.UsageError, match="no-such-preset.*tiny"):
    config_lib.read_preset(f"{path}:no-such-preset")
  nodes = [*ast.walk(ast.parse(path.read_text()))]
  assert not any(isinstance(node, ast.Import) for node in nodes)
  imported = {(node.level, node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
  assert imported == {(0, "ml_collections"), (1, "common")}


COPY = """
from ml_collections import ConfigDict
from .common import choose, training

def get_config(preset):
  return choose(preset, {"tiny": lambda: ConfigDict(training())})
"""


def test_a_config_file_elsewhere_finds_the_common_parts(tmp_path, monkeypatch):
  (tmp_path / "own.py").write_text(COPY)
  modules = {*sys.modules}
  assert config_lib.load(f"{tmp_path}/own.py:tiny").optimizer.method == "adamw"
  assert {*sys.modules} - modules == set(), "nothing of an import stays"
  # A pip install has the same folder elsewhere, and no checkout.
  shutil.copytree(FOLDER, tmp_path / "share" / "configs")
  monkeypatch.setattr(config_lib, "CONFIG_ROOTS", (tmp_path / "share",))
  monkeypatch.chdir(tmp_path)
  assert config_lib.load("configs/sft.py:tiny").optimizer.method == "muon"
  with pytest.raises(config_lib.UsageError, match="no preset 'huge'; there are tiny"):
    config_lib.load("own.py:huge")


def test_common_parts_next_to_a_config_file_come_first(tmp_path):
  for number in (1, 2):
    folder = tmp_path / str(number)
    folder.mkdir()
    (folder / "own.py").write_text(COPY)
    (folder / "common.py").write_text(
      f"choose = lambda preset, presets: presets[preset]()\ntraining = lambda: dict(seed={number})"
    )
  seeds = [config_lib.load(f"{tmp_path}/{number}/own.py:tiny").seed for number in (1, 2, 1)]
  assert seeds == [1, 2, 1]


def test_an_old_leaf_names_the_new_one():
  presets = [config_lib.load(f"{path}:tiny", complete=False) for path in CONFIGS]
  for old, new in config_lib.RENAMED_LEAVES.items():
    spec = next(
      f"{path}:tiny"
      for path, preset in zip(CONFIGS, presets, strict=True)
      if new in config_lib.leaves(preset)
    )
    with pytest.raises(config_lib.UsageError, match=f"no leaf {old}; it is now called {new}$"):
      config_lib.load(spec, [f"{old}=3"])
  with pytest.raises(config_lib.UsageError, match="no leaf samples; there are"):
    config_lib.load(f"{FOLDER}/export.py:tiny", ["samples=3"])


def test_a_config_of_another_command_is_refused():
  def check(leaves, command, allowed):
    loaded = config_lib.Config(config_dict.ConfigDict(leaves))
    config_lib.check_algorithm(loaded, command, allowed)

  check({"algorithm": "dapo"}, "dapo", ["dapo"])
  check({"algorithm": "dapo"}, "plan", ["sft", "dapo"])
  for leaves, message in (
    ({"algorithm": "dapo"}, "is for 'dapo': run `spatial-vlm dapo`, or give `spatial-vlm sft` a"),
    ({}, r"no leaf algorithm: give .* a preset of configs/sft\.py"),
  ):
    with pytest.raises(config_lib.UsageError, match=message):
      check(leaves, "sft", ["sft"])
