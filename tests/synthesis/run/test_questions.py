"""The questions about records, and their keys."""

import io

import numpy as np
import pytest
from etils import epath
from PIL import Image

from spatial_vlm.config import UsageError
from spatial_vlm.data.image_files import ImageFiles
from spatial_vlm.data.records import JsonlSource, TooManyBadRecords
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.data.scenes.writing import write_split
from spatial_vlm.synthesis import formats
from spatial_vlm.synthesis.run.questions import Attempts, Questions, encode_image

IDENTITY = {"model": "m", "temperature": 0.7}


@pytest.fixture
def folder(tmp_path):
  path = epath.Path(tmp_path)
  (path / "images").mkdir()
  write_split(SceneSource("train", 2, 20, image_size=16), path)
  return path


def ask(
  folder, response_format=formats.GEMINI, identity=IDENTITY, seed=3, max_bad_share=0.1, **others
):
  source = JsonlSource(folder / "train.jsonl", folder / "images", max_bad_share=max_bad_share)
  return Questions(source, response_format, Attempts(2, 1), identity=identity, seed=seed, **others)


def test_blind_first_then_with_the_label(folder):
  questions = ask(folder)
  label = questions.record(4).label
  asked = [questions.question(4, attempt) for attempt in range(len(questions.attempts))]
  assert [questions.is_hinted(attempt) for attempt in range(3)] == [False, False, True]
  assert asked[0].text == asked[1].text and asked[0].seed != asked[1].seed
  assert asked[2].text.startswith(asked[0].text) and ("true", "false")[1 - label] in asked[2].text
  assert asked[0].image == (folder / "images" / questions.record(4).image).read_bytes()
  assert all(0 <= question.seed < 2**31 for question in asked)


def test_a_key_depends_on_the_whole_request_and_nothing_else(folder):
  questions = ask(folder)
  keys = {questions.key(index, attempt) for index in range(20) for attempt in range(3)}
  assert len(keys) == 60
  assert ask(folder, workers=2).key(7, 1) == questions.key(7, 1) == ask(folder, limit=8).key(7, 1)
  for other in (
    ask(folder, identity={**IDENTITY, "temperature": 0.8}),
    ask(folder, response_format=formats.QWEN),
    ask(folder, seed=4),
  ):
    assert other.key(7, 1) not in keys
  image = folder / "images" / questions.record(7).image
  Image.new("RGB", (16, 16), "red").save(image)
  assert ask(folder).key(7, 1) not in keys and ask(folder).key(8, 1) in keys


def test_limit_takes_the_first(folder):
  assert ask(folder, limit=5).indices == [0, 1, 2, 3, 4]
  assert ask(folder, limit=500).indices == list(range(20)) == ask(folder).indices


def test_a_broken_image_is_skipped_and_located_before_any_request(folder):
  name = ask(folder).record(3).image
  truncated = folder / "images" / name
  truncated.write_bytes(truncated.read_bytes()[:60])
  questions = ask(folder)
  assert 3 not in questions.indices and len(questions.indices) == 19
  [bad] = questions.bad
  assert (bad.line, bad.file) == (4, str(folder / "train.jsonl")) and name in bad.reason
  with pytest.raises(TooManyBadRecords, match="1 of 20"):
    ask(folder, max_bad_share=0.01)


def save(path, image, **settings):
  file = io.BytesIO()
  image.save(file, **settings)
  path.write_bytes(file.getvalue())
  return file.getvalue()


@pytest.mark.parametrize(("form", "mime"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
def test_images_that_every_teacher_reads_are_sent_as_they_are(tmp_path, form, mime):
  data = save(tmp_path / "a.img", Image.new("RGB", (8, 6), "red"), format=form)
  assert encode_image(ImageFiles(tmp_path), "a.img") == (data, mime)


def test_other_images_are_sent_upright_as_jpeg(tmp_path):
  ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (32, 1))
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees
  save(tmp_path / "turned.jpg", Image.fromarray(ramp), format="JPEG", exif=exif)
  save(tmp_path / "other.bmp", Image.fromarray(ramp), format="BMP")
  for name, size in (("turned.jpg", (32, 64)), ("other.bmp", (64, 32))):
    data, mime = encode_image(ImageFiles(tmp_path), name)
    sent = Image.open(io.BytesIO(data))
    assert (mime, sent.format, sent.size) == ("image/jpeg", "JPEG", size)
    assert sent.getexif().get(0x0112, 1) == 1


def test_at_least_one_blind_attempt():
  with pytest.raises(UsageError, match="give at least 1 blind"):
    Attempts(0, 1)
