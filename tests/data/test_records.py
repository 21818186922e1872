"""Reading VSR's records: what is refused, how it is counted, and the real files."""

import json
import logging
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatial_vlm.data.image_locations import UnusableArchive
from spatial_vlm.data.records import (
  BadRecordError,
  JsonlSource,
  NoImageFound,
  Take,
  TooManyBadRecords,
  read_boxes,
  read_records,
)
from spatial_vlm.data.relations import META_CATEGORY

VSR = Path(__file__).parents[2].parent / "shared" / "vsr"

GOOD = {
  "image": "a.png",
  "image_link": "http://example.org/a.png",
  "caption": "The cat is left of the mug.",
  "label": 1,
  "relation": "left of",
  "annotator_id": 7,
  "vote_true_validator_id": "[2, 10]",
  "vote_false_validator_id": "[]",
}


@pytest.fixture
def folder(tmp_path):
  images = tmp_path / "images"
  (images / "sub").mkdir(parents=True)
  for place in (images / "a.png", images / "sub" / "b.png", tmp_path / "outside.png"):
    Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(place)
  (images / "link.png").symlink_to(tmp_path / "outside.png")
  (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:40])
  return images


def write(folder, *lines):
  path = folder.parent / "records.jsonl"
  encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
  path.write_bytes(b"\n".join(encoded) + b"\n")
  return path


def changed(**fields):
  return {**GOOD, **fields}


@pytest.mark.parametrize(
  ("line", "reason"),
  [
    (b'{"image": "a.png", ', "Expecting"),
    (b"\xff\xfe{}", "decode"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"label": 1, "label": 0}', "the key 'label' is given twice"),
    (changed(caption="\ud83d cat"), "surrogates not allowed"),
    (changed(vote_true_validator_id="[" * 100_000), "nested too deeply"),
    ([GOOD], "JSON object.*list"),
    (changed(colour="red"), r"unknown fields \['colour'\].*known are"),
    ({k: v for k, v in GOOD.items() if k != "relation"}, r"missing fields \['relation'\]"),
    (changed(label=2), "label is 2; allowed are 0 and 1"),
    (changed(label=-1), "label is -1"),
    (changed(label=True), "label is True"),
    (changed(label="1"), "label is '1'"),
    (changed(label=1.0), "label is 1.0"),
    (changed(label=None), "label is None"),
    (changed(caption=5), "caption is 5"),
    (changed(annotator_id="7"), "annotator_id"),
    (changed(vote_true_validator_id="[2,"), "Expecting"),
    (changed(vote_true_validator_id="{}"), "vote_true_validator_id"),
    (changed(vote_false_validator_id=["x"]), "vote_false_validator_id"),
    (changed(subj=4), "subj is 4"),
    (changed(reference_frame="1"), "reference_frame"),
    (changed(image="missing.png"), "'missing.png' is not in"),
    (changed(image="sub"), "'sub' is not in"),
    (changed(image=""), "leaves the image folder"),
    (changed(image="../outside.png"), "leaves the image folder"),
    (changed(image="sub/../../outside.png"), "leaves the image folder"),
    (changed(image="..\\outside.png"), "leaves the image folder"),
    (changed(image="/etc/hostname"), "leaves the image folder"),
    (changed(image="link.png"), "through a link"),
    (changed(image="a.png\0"), "leaves the image folder"),
    (changed(image="x" * 5000 + ".png"), "is not in"),
    (changed(image="\ud800.png"), "surrogates|is not in"),
  ],
)
def test_a_bad_record_is_skipped_and_reported_with_file_and_line(folder, caplog, line, reason):
  path = write(folder, GOOD, b"", line, changed(image="sub/b.png", label=0))
  with caplog.at_level(logging.WARNING, "spatial_vlm"):
    records, (bad,) = read_records(path, folder, max_bad_share=0.5)
  assert [record.image for record in records] == ["a.png", "sub/b.png"]
  assert (bad.file, bad.line) == (str(path), 3)
  assert re.search(reason, bad.reason), bad.reason
  assert f"{path}:3" in caplog.text


def test_a_byte_order_mark_costs_no_record(folder):
  path = write(folder, GOOD, GOOD)
  path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
  records, bad = read_records(path, folder)
  assert (len(records), bad) == (2, [])


def test_messages_are_short_and_send_nothing_to_the_terminal(folder, caplog):
  with caplog.at_level(logging.WARNING, "spatial_vlm"):
    read_records(write(folder, GOOD, changed(label="\x1b[31m" + 10**6 * "9")), folder, 0.5)
  (message,) = caplog.messages
  assert len(message) < 500 and "\x1b" not in message


def test_too_many_bad_records_stop_the_reading(folder):
  path = write(folder, *[GOOD] * 6, *[changed(label=3)] * 4)
  assert len(read_records(path, folder, max_bad_share=0.4)[1]) == 4
  with pytest.raises(
    TooManyBadRecords, match=r"(?s)4 of 10 records \(40.0%\).*39.0%.*:7: label is 3"
  ):
    read_records(path, folder, max_bad_share=0.39)
  with pytest.raises(TooManyBadRecords):
    JsonlSource(path, folder, max_bad_share=0.0)
  with pytest.raises(ValueError, match="max_bad_share is 40"):
    read_records(path, folder, max_bad_share=40)


def test_a_file_without_records_is_an_error(folder):
  with pytest.raises(ValueError, match="holds no record"):
    read_records(write(folder, b"", b"  "), folder)


