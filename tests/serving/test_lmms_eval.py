"""lmms-eval against a server: its own OpenAI model and the model of this package, on the task of scenes.

lmms-eval needs older versions of some packages, so it may lie in an environment of its own: LMMS_EVAL_PYTHON names the
Python of that environment, in which this package is installed too (without its dependencies).
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from scripted_engine import running, with_scripted_engine

from spatial_vlm import answers
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.data.scenes.writing import write_split
from spatial_vlm.serving.app import make_app
from spatial_vlm.tasks import statements

TASKS = Path(__file__).parents[2] / "spatial_vlm" / "serving" / "lmms_eval_tasks"
PYTHON = os.environ.get("LMMS_EVAL_PYTHON") or (
  sys.executable if importlib.util.find_spec("lmms_eval") else None
)
CHAIN = answers.render_chain("a. True?", "cat [1, 2, 30, 40]", "no gap: x=3 < x=4, so it is.", 1)


def test_the_task_asks_as_the_package_does():
  text = (TASKS / "spatial_vlm_scenes.yaml").read_text().replace("!function ", "")
  task = yaml.safe_load(text)
  words = task["lmms_eval_specific_kwargs"]
  assert "It is." + words["default"]["post_prompt"] == statements.question("It is.", "chain")
  assert words["spatial_vlm"]["post_prompt"] == ""


def test_a_record_names_no_path(tmp_path, monkeypatch):
  spec = importlib.util.spec_from_file_location("task_utils", TASKS / "utils.py")
  utils = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(utils)
  monkeypatch.setenv("SPATIAL_VLM_IMAGES", str(tmp_path))
  for name in ("../a.png", "/a.png", "b/a.png"):
    with pytest.raises(ValueError, match="give the name of a file"):
      utils.doc_to_visual({"image": name})


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="lmms-eval is not installed (LMMS_EVAL_PYTHON)")
@pytest.mark.parametrize("model", ["spatial_vlm", "openai"])
def test_lmms_eval_scores_a_model(model, service_of, serving_policy, tmp_path):
  scenes = tmp_path / "runs" / "scenes"
  write_split(SceneSource("test", seed=0, count=4), scenes)
  service = service_of("max_new_tokens=144")
  with_scripted_engine(service, serving_policy, lambda prompt: CHAIN)
  with running(make_app(service)) as address:
    arguments = {
      "spatial_vlm": f"base_url={address}/v1,log=chains.jsonl",
      "openai": f"base_url={address}/v1,model=nano,timeout=60",
    }
    command = [
      *(PYTHON, "-m", "lmms_eval", "--model", model, "--model_args", arguments[model]),
      *("--tasks", "spatial_vlm_scenes", "--include_path", str(TASKS)),
      *("--output_path", "out", "--log_samples"),
    ]
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | home
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  found = [*(tmp_path / "out").rglob("*_results.json")]
  # lmms-eval ends with status 0 after an error too.
  assert done.returncode == 0 and len(found) == 1, done.stdout[-3000:] + done.stderr[-3000:]
  (results,) = found
  scores = json.loads(results.read_text())["results"]["spatial_vlm_scenes"]
  assert scores["accuracy,none"] == 0.5 and scores["stated,none"] == 1.0
  (samples,) = (tmp_path / "out").rglob("*_samples_spatial_vlm_scenes.jsonl")
  given = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
  assert given == ["Yes" if model == "spatial_vlm" else CHAIN] * 4
  if model == "spatial_vlm":
    lines = [json.loads(line) for line in (tmp_path / "chains.jsonl").read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == [0, 1, 2, 3]
    assert all(line["text"] == CHAIN and line["boxes"] == {"cat": [1, 2, 30, 40]} for line in lines)
