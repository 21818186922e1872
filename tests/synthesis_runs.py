"""Settings, scenes and results of the runs that tests start against a local server."""

from etils import epath

from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.data.scenes.writing import write_split
from spatial_vlm.synthesis import formats
from spatial_vlm.synthesis.local.faults import TRANSIENT, Faults
from spatial_vlm.synthesis.run.ledger import Prices
from spatial_vlm.synthesis.run.limiter import RequestLimits
from spatial_vlm.synthesis.run.questions import Attempts, Questions
from spatial_vlm.synthesis.teacher import Usage
from spatial_vlm.synthesis.verify.check_settings import CheckSettings

CHECK_SETTINGS = CheckSettings(8, 120, 0.0005, 0.95, 0, 60, tuple(RELATIONS), ())
PRICES = Prices(input_usd=1.0, cached_usd=0.5, output_usd=10.0, batch_share=0.5)
MAX_USAGE = Usage(2000, 0, 1000, 0)
REQUEST_LIMITS = RequestLimits(8, 600_000.0, max_tries=4, initial_delay_s=0.01, max_delay_s=0.02)
SMALL, LARGE = 60, 1000


def scenes(path, count):
  (path / "images").mkdir()
  write_split(SceneSource("train", 2, count, image_size=16), epath.Path(path))
  return path


def questions_on(folder, attempts=Attempts(1, 1)):  # noqa: B008 (an immutable default)
  source = JsonlSource(folder / "train.jsonl", folder / "images")
  return Questions(source, formats.GEMINI, attempts, identity={"model": "local"}, seed=0)


def progress(run):
  return [run.progress(index) for index in run.questions.indices]


def settled(run):
  """Returns index → (accepted, hinted flags, last text) of all records."""
  found = progress(run)
  assert all(record.next_attempt is None for record in found)
  return {r.index: (r.accepted, [a.hinted for a in r.answers], r.answers[-1].text) for r in found}


def faults(share):
  return Faults(**dict.fromkeys(TRANSIENT, share / len(TRANSIENT)), retry_after_s=0.02, slow_s=0.05)


class Cut(Exception):
  """Raised in place of a kill."""
