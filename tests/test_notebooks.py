"""Notebooks run from top to bottom, as a user runs them, import what is public, and are stored without outputs."""

import ast
import json
import os
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
(TOUR,) = (path for path in NOTEBOOKS if path.stem == "tour")
SMALL = "SCENES, EPOCHS, BATCHES = 64, 6, 3"
"""In place of the sizes of the second cell; fewer steps would all be warm-up."""


FEWER = {
  "dapo": {
    "groups_per_batch": 4,
    "micro_batches": 1,
    "rollout_batch_size": 4,
    "group_size": 4,
    "max_rollout_rounds": 1,
  }
  | {"validate_prompts": 8, "validate_batch": 8},
  "evaluate": {"limit": 8, "batch_size": 8},
}
"""Settings of the commands in addition to those of the tour."""


def with_fewer_answers(run):
  return lambda command, folder, **given: run(command, folder, **given | FEWER.get(command, {}))


def cells_of(path, kind="code"):
  cells = json.loads(path.read_text())["cells"]
  return [cell for cell in cells if cell["cell_type"] == kind]


def sources(path):
  return ["".join(cell["source"]) for cell in cells_of(path)]


def test_the_tour_shows_a_contrast_and_its_chain(capsys):
  """The cells before the first command."""
  names = {}
  cells = sources(TOUR)
  first_command = next(i for i, cell in enumerate(cells) if "import main" in cell)
  for cell in cells[:first_command]:
    exec(cell, names)
  assert names["true"].record.caption == names["false"].record.caption
  assert "Conclusion: Yes." in capsys.readouterr().out


@pytest.mark.slow
def test_the_tour_teaches_the_model_and_draws_its_curves(tmp_path, monkeypatch, on_devices):
  monkeypatch.chdir(tmp_path)
  names, cells = {}, sources(TOUR)
  assert sum("SCENES, EPOCHS, BATCHES = " in cell for cell in cells) == 1
  with on_devices(1):
    for cell in cells:
      if "SCENES, EPOCHS, BATCHES = " in cell:
        cell = f"{cell}\n{SMALL}"
      exec(cell, names)
      if "def run(" in cell:
        names["run"] = with_fewer_answers(names["run"])
  assert {*names["accuracy"]} == {"sft", "dapo"}
  assert [record["step"] for record in names["curves"]["DAPO"]] == [0, 1, 2, 3]
  assert os.path.getsize("runs/tour/training.png") > 10_000
  assert Path("runs/tour/dapo/export/model.safetensors").exists()


def test_the_tour_can_be_installed_and_opened_on_colab():
  assert "colab.research.google.com" in "".join(cells_of(TOUR, "markdown")[0]["source"])
  install = sources(TOUR)[0]
  assert '"pip", "install"' in install and "find_spec" in install
  exec(install, {})  # the package is there: nothing is installed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_imports_are_public_and_no_outputs_are_stored(path):
  for cell in cells_of(path):
    assert not cell["outputs"] and cell["execution_count"] is None
    for node in ast.walk(ast.parse("".join(cell["source"]))):
      if isinstance(node, ast.ImportFrom):
        names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        assert not any(name.startswith("_") for name in names), names
