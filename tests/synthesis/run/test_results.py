"""Files of a run."""

import json

import pytest
from etils import epath
from synthesis_runs import questions_on

from spatial_vlm.config import UsageError
from spatial_vlm.data.image_files import ImageFiles
from spatial_vlm.synthesis.local.faults import Faults
from spatial_vlm.synthesis.run.results import write_results
from spatial_vlm.synthesis.verify.selection import SelectionSettings

SELECTION = SelectionSettings(max_similarity=1.0, max_label_ratio=100.0)


def write(run, folder, workdir):
  images = ImageFiles(folder / "images")
  return write_results(
    run, SELECTION, images, epath.Path(workdir), examples=2, settings={"seed": 0}
  )


def test_every_answer_is_in_one_of_the_files(start, serve, answers, folder, tmp_path):
  run = start(questions_on(folder), serve(answers))
  written = write(run, folder, tmp_path)
  accepted, rejected = (
    [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    for name in ("accepted", "rejected")
  )
  chains = (tmp_path / "chains.jsonl").read_text().splitlines()
  assert written == (len(chains), 0, len(run.questions.indices)) and len(chains) == len(accepted)
  assert {line["key"] for line in accepted + rejected} == set(run.journal.answers)
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["accepted"] == len(accepted) and results["settings"] == {"seed": 0}
  assert (tmp_path / "examples.png").exists() and "# Chains" in (tmp_path / "report.md").read_text()


def test_several_model_versions_are_refused(start, serve, answers, folder, tmp_path):
  run = start(questions_on(folder), serve(answers, faults=Faults(other_version=0.3)), mixed=True)
  write(run, folder, tmp_path)
  run.mixed_versions = False
  with pytest.raises(UsageError, match=r"local-00\d \(\d+ chains\), .*allow_mixed_versions"):
    write(run, folder, tmp_path)
