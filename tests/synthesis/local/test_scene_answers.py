"""The scene teacher behind a server: what it writes, how often it errs, and that the checks detect it."""

import collections
import dataclasses

import pytest
from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.data.scenes.writing import write_split
from spatial_vlm.synthesis import scene_teacher
from spatial_vlm.synthesis.draft import chain
from spatial_vlm.synthesis.formats import CHAIN, GEMINI, QWEN
from spatial_vlm.synthesis.local import scene_answers
from spatial_vlm.synthesis.local.scene_answers import SceneAnswers
from spatial_vlm.synthesis.teacher import Reply, Usage
from spatial_vlm.synthesis.verify.check_settings import CheckSettings
from spatial_vlm.synthesis.verify.checks import examine

LIMITS = CheckSettings(8, 120, 0.0005, 0.95, 0, 60, tuple(RELATIONS), ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = epath.Path(tmp_path_factory.mktemp("scenes"))
  (path / "images").mkdir()
  write_split(SceneSource("validation", 2, 100, image_size=16), path)
  return path


@pytest.fixture(scope="module")
def source(folder):
  return JsonlSource(
    folder / "validation.jsonl", folder / "images", folder / "validation.boxes.jsonl"
  )


def ask(answers, source, index, form=GEMINI, seed=0, hinted=False):
  record, boxes = source.describe(index)
  image = source.image_files.read(record.image)
  hint = record.label if hinted else None
  question = form.question(record, image, "image/png", seed, hint)
  return record, boxes, answers(question.image, question.system, question.text, question.seed)


def results(answers, source, seeds, hinted):
  """Share of answers that are not the exact one, and how often each check refuses an answer."""
  wrong, refused, total = 0, collections.Counter(), 0
  for seed in range(seeds):
    for index in range(len(source)):
      record, boxes, text = ask(answers, source, index, seed=seed, hinted=hinted)
      _, rejections = examine(
        Reply(text, "STOP", "", Usage(0, 0, 0, 0), {}), GEMINI, record, LIMITS
      )
      wrong += text != GEMINI.render(scene_teacher.draft(record, boxes))
      refused.update(rejection.check for rejection in rejections)
      total += 1
  return wrong / total, refused


@pytest.mark.parametrize("form", [GEMINI, QWEN, CHAIN])
def test_without_mistakes_it_writes_the_exact_chain_in_the_form_asked_for(folder, source, form):
  answers = SceneAnswers(folder, "validation", 0.0)
  for index in range(len(source)):
    record, boxes, text = ask(answers, source, index, form)
    draft = form.parse(text)
    assert draft == scene_teacher.draft(record, boxes)
    assert chain(draft) == scene_teacher.chain(SceneSource("validation", 2, 100, 16)[index])


def test_it_errs_at_the_given_rate_and_checks_detect_it(folder, source):
  wrong, refused = results(SceneAnswers(folder, "validation", 0.5), source, seeds=4, hinted=False)
  assert 0.4 < wrong < 0.6
  assert {"numbers", "geometry", "conclusion", "leak"} == {*refused}
  assert min(refused.values()) > 10


def test_with_a_hint_it_errs_rarely_and_reveals_the_hint(folder, source):
  wrong, refused = results(SceneAnswers(folder, "validation", 0.5), source, seeds=4, hinted=True)
  assert 0.05 < wrong < 0.15
  assert refused == {"hint": round(wrong * 400)}


@pytest.mark.parametrize("mistake", [*scene_answers._MISTAKES, scene_answers._betray_hint])
def test_each_mistake_is_refused_nearly_always(mistake, source):
  """Boxes of similar size may be swapped, and square ones mirrored, without a contradiction in the text."""
  refused = 0
  for index in range(len(source)):
    record, boxes = source.describe(index)
    text = GEMINI.render(mistake(scene_teacher.draft(record, boxes), record))
    refused += bool(
      examine(Reply(text, "STOP", "", Usage(0, 0, 0, 0), {}), GEMINI, record, LIMITS)[1]
    )
  assert refused >= 0.85 * len(source)


def test_equal_questions_get_equal_answers_and_other_seeds_others(folder, source):
  first, second = (SceneAnswers(folder, "validation", 0.5) for _ in range(2))
  texts = [[ask(first, source, i, seed=seed)[2] for i in range(20)] for seed in (0, 1)]
  assert texts[0] == [ask(second, source, i)[2] for i in range(20)] != texts[1]


def test_unknown_images_and_questions_are_refused(folder, source):
  answers = SceneAnswers(folder, "validation", 0.0)
  record, _ = source.describe(0)
  image = source.image_files.read(record.image)
  blind = GEMINI.question(record, image, "image/png", 0, None)
  with pytest.raises(ValueError, match="no scene has this image"):
    answers(b"other", blind.system, blind.text, 0)
  with pytest.raises(ValueError, match="the question 'The cat"):
    answers(image, blind.system, "The cat sits.", 0)
  untrue = GEMINI.question(dataclasses.replace(record), image, "image/png", 0, 1 - record.label)
  with pytest.raises(ValueError, match="no scene has this image"):
    answers(image, untrue.system, untrue.text, 0)


def test_a_folder_without_scenes_and_an_invalid_share_are_refused(folder):
  with pytest.raises(UsageError, match="train.jsonl and .*train.boxes.jsonl are missing"):
    SceneAnswers(folder, "train", 0.0)
  with pytest.raises(UsageError, match="mistake_share is 1.5"):
    SceneAnswers(folder, "validation", 1.5)
