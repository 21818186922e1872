"""The README and the documentation name functions, tests, commands and files that exist."""

import re
from pathlib import Path

import pytest

from spatial_vlm.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SOURCES = {
  path.relative_to(ROOT).as_posix(): path.read_text()
  for folder in ("spatial_vlm", "tests")
  for path in sorted((ROOT / folder).rglob("*.py"))
}
PAGES = sorted(ROOT.glob("docs/*.md"))
GENERATED = {"docs/configuration.md", "docs/commands.md", "docs/api/index.md"}


def test_functions_and_tests_of_the_equations_exist():
  equations = (ROOT / "docs" / "equations.md").read_text()
  named = re.findall(r"`([\w/]+\.py)::(\w+)`", equations)
  rows = [line for line in equations.splitlines() if "<br>" in line]
  assert len(rows) > 40 and len(named) == 2 * len(rows)
  missing = [
    f"{file}::{name}, now in {places_of(name) or 'no file'}"
    for file, name in named
    if file not in places_of(name)
  ]
  assert not missing


def places_of(name):
  """The files that define a function or a class of this name."""
  definition = re.compile(rf"^(def|class) {name}\b", re.MULTILINE)
  return [file for file, source in SOURCES.items() if definition.search(source)]


def test_commands_are_listed():
  table = README.partition("## Commands")[2].partition("\n## ")[0]
  assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(COMMANDS)


def test_results_are_on_the_results_page():
  assert re.search(r"<!-- results:begin -->.*<!-- results:end -->", README, re.DOTALL)


def test_the_readme_shows_the_table_of_the_results_page():
  table = re.search(r"^\| method .*?\n\n", README, re.DOTALL | re.MULTILINE)
  assert table and table[0] in (ROOT / "docs" / "results.md").read_text()


def test_links_of_the_readme_are_files():
  links = re.findall(r"\]\((?!http)([^)#]+)", README + (ROOT / "CONTRIBUTING.md").read_text())
  assert len(links) > 10
  assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_of_the_pages_exist(page):
  """Files in backticks, and links to other pages; the strict build of the site checks anchors too."""
  text = page.read_text()
  code = re.findall(r"`((?:spatial_vlm|tests|docs|configs|launch|notebooks)/[\w./]*)`", text)
  links = [f"docs/{link}" for link in re.findall(r"\]\((?!http)([^)#]+)", text)]
  templates = {path for path in code if "NAME" in path}
  missing = [path for path in [*code, *links] if not (ROOT / path).exists()]
  assert not {*missing} - templates - GENERATED
