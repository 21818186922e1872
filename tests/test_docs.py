"""The generated pages list every setting with its meaning, every command and every module."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from spatial_vlm import config as config_lib
from spatial_vlm.cli import COMMANDS

ROOT = Path(__file__).parents[1]


def script(name):
  """A script of docs/, imported from its file."""
  spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


make_configuration = script("make_configuration")
CONFIGS = make_configuration.config_files(ROOT)


def test_the_page_has_a_section_for_every_config():
  page = make_configuration.configuration_page(ROOT)
  assert [path.stem for path in CONFIGS] == re.findall(r"^## (\w+)$", page, re.MULTILINE)
  assert len(CONFIGS) >= 10


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_leaf_is_listed_with_its_meaning(path):
  """A leaf without one needs a comment in its config."""
  rows = make_configuration.leaves(ROOT, path)
  named = [row.name for row in rows if row.kind != "group"]
  assert named == list(config_lib.leaves(config_lib.read_preset(f"configs/{path.name}:tiny")))
  assert not [row.name for row in rows if not row.text]
  section = "\n".join(make_configuration.section(ROOT, path))
  assert all(f"| `{name}` |" in section for name in named)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_preset_is_described(path):
  _, presets = make_configuration.docstring_parts(path)
  assert presets
  for name in presets:
    make_configuration.load(path, name)
  with pytest.raises(config_lib.UsageError, match="no preset"):
    make_configuration.load(path, "unknown")


def test_values_are_shown_as_they_are_written():
  leaves = {row.name: row for row in make_configuration.leaves(ROOT, ROOT / "configs" / "sft.py")}
  assert leaves["checkpoint"].large == "*required*"
  assert leaves["optimizer.learning_rate"].tiny == "`0.0028`"
  assert leaves["optimizer.learning_rate"].kind == "float"
  assert make_configuration.cell("a|b `c|d`") == "a\\|b `c|d`"  # "|" would end the cell


def test_the_page_of_commands_has_all_of_them():
  page = script("make_commands").commands_page(ROOT)
  assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(COMMANDS)


def test_every_module_has_a_place_in_the_api():
  make_api = script("make_api")
  pages = make_api.api_pages(ROOT)
  text = "\n".join(markdown for _, markdown in pages.values())
  modules = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "spatial_vlm").rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py") and "commands" not in path.parts
  }
  assert {*re.findall(r"^::: (\S+)$", text, re.MULTILINE)} == modules


def test_every_page_is_in_the_navigation():
  navigation = (ROOT / "mkdocs.yml").read_text()
  assert not [page.name for page in ROOT.glob("docs/*.md") if f": {page.name}" not in navigation]


def test_settings_of_the_rl_guide_are_those_of_the_config():
  guide = (ROOT / "docs" / "rl_guide.md").read_text()
  table = guide.partition("## Settings")[2].partition("\n## ")[0]
  tiny, large = (
    config_lib.leaves(config_lib.read_preset(f"configs/dapo.py:{preset}"))
    for preset in ("tiny", "8b")
  )
  rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
  assert len(rows) > 10
  for names, of_tiny, of_large, *_ in rows:
    leaves = re.findall(r"`([\w.]+)`", names)
    for config, written in ((tiny, of_tiny), (large, of_large)):
      values = [float(value.replace(",", "")) for value in written.split(", ")]
      assert values == [config[leaf] for leaf in leaves], names


def test_metrics_of_the_rl_guide_are_those_of_the_code():
  guide = (ROOT / "docs" / "rl_guide.md").read_text()
  table = guide.partition("## Metrics")[2].partition("\n## ")[0]
  rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
  metrics = [name for row in rows for name in re.findall(r"`([\w/]+)`", row)]
  source = "".join(path.read_text() for path in (ROOT / "spatial_vlm").rglob("*.py"))
  assert len(metrics) > 20
  phases = {*re.findall(r'clock\.phase\("(time/\w+)"\)', source)}
  assert phases == {name for name in metrics if name.startswith("time/")} - {"time/step_s"}
  assert not [name for name in {*metrics} - phases if f'"{name}"' not in source]
