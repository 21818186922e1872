"""Notebooks run from top to bottom, as a user runs them, and are stored without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code_cells(path):
  cells = json.loads(path.read_text())["cells"]
  return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_tour_gives_its_stated_figures(capsys):
  names = {}
  (tour,) = (path for path in NOTEBOOKS if path.stem == "tour")
  for cell in code_cells(tour):
    exec("".join(cell["source"]), names)
  assert names["true"].record.caption == names["false"].record.caption
  assert names["boxes"].keys() == names["true"].scene.boxes.keys()
  assert names["mean_iou"] > 0.85  # the model card states 0.93, over more scenes
  assert "Conclusion: Yes." in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_outputs_are_stored(path):
  for cell in code_cells(path):
    assert not cell["outputs"] and cell["execution_count"] is None
