"""The README names functions, tests and commands that exist."""

import re
from pathlib import Path

from spatial_vlm.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_functions_and_tests_of_the_equations_exist():
  named = re.findall(r"`([\w/]+\.py)::(\w+)`", README)
  assert len(named) > 20
  missing = [
    f"{file}::{name}"
    for file, name in named
    if not re.search(rf"^(def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE)
  ]
  assert not missing


def test_commands_are_listed():
  assert re.findall(
    r"^\| `(\w+)` \|", README.partition("## Configuration")[0], re.MULTILINE
  ) == list(COMMANDS)


def test_results_have_their_place():
  assert re.search(r"<!-- results:begin -->.*<!-- results:end -->", README, re.DOTALL)
