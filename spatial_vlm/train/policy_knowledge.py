"""What a policy was trained to be asked, from the settings and the data of its run."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from etils import epath

from spatial_vlm.data.image_files import ImageFiles
from spatial_vlm.data.sizes import image_size
from spatial_vlm.huggingface.folder import read_model_config
from spatial_vlm.huggingface.model_card import Knowledge, read_knowledge
from spatial_vlm.inference.questions import question_words
from spatial_vlm.jsonl import parse_json
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.tasks import find_task

SCANNED_IMAGES = 256
"""Images of the training data whose headers are read for their sizes, evenly spaced."""

Settings = Mapping[str, Any]
"""Settings of a training run by their dotted names, as in its config.json."""
Span = tuple[int, int]

log = logging.getLogger(__name__)


class Taught(NamedTuple):
  """What one run teaches."""

  tasks: Sequence[str]
  forms: Sequence[str]
  data: str
  """Names of the files of its records or conversations, without folders: a model card may be published."""
  images: Sequence[str]
  """Names of its images."""


def training_knowledge(settings: Settings, source: epath.Path) -> Knowledge:
  """Returns what a policy knows after a run: what the run taught, and what the policy that it began with knew.

  Data that is not on this machine any more is reported and taken for unknown.
  """
  before, spans = read_knowledge(source), (None, None)
  try:
    taught = TAUGHT[settings["algorithm"]](settings)
    spans = image_spans(taught.images, settings["data.images"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    log.warning("the model card says less: the training data cannot be read (%s)", error)
    taught = Taught((), (), "not known", ())
  stage = {
    "algorithm": settings["algorithm"],
    "checkpoint": epath.Path(settings["checkpoint"]).name,
    "data": taught.data,
  }
  return Knowledge(
    tasks=_joined(before.tasks if before else (), taught.tasks),
    forms=_joined(before.forms if before else (), taught.forms),
    image_height=_hull(before.image_height if before else None, spans[0]),
    image_width=_hull(before.image_width if before else None, spans[1]),
    vocabulary_size=read_model_config(source).text.vocab_size,
    stages=[*(before.stages if before else ()), stage],
  )


def taught_by_sft(settings: Settings) -> Taught:
  """Returns the task of a run and the forms whose words stand around the questions of its conversations.

  Conversations do not name their task, and tasks share their words, so that the words alone would tell too much. A form
  without words of its own fits every question and is not counted. Without any form the run did not teach the task.
  """
  if settings["data.pretrain.scenes"]:
    return Taught((), (), "rendered scenes", ())
  files = [settings["data.conversations"], *(name for name, *_ in settings["data.mix"])]
  rows = [row for file in files for row in _lines(file)]
  questions = {row["question"] for row in rows if "question" in row}
  forms = [
    form
    for form, (before, after) in question_words(find_task(settings["task"])).items()
    if (before or after)
    and any(question.startswith(before) and question.endswith(after) for question in questions)
  ]
  tasks = [settings["task"]] if forms else []
  images = [row["image"] for row in rows if "image" in row]
  return Taught(tasks, forms, ", ".join(epath.Path(file).name for file in files), images)


def taught_by_dapo(settings: Settings) -> Taught:
  """Returns the task of a run and the forms that its prompts ask for."""
  forms = ("chain", "short") if settings["behaviors"] else ("chain",)
  images = [row["image"] for row in _lines(settings["data.records"]) if "image" in row]
  data = epath.Path(settings["data.records"]).name
  return Taught((settings["task"],), forms, data, images)


TAUGHT: Mapping[str, Callable[[Settings], Taught]] = MappingProxyType(
  {"sft": taught_by_sft, "dapo": taught_by_dapo}
)
"""Algorithm → what a run with these settings teaches."""


def image_spans(names: Sequence[str], images: Any) -> tuple[Span | None, Span | None]:
  """Returns the least and most pixels of the heights and of the widths of some of these images.

  Images that cannot be read are skipped; None where none can.
  """
  unique, files, sizes = _joined((), names), ImageFiles(images), []
  for name in unique[:: max(1, len(unique) // SCANNED_IMAGES)][:SCANNED_IMAGES]:
    try:
      sizes.append(image_size(files.read(name), name))
    except (OSError, UnreadableImage) as error:
      log.warning("skipped in the image sizes of the model card: %s", error)
  if not sizes:
    return None, None
  heights, widths = zip(*sizes, strict=True)
  return (min(heights), max(heights)), (min(widths), max(widths))


def _lines(file: str) -> list[dict[str, Any]]:
  """Returns the usable JSON objects of a file of lines."""
  rows = []
  for line in epath.Path(file).expanduser().read_bytes().split(b"\n"):
    try:
      row = parse_json(line)
    except ValueError:
      continue  # the run has counted and reported it
    if isinstance(row, dict) and all(
      isinstance(row.get(n, ""), str) for n in ("image", "question")
    ):
      rows.append(row)
  return rows


def _joined(known: Sequence[str], more: Iterable[str]) -> list[str]:
  """Returns both without repetitions, in their order."""
  return list(dict.fromkeys([*known, *more]))


def _hull(a: Sequence[int] | None, b: Sequence[int] | None) -> Span | None:
  """Returns the smallest span that holds both."""
  spans = [span for span in (a, b) if span]
  return (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None