def test_both_styles_of_votes_and_frames_are_read(folder):
  raw = changed(
    vote_true_validator_id=[2, 10], vote_false_validator_id=[], reference_frame=float("nan")
  )
  path = write(folder, changed(reference_frame=1.0), raw, changed(subj="cat", obj=None))
  (framed, unframed, named), bad = read_records(path, folder)
  assert not bad
  assert framed.reference_frame == 1.0 and unframed.reference_frame is None
  assert framed.vote_true_validator_id == unframed.vote_true_validator_id == "[2, 10]"
  assert unframed.to_json() == GOOD
  assert named.to_json() == changed(subj="cat")


def test_source_yields_examples_with_known_boxes(folder):
  path = write(folder, changed(image="sub/b.png"), changed(label=5), GOOD)
  boxes = folder.parent / "boxes.jsonl"
  boxes.write_text('{"image": "a.png", "boxes": {"cat": [0, 20, 40, 60]}}\n')
  source = JsonlSource(path, folder, boxes, max_bad_share=0.5)
  assert len(source) == 2 and len(source.bad) == 1
  first, second = source
  assert first.boxes == {} and second.boxes == {"cat": (0, 20, 40, 60)}
  assert second.image.shape == (4, 6, 3) and second.image.dtype == np.uint8
  assert (first.id, second.id) == (0, 1)


def test_an_unreadable_image_is_reported_with_file_and_line(folder):
  path = write(folder, GOOD, changed(image="broken.png"))
  source = JsonlSource(path, folder)
  assert source[0].record.image == "a.png"
  with pytest.raises(BadRecordError, match="broken.png") as caught:
    source[1]
  assert (caught.value.bad.file, caught.value.bad.line) == (str(path), 2)


def test_a_wrong_image_folder_is_one_error(folder, tmp_path, caplog):
  path = write(folder, *[GOOD] * 40, changed(label=7))
  wrong = tmp_path / "other"
  wrong.mkdir()
  with pytest.raises(
    NoImageFound,
    match=rf"{path}: none of 40 records has its image; .*:1: .*'a.png' is not in {wrong}",
  ):
    read_records(path, wrong, max_bad_share=1.0)
  assert not [message for message in caplog.messages if "a.png" in message]


def test_missing_images_are_counted_in_one_line(folder, caplog):
  missing = [changed(image=f"{n}.png") for n in range(5)]
  with caplog.at_level(logging.WARNING, "spatial_vlm"):
    records, bad = read_records(write(folder, GOOD, *missing), folder, max_bad_share=0.9)
  assert (len(records), len(bad)) == (1, 5)
  (message,) = caplog.messages
  assert message.startswith("skipped 5 records without their image: ")
  assert "'0.png'" in message and "'2.png'" in message and "'3.png'" not in message


def test_images_come_from_archives_as_well_as_from_folders(folder):
  path = write(folder, GOOD, changed(image="train2017/b.png"), changed(image="absent.png"))
  archive = folder.parent / "images.zip"
  with zipfile.ZipFile(archive, "w") as file:
    file.write(folder / "sub" / "b.png", "train2017/b.png")
  for images in (f"{folder},{archive}", (folder, archive), [archive, str(folder)]):
    source = JsonlSource(path, images, max_bad_share=0.5)
    assert [example.record.image for example in source] == ["a.png", "train2017/b.png"]
    (bad,) = source.bad
    assert (
      bad.line == 3
      and f"is not in {', '.join(map(str, source.image_files.locations))}" in bad.reason
    )


def test_a_damaged_archive_is_an_error_of_its_own_and_not_of_every_record(folder):
  archive = folder.parent / "images.zip"
  archive.write_bytes(b"PK and no more")
  with pytest.raises(UnusableArchive, match="images.zip cannot be read"):
    read_records(write(folder, GOOD, GOOD), archive, max_bad_share=1.0)


@pytest.mark.skipif(not VSR.is_dir(), reason=f"the annotations of VSR are not in {VSR}")
@pytest.mark.parametrize(
  ("file", "count"),
  [("random/train", 7680), ("random/dev", 1097), ("zeroshot/train", 3489), ("zeroshot/dev", 340)],
)
def test_vsr_itself_is_read_without_loss(tmp_path, file, count):
  path = VSR / f"{file}.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for line in lines:
    (tmp_path / line["image"]).touch()
  records, bad = read_records(path, tmp_path, max_bad_share=0)
  assert len(records) == count and not bad
  given = [{k: v for k, v in line.items() if v is not None} for line in lines]
  assert [record.to_json() for record in records] == given
  assert {record.relation for record in records} <= META_CATEGORY.keys()


@pytest.mark.parametrize(
  "line",
  [
    b'{"image": "a.png", "boxes": {"cat": [0, 20, 40]}}',
    b'{"image": "a.png", "boxes": {"cat": [0, 20, 40, 1060]}}',
    b'{"image": "a.png", "boxes": {"cat": [40, 20, 40, 60]}}',
    b'{"image": "a.png", "boxes": {"cat": "left"}}',
    b'{"image": "a.png", "boxes": 3}',
    b'{"image": "a.png"}',
    b'{"image": "a.p',
    b"[]",
  ],
)
def test_a_broken_file_of_boxes_is_named_with_its_line(tmp_path, line):
  path = tmp_path / "boxes.jsonl"
  path.write_bytes(b'{"image": "b.png", "boxes": {}}\n' + line + b"\n")
  with pytest.raises(ValueError, match="boxes.jsonl:2: no image with named boxes"):
    read_boxes(path)


def test_a_negative_limit_is_refused():
  with pytest.raises(ValueError, match="limit is -5"):
    Take([], -5)
