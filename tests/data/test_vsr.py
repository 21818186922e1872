"""VSR as published: every form of its files, and its sizes."""

import json
from pathlib import Path

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.data import vsr
from spatial_vlm.data.records import Record
from spatial_vlm.data.vsr import PUBLISHED, Counts, check_published_sizes, read_files, read_split

VSR = Path(__file__).parents[2].parent / "shared" / "vsr"
needs_vsr = pytest.mark.skipif(not VSR.is_dir(), reason=f"the annotations of VSR are not in {VSR}")

ROW = {
  "image": "000000296471.jpg",
  "image_link": "http://images.cocodataset.org/train2017/000000296471.jpg",
  "caption": "The cat is inside the refrigerator.",
  "label": 0,
  "relation": "inside",
  "annotator_id": 27,
  "vote_true_validator_id": "[20]",
  "vote_false_validator_id": "[1, 2]",
  "reference_frame": None,
}


def lines(*rows):
  return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["dev.jsonl", "validation.jsonl"])
def test_a_folder_of_jsonl_is_read(tmp_path, name):
  (tmp_path / name).write_text(lines(ROW, {**ROW, "label": 1}))
  split = read_split(tmp_path, "dev")
  assert [(e.file, e.line, e.record.label) for e in split.listed] == [
    (str(tmp_path / name), 1, 0),
    (str(tmp_path / name), 2, 1),
  ]
  assert split.records == [e.record for e in split.listed] and not split.bad
  assert read_split(tmp_path, "validation") == split


def test_both_spellings_of_the_votes_count_the_same(tmp_path):
  listed = {**ROW, "vote_true_validator_id": [20], "vote_false_validator_id": [1, 2]}
  (tmp_path / "train.jsonl").write_text(lines(ROW, listed, {**ROW, "label": 1}))
  as_text, as_list, other_label = read_split(tmp_path, "train").records
  assert as_text == as_list and as_text.votes == (1, 2)
  assert as_text.agreement == pytest.approx(2 / 3)
  assert other_label.agreement == pytest.approx(1 / 3)
  assert as_text.category == "Topological"


def test_without_votes_there_is_no_agreement():
  nothing = {"vote_true_validator_id": "[]", "vote_false_validator_id": "[]"}
  record = Record(**{**ROW, **nothing, "relation": "astride"})
  assert record.votes == (0, 0) and record.agreement is None
  assert record.category == "Unallocated"


@pytest.mark.parametrize(
  "places",
  [
    ["data/validation-00000-of-00002.parquet", "data/validation-00001-of-00002.parquet"],
    ["default/validation/0000.parquet", "default/validation/0001.parquet"],
    ["validation/0000.parquet", "validation/0001.parquet"],
    ["dev-0.parquet", "dev-1.parquet"],
  ],
)
def test_a_folder_of_parquet_is_read(tmp_path, places):
  pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
  parquet = pytest.importorskip("pyarrow.parquet")
  rows = [[ROW, {**ROW, "label": 2}], [{**ROW, "reference_frame": 1.0, "label": 1}]]
  for place, part in zip(places, rows, strict=True):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(part), tmp_path / place)
  split = read_split(tmp_path, "dev")
  assert split.records == [Record(**ROW), Record(**{**ROW, "reference_frame": 1.0, "label": 1})]
  assert [(e.file, e.line) for e in split.listed] == [(str(tmp_path / p), 1) for p in places]
  (bad,) = split.bad
  assert (bad.file, bad.line) == (str(tmp_path / places[0]), 2) and "label is 2" in bad.reason


def test_damaged_parquet_is_a_clear_error(tmp_path):
  pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
  (tmp_path / "test.parquet").write_bytes(b"PAR1 and no more")
  with pytest.raises(UsageError, match=r"test\.parquet cannot be read as Parquet .*copy it again"):
    read_split(tmp_path, "test")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
  (tmp_path / "test.parquet").write_bytes(b"")
  with pytest.raises(UsageError, match=r"pip install .*\[parquet\]"):
    read_split(tmp_path, "test")


def test_a_broken_line_is_listed_with_its_place(tmp_path):
  path = tmp_path / "test.jsonl"
  path.write_text(lines(ROW) + '{"image": \n' + lines({**ROW, "label": 7}))
  split = read_split(tmp_path, "test")
  assert len(split.listed) == 1
  assert [(b.file, b.line) for b in split.bad] == [(str(path), 2), (str(path), 3)]


def test_a_missing_split_is_an_error_with_what_was_looked_for(tmp_path):
  with pytest.raises(UsageError, match=r"no split 'dev'.*dev\.jsonl.*data/validation-\*\.parquet"):
    read_split(tmp_path, "dev")


def records(count, images, relations):
  return [
    Record(**{**ROW, "image": f"{i % images}.jpg", "relation": f"r{i % relations}"})
    for i in range(count)
  ]


def test_other_sizes_than_the_published_ones_are_refused():
  whole = {split: records(*counts) for split, counts in PUBLISHED["zeroshot"].items()}
  check_published_sizes("zeroshot", whole)
  fewer = {**whole, "test": whole["test"][:-1]}
  message = r"test: 1221 records, 715 images, 53 relations; published are 1222 records, 715 images"
  with pytest.raises(UsageError, match=message) as caught:
    check_published_sizes("zeroshot", fewer)
  assert "train:" not in str(caught.value) and "allow_subset" in str(caught.value)
  check_published_sizes("zeroshot", fewer, allow_subset=True)
  more = {"dev": records(340, 228, 40)}
  with pytest.raises(UsageError, match=r"dev: 340 records, 228 images.*published are .* 227"):
    check_published_sizes("zeroshot", more, allow_subset=True)
  with pytest.raises(UsageError, match="not VSR's random split"):
    check_published_sizes("random", whole)
  with pytest.raises(UsageError, match="only random, zeroshot"):
    check_published_sizes("other", whole)
  with pytest.raises(UsageError, match="no split 'validation', only train, dev, test"):
    check_published_sizes("random", {"validation": whole["dev"]})


@needs_vsr
@pytest.mark.parametrize("name", ["random", "zeroshot"])
def test_vsr_itself_has_the_published_sizes(name):
  splits = {}
  for split in ("train", "dev"):
    read = read_split(VSR / name, split)
    assert not read.bad
    splits[split] = read.records
    assert Counts.of(read.records) == PUBLISHED[name][split]
    assert all(record.agreement >= 0.5 for record in read.records)
  check_published_sizes(name, splits)
  check_published_sizes(name, {"dev": splits["dev"][:50]}, allow_subset=True)


@needs_vsr
def test_parquet_made_of_vsr_equals_its_jsonl(tmp_path):
  pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
  parquet = pytest.importorskip("pyarrow.parquet")
  rows = [json.loads(line) for line in (VSR / "zeroshot/dev.jsonl").read_text().splitlines()]
  path = tmp_path / "data" / "validation-00000-of-00001.parquet"
  path.parent.mkdir()
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  assert read_split(tmp_path, "dev").records == read_split(VSR / "zeroshot", "dev").records


def test_files_are_read_as_one_split(tmp_path):
  for name in ("a.jsonl", "b.jsonl"):
    (tmp_path / name).write_text(lines(ROW))
  assert len(read_files([vsr.epath.Path(tmp_path / n) for n in ("a.jsonl", "b.jsonl")]).listed) == 2
