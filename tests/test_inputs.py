"""Missing inputs are named with their leaves and the commands that write them."""

import pytest

from spatial_vlm.config import UsageError, load
from spatial_vlm.inputs import check_inputs

CONFIG = """
from ml_collections import ConfigDict

def get_config(preset):
  return ConfigDict(dict(text="", other="", files=(), count=1))
"""


@pytest.fixture
def missing(tmp_path, monkeypatch):
  """Returns the message about leaves with these values, in a folder that holds `here` alone."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "here").touch()
  (tmp_path / "some.py").write_text(CONFIG)

  def check(*changes):
    config = load("some.py:tiny", changes)
    try:
      check_inputs(config, ("text", "other", "files"))
    except UsageError as error:
      return str(error)
    return ""

  return check


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (("text=away",), "away (text) does not exist: give another with --config.text=…"),
    (
      ("text=runs/scenes/chains.jsonl", "other=runs/scenes/images"),
      "runs/scenes/chains.jsonl (text) and runs/scenes/images (other) do not exist: `spatial-vlm scenes` writes them; "
      "or give others with --config.text=… --config.other=…",
    ),
    (
      ("text=runs/sft_reuse/export",),
      "runs/sft_reuse/export (text) does not exist: `spatial-vlm sft --config configs/sft.py:reuse --workdir "
      "runs/sft_reuse` writes it; or give another with --config.text=…",
    ),
    (("text=here, away",), "away (text) does not exist: give another with --config.text=…"),
    (
      ("files=(('here', 'away', 0.5),)",),
      "away (files) does not exist: give another with --config.files=…",
    ),
    (("text=runs/mine/a",), "runs/mine/a (text) does not exist: give another with --config.text=…"),
  ],
)
def test_missing_files_are_named(missing, changes, message):
  assert missing(*changes) == message


@pytest.mark.parametrize(
  "value", ["", "here", "here,here", "test-*.parquet", "gs://b/a", "spatial_vlm/assets/tiny_base"]
)
def test_what_exists_or_is_looked_up_later_passes(missing, value):
  assert missing(f"text={value}") == ""
