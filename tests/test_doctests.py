"""Runs the examples in the package's docstrings."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import spatial_vlm

ROOT = Path(spatial_vlm.__file__).parents[1]
PATHS = [
  path for path in sorted((ROOT / "spatial_vlm").rglob("*.py")) if ">>> " in path.read_text()
]
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef


def docstrings(path):
  """Docstrings of a file, from its source: decorators hide functions from doctest's own search."""
  nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DOCUMENTED)]
  return [text for text in map(ast.get_docstring, nodes) if text]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_give_their_stated_results(path):
  module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
  parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
  for text in docstrings(path):
    runner.run(parser.get_doctest(text, {**vars(module)}, path.name, str(path), 0))
  assert runner.failures == 0


def test_every_example_is_in_a_docstring():
  assert len(PATHS) >= 15
  for path in PATHS:
    assert path.read_text().count(">>> ") == sum(text.count(">>> ") for text in docstrings(path))
