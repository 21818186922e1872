"""Benchmarks of others, each with the schema of its published files.

Each reads a file of its published schema, as its comment gives it; `docs/tasks.md` lists the files to download.
A TSV has the columns of VLMEvalKit (`data.benchmarks.tsv_table`), whatever the benchmark, so that every one of its
datasets with options or yes and no can be read by `mmbench` or `pope`. No row was seen here: tests write files of these
schemas.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from spatial_vlm.data.benchmark_record import BenchmarkRecord
from spatial_vlm.data.benchmarks.fields import (
  Fields,
  choice_record,
  short_record,
  shuffled_record,
  yes_no_record,
)
from spatial_vlm.data.benchmarks.source import BenchmarkSource
from spatial_vlm.evaluation.scores import score_statements
from spatial_vlm.tasks import statements
from spatial_vlm.tasks.choices import choice_task, short_task
from spatial_vlm.tasks.explanations import explain_questions
from spatial_vlm.tasks.task import Task

ROTATED = 1_000_000
"""Rows of MMBench with one index modulo this are rotations of one question (VLMEvalKit, `mcq_circular_eval`)."""
_BLINK_SPATIAL = (
  "spatial relation",
  "relative depth",
  "multi view reasoning",
  "object localization",
)


def whatsup_record(fields: Fields) -> BenchmarkRecord:
  """Reads What'sUp: which caption describes the image. The first caption of the file is the right one.

  `controlled_images_dataset.json` and `controlled_clevr_dataset.json`: a list of {"image_path", "caption_options": four
  captions}. `coco_qa_*.json` and `vg_qa_*.json`: a list of [image id, right caption, wrong caption]. Source: Kamath,
  Hessel and Chang, arXiv 2310.19785; github.com/amitakamath/whatsup_vlms.
  """
  captions: Any = fields.get("caption_options")
  image = fields.get("image_path")
  if "0" in fields:
    image, captions = fields["0"], [fields.get("1"), fields.get("2")]
    if isinstance(image, int | str):
      image = _image_file(str(image), str(fields.get("file")))
  if not isinstance(image, str) or not isinstance(captions, list):
    raise ValueError("a question is {image_path, caption_options} or [image id, caption, caption]")
  if not all(isinstance(caption, str) and caption.strip() for caption in captions):
    raise ValueError(f"captions are {captions!r}; they must be texts")
  return shuffled_record(
    image, "Which caption describes the image?", captions, _preposition(captions[0]), {}
  )


def _image_file(id: str, file: str) -> str:
  """Returns the image of an id as the authors' readers name it: as it is in Visual Genome, of 12 digits in COCO.

  >>> _image_file("139", "coco_qa_two_obj.json"), _image_file("2317", "vg_qa_one_obj.json")
  ('000000000139.jpg', '2317.jpg')
  """
  name = id if file.startswith("vg_") else id.zfill(12)
  return id if "." in id else f"{name}.jpg"


def _preposition(caption: str) -> str:
  """Returns the relation of a caption, "all" for one without it.

  >>> _preposition("A mug to the left of a plate"), _preposition("A dog")
  ('left of', 'all')
  """
  names = "left of|right of|in front of|behind|under|above|below|on top of|on"
  match = re.search(rf"\b(?:{names})\b", caption)
  return match[0] if match else "all"


def three_d_group(fields: Fields) -> str:
  """Returns the question of a row of 3DSRBench: its `qid` without the ending -1, -2, … of a copy.

  As in the benchmark's `compute_3drbench_results_circular.py`, which counts a question as right if all its rows are.

  >>> three_d_group({"qid": "AB12-1"}), three_d_group({"qid": "AB12"})
  ('AB12', 'AB12')
  """
  qid = str(fields.get("qid") or "")
  return qid[:-2] if qid[-2:-1] == "-" else qid


def circular_group(fields: Fields) -> str:
  """Returns the question of a row of MMBench: its index modulo 1,000,000.

  >>> circular_group({"index": "2000017"}), circular_group({"index": "17"})
  ('17', '17')
  """
  index = str(fields.get("index") or "")
  return str(int(index) % ROTATED) if index.isdecimal() else index


def blink_record(fields: Fields) -> BenchmarkRecord | None:
  """Reads the spatial questions of BLINK: spatial relation, relative depth, multi-view reasoning, object localization.

  Parquet of each subtask, `Spatial_Relation/val-*.parquet`: idx, sub_task, question, image_1 … image_4, choices,
  answer "(A)" ("hidden" in the test split), prompt. TSV `BLINK.tsv`: all subtasks, named by `category`; the others are
  skipped. Source: Fu et al., arXiv 2404.12390.
  """
  subtask = str(fields.get("sub_task") or fields.get("category") or "")
  if re.sub(r"[\W_]+", " ", subtask.lower()) not in _BLINK_SPATIAL:
    return None
  return choice_record(fields, relation=("sub_task", "category"))


_YES_NO = dataclasses.replace(
  statements.VSR,
  question=lambda caption, form: f"{caption} {statements.instruction(form)}",
  templates={},
  explanations=explain_questions(),
  score=functools.partial(score_statements, meta_category={}),
)
"""Questions that are answered by yes or no."""

_TASKS: Mapping[str, Task] = MappingProxyType(
  {
    # VLMEvalKit's VSR-zeroshot, vsr_zeroshot_dataset_yn_strict.tsv: index, image, question (a statement with "Please
    # answer yes or no. Please answer strictly Yes or No."), answer Yes or No. Asked as the task vsr asks.
    "vsr-zeroshot": dataclasses.replace(
      statements.VSR,
      read=functools.partial(
        BenchmarkSource,
        to_record=functools.partial(yes_no_record, relation=("relation", "category")),
      ),
    ),
    "whatsup": choice_task(whatsup_record),
    # CV-Bench (Tong et al., arXiv 2406.16860), test_2d.parquet and test_3d.parquet: idx, type (2D, 3D), task (Count,
    # Relation, Depth, Distance), image, question, choices, answer "(A)", prompt, filename, source (ADE20K, COCO,
    # Omni3D), source_dataset, source_filename, target_class, target_size, bbox. TSV: CV-Bench-2D, CV-Bench-3D.
    "cvbench": choice_task(
      functools.partial(choice_record, relation=("task", "category"), strata=("type", "source"))
    ),
    "blink": choice_task(blink_record),
    # EmbSpatial-Bench (Du et al., arXiv 2406.05756), Parquet: question_id, image, question, relation, answer_options,
    # answer (number from 0), data_source (ai2thor, mp3d, scannet), scene_id. The authors' embspatial_bench.json has the
    # same fields, the image in base64. TSV: EmbSpatialBench.
    "embspatial": choice_task(
      functools.partial(choice_record, relation=("relation", "category"), strata=("data_source",))
    ),
    # RealWorldQA (xAI), test-*.parquet: image, question (with options and what to answer with), answer: a letter, a
    # word or a number. TSV: RealWorldQA, with options in columns.
    "realworldqa": short_task(short_record),
    # POPE (Li et al., arXiv 2305.10355), test-*.parquet: id, question_id, question, answer (yes, no), image_source,
    # image, category (adversarial, popular, random). TSV: POPE, with Yes and No.
    "pope": dataclasses.replace(
      _YES_NO,
      read=functools.partial(BenchmarkSource, to_record=yes_no_record),
    ),
    # 3DSRBench (Ma et al., arXiv 2412.07825), 3dsrbench_v1_vlmevalkit_circular.tsv: index, qid, question, A, B, for
    # some C and D, answer, category (such as height_higher), image.
    "3dsrbench": choice_task(functools.partial(choice_record, group=three_d_group)),
    # MMBench (Liu et al., arXiv 2307.06281), MMBench_DEV_EN.tsv: index, question, hint, A … D, answer, category,
    # l2-category, split, image (or the index of the row with the image, as all rotated copies have it).
    "mmbench": choice_task(
      functools.partial(
        choice_record, relation=("category",), strata=("l2-category", "split"), group=circular_group
      )
    ),
  }
)
BENCHMARKS: Mapping[str, Task] = MappingProxyType(
  {name: dataclasses.replace(task, held_out=True) for name, task in _TASKS.items()}
)
"""Name → task; all records of a benchmark are there to measure on."""
