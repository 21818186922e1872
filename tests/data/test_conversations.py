"""Files of conversations: written, read back, and what is skipped of them."""

import dataclasses
import io
import json
import logging
import zipfile

import numpy as np
import pytest
from PIL import Image

from spatial_vlm.data import conversations
from spatial_vlm.data.conversations import Conversation, ConversationSource
from spatial_vlm.data.records import BadRecordError, TooManyBadRecords
from spatial_vlm.data.sizes import SizedSource
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.processor.video import VideoInfo

GOOD = Conversation(
  "a.png", "The cat is left of the mug. True?", "Summary: é\u2028 «x»\nConclusion: Yes."
)


@pytest.fixture
def folder(tmp_path):
  images = tmp_path / "images"
  images.mkdir()
  Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(images / "a.png")
  Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(tmp_path / "outside.png")
  (images / "torn.png").write_bytes((images / "a.png").read_bytes()[:40])
  return tmp_path


def test_what_is_written_is_read_back(folder):
  """Line ends inside an answer, and Unicode's own line ends, do not end a record."""
  path = folder / "c.jsonl"
  conversations.write(path, [GOOD, Conversation("a.png", "Two?\r\n", "No.")])
  source = ConversationSource(path, folder / "images", 0.0)
  assert len(source) == 2 and not source.bad
  user, assistant = source[0]
  image, text = user["content"]
  assert image["image"].size == (6, 4)
  assert text["text"] == GOOD.question
  assert assistant == {"role": "assistant", "content": [{"type": "text", "text": GOOD.answer}]}
  assert source[1][0]["content"][1]["text"] == "Two?\r\n"


def test_a_system_turn_is_written_and_read_before_the_image(folder):
  path = folder / "c.jsonl"
  rows = [GOOD, dataclasses.replace(GOOD, system="Use behavior_left_of: compare.")]
  conversations.write(path, rows)
  assert ["system" in json.loads(line) for line in path.read_text().splitlines()] == [False, True]
  source = ConversationSource(path, folder / "images", 0.0)
  assert [source.conversation(i) for i in range(2)] == rows
  system, *turns = source[1]
  assert system["role"] == "system" and system["content"][0]["text"] == rows[1].system
  assert [turn["role"] for turn in turns] == [turn["role"] for turn in source[0]]
  assert [turn["role"] for turn in SizedSource(source)[1]] == ["system", "user", "assistant"]
  without = ConversationSource(path, folder / "images", 0.0, system_turns=False)
  assert [without.conversation(i) for i in range(2)] == [GOOD, GOOD]


@pytest.mark.parametrize(
  ("line", "reason"),
  [
    ('{"image": "a.png", "question": "Q", "ans', "Unterminated"),
    ('["a.png", "Q", "A"]', "JSON object"),
    ({"answer": "A", "image": "a.png"}, "fields image, question, answer"),
    (
      {"answer": "A", "image": "a.png", "question": "Q", "label": 1},
      "fields image, question, answer",
    ),
    ({"answer": "", "image": "a.png", "question": "Q"}, "answer must be non-empty text"),
    (
      {"answer": "A", "image": "a.png", "question": "Q", "system": ""},
      "system must be non-empty text",
    ),
    ({"answer": "A", "image": "a.png", "question": 3}, "question must be non-empty text"),
    ({"answer": None, "image": 5, "question": "Q"}, "image, answer must be non-empty text"),
    ({"answer": "A", "image": "../outside.png", "question": "Q"}, "leaves the image folder"),
    ({"answer": "A", "image": "/etc/hostname", "question": "Q"}, "leaves the image folder"),
    ({"answer": "A", "image": "b.png", "question": "Q"}, "is not in"),
    ({"answer": "A", "video": "b.mp4", "question": "Q"}, "is not in"),
    ({"answer": "A", "video": "", "question": "Q"}, "video must be non-empty text"),
    (
      {"answer": "A", "image": "a.png", "video": "a.png", "question": "Q"},
      "fields video, question",
    ),
  ],
)
def test_a_broken_line_is_reported_and_skipped(folder, caplog, line, reason):
  good = json.dumps(dict(image="a.png", question="Q", answer="A"))
  path = folder / "c.jsonl"
  path.write_text("\n".join([good, line if isinstance(line, str) else json.dumps(line), "", good]))
  with caplog.at_level(logging.WARNING):
    source = ConversationSource(path, folder / "images", 0.34)
  assert len(source) == 2
  assert [(bad.file, bad.line) for bad in source.bad] == [(str(path), 2)]
  assert reason in source.bad[0].reason and f"{path}:2: " in caplog.text
  with pytest.raises(TooManyBadRecords, match="1 of 3 records"):
    ConversationSource(path, folder / "images", 0.33)


def test_an_unreadable_image_is_named_by_the_line_that_lists_it(folder):
  path = folder / "c.jsonl"
  path.write_text("\n" + json.dumps(dict(image="torn.png", question="Q", answer="A")))
  source = ConversationSource(path, folder / "images", 0.0)
  with pytest.raises(BadRecordError, match=r"c\.jsonl:2: .*torn\.png"):
    source[0]


def test_images_may_come_from_an_archive(folder):
  archive = folder / "images.zip"
  with zipfile.ZipFile(archive, "w") as file:
    file.write(folder / "images" / "a.png", "train2017/a.png")
  conversations.write(folder / "c.jsonl", [GOOD])
  user, _ = ConversationSource(folder / "c.jsonl", archive, 0.0)[0]
  assert user["content"][0]["image"].size == (6, 4)


def _animation(duration=250):
  frames = [Image.fromarray(np.full((40, 60, 3), 20 * n, np.uint8)) for n in range(6)]
  buffer = io.BytesIO()
  frames[0].save(buffer, "webp", save_all=True, append_images=frames[1:], duration=duration)
  return buffer.getvalue()


def test_a_line_may_name_a_video(folder):
  (folder / "images" / "clip.webp").write_bytes(_animation())
  path = folder / "c.jsonl"
  conversations.write(path, [GOOD, Conversation("clip.webp", "Which moves?", "No.", "video")])
  assert json.loads(path.read_text().splitlines()[1])["video"] == "clip.webp"
  source = ConversationSource(path, folder / "images", 0.0)
  part, text = source[1][0]["content"]
  assert part["type"] == "video" and text["text"] == "Which moves?"
  assert part["video"].info == VideoInfo(6, 4.0, 40, 60)
  assert source[0][0]["content"][0]["type"] == "image"
  assert source.questions[1] == ("clip.webp", "Which moves?")


def test_an_unreadable_video_is_named_by_the_line_that_lists_it(folder):
  images = folder / "images"
  (images / "torn.mp4").write_bytes(b"not a video")
  names = ("torn.mp4", "a.png", "late.webp")
  data = _animation()
  (images / "late.webp").write_bytes(data[:-40])
  rows = [json.dumps(dict(video=name, question="Q", answer="A")) for name in names]
  path = folder / "c.jsonl"
  path.write_text("\n".join(rows))
  source = ConversationSource(path, images, 0.0)
  with pytest.raises(BadRecordError, match=r"c\.jsonl:1: cannot read video torn\.mp4: "):
    source[0]
  with pytest.raises(BadRecordError, match=r"c\.jsonl:2: .*a\.png: it is a still image"):
    source[1]
  with pytest.raises(UnreadableImage, match=r"late\.webp"):
    list(source[2][0]["content"][0]["video"].read(range(6)))
