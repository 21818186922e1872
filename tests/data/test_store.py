"""The store: the same examples as its source files, complete or repaired, read by several processes and resumed."""

import json
import pickle
import shutil

import numpy as np
import pytest
from json_changes import replaced
from PIL import Image

from spatial_vlm.config import UsageError
from spatial_vlm.data import store
from spatial_vlm.data.image_files import ImageFiles
from spatial_vlm.data.image_locations import MissingImage, UnusableArchive
from spatial_vlm.data.pipeline import EpochOrder, batches
from spatial_vlm.data.reading import ReadOptions
from spatial_vlm.data.records import BadRecordError, JsonlSource, TooManyBadRecords
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.data.store import Settings, StoreSource, write_store
from spatial_vlm.process_rows import Shard
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.remote import CACHE_VARIABLE

COUNT, SETTINGS = 26, Settings(shards=3, seed=1, max_pixels=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Records with boxes and images, as `spatial-vlm scenes` writes them."""
  folder = tmp_path_factory.mktemp("scenes")
  (folder / "images").mkdir()
  lines, boxes = [], []
  for example in SceneSource("train", 0, COUNT):
    name = example.record.image
    Image.fromarray(example.image).save(folder / "images" / name)
    lines.append(json.dumps(example.record.to_json()))
    boxes.append(json.dumps({"image": name, "boxes": example.boxes}))
  (folder / "train.jsonl").write_text("\n".join(lines))
  (folder / "train.boxes.jsonl").write_text("\n".join(boxes))
  return folder


def source_of(files, **options):
  return JsonlSource(
    files / "train.jsonl", files / "images", files / "train.boxes.jsonl", **options
  )


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
  folder = tmp_path_factory.mktemp("store")
  write_store(folder, "train", source_of(files), SETTINGS)
  return folder


def content(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_store_has_the_examples_of_its_source_in_another_order(files, whole):
  source, store = source_of(files), StoreSource(whole, "train")
  assert len(store) == COUNT and not store.bad
  shards = [f"train-0000{number}-of-00003.array_record" for number in range(3)]
  assert list(content(whole)) == [*shards, "train.json"]
  by_name = {example.record.image: example for example in source}
  names = [store.image_name(index) for index in range(COUNT)]
  assert sorted(names) == sorted(by_name) and names != list(by_name)
  for index, example in enumerate(store):
    expected = by_name[names[index]]
    assert example.id == index
    assert example.record == expected.record and example.boxes == expected.boxes
    np.testing.assert_array_equal(example.image, expected.image)
  for index in (-1, COUNT):
    with pytest.raises(IndexError):
      store[index]


def test_the_order_is_drawn_from_the_seed(files, whole, tmp_path):
  order = list(range(COUNT)), StoreSource(whole, "train")
  same = write_store(tmp_path / "a", "train", source_of(files), SETTINGS)
  other = write_store(tmp_path / "b", "train", source_of(files), SETTINGS._replace(seed=2))
  names = [[s.image_name(i) for i in order[0]] for s in (order[1], same, other)]
  assert names[0] == names[1] != names[2]


def test_images_are_stored_byte_for_byte(files, whole):
  stored = b"".join(content(whole).values())
  for path in (files / "images").iterdir():
    assert path.read_bytes() in stored


def test_a_store_is_a_location_of_images(files, whole, tmp_path):
  images = pickle.loads(pickle.dumps(ImageFiles(f"{tmp_path},{whole / 'train.json'}")))
  for path in (files / "images").iterdir():
    assert images.read(path.name) == images.read(f"train2017/{path.name}") == path.read_bytes()
  from_store = JsonlSource(files / "train.jsonl", whole / "train.json")
  np.testing.assert_array_equal(from_store[3].image, source_of(files)[3].image)
  with pytest.raises(MissingImage, match="'absent.png' is not in .*train.json"):
    images.find("absent.png")
  with pytest.raises(UnusableArchive, match="no complete store of 'test'.*`spatial-vlm data`"):
    JsonlSource(files / "train.jsonl", whole / "test.json")


def test_locations_name_shard_and_position(whole):
  store = StoreSource(whole, "train")
  places = [store.origin(index) for index in range(COUNT)]
  assert places[:2] == [(str(whole / "train-00000-of-00003.array_record"), n) for n in (1, 2)]
  assert places[9] == (str(whole / "train-00001-of-00003.array_record"), 1)
  assert places[-1] == (str(whole / "train-00002-of-00003.array_record"), 8)


def test_large_images_are_reduced_and_keep_their_aspect_ratio(files, tmp_path):
  images = tmp_path / "images"
  images.mkdir()
  line = json.loads((files / "train.jsonl").read_text().splitlines()[0])
  sizes = {"wide.png": (300, 100), "small.png": (100, 40), "line.png": (9000, 1)}
  for name, size in sizes.items():
    Image.new("RGB", size, (200, 90, 10)).save(images / name)
  path = tmp_path / "train.jsonl"
  path.write_text("\n".join(json.dumps({**line, "image": name}) for name in sizes))
  store = write_store(
    tmp_path / "store", "train", JsonlSource(path, images), Settings(1, 0, max_pixels=7500)
  )
  shapes = {example.record.image: example.image.shape for example in store}
  assert shapes == {"wide.png": (50, 150, 3), "small.png": (40, 100, 3), "line.png": (1, 8215, 3)}
  assert all(abs(e.image.astype(int) - (200, 90, 10)).max() < 6 for e in store)


@pytest.mark.parametrize("stop_at", [0, 5, 9, 17, COUNT - 1])
def test_a_stopped_run_resumes_at_its_shard(files, whole, tmp_path, monkeypatch, stop_at):
  encode, encoded = store._Writer._entry, []

  def stopping(self, index):
    if len(encoded) == stop_at:
      raise KeyboardInterrupt
    encoded.append(index)
    return encode(self, index)

  with monkeypatch.context() as patch:
    patch.setattr(store._Writer, "_entry", stopping)
    with pytest.raises(KeyboardInterrupt):
      write_store(tmp_path, "train", source_of(files), SETTINGS)
  with pytest.raises(UsageError, match="holds no complete store of 'train'"):
    StoreSource(tmp_path, "train")
  done, again = [], []
  with monkeypatch.context() as patch:
    patch.setattr(store._Writer, "_entry", lambda self, i: again.append(i) or encode(self, i))
    write_store(tmp_path, "train", source_of(files), SETTINGS, done.append)
  assert content(tmp_path) == content(whole)
  assert sum(done) == COUNT
  kept = {0: 0, 5: 0, 9: 9, 17: 9, COUNT - 1: 18}[stop_at]
  assert len(again) == COUNT - kept and not set(again) & set(encoded[:kept])


@pytest.mark.parametrize(
  "damage", ["half a shard", "a flipped byte", "no shard", "half a manifest"]
)
def test_damaged_shards_are_written_again(files, whole, tmp_path, damage):
  write_store(tmp_path, "train", source_of(files), SETTINGS)
  shard, manifest = tmp_path / "train-00001-of-00003.array_record", tmp_path / "train.json"
  data = shard.read_bytes()
  match damage:
    case "half a shard":
      shard.write_bytes(data[: len(data) // 2])
    case "a flipped byte":
      shard.write_bytes(data[:3000] + bytes([data[3000] ^ 1]) + data[3001:])
    case "no shard":
      shard.unlink()
    case "half a manifest":
      manifest.write_text(manifest.read_text()[:50])
  if damage != "a flipped byte":
    with pytest.raises(
      UsageError, match=r"is missing(, or its size is not|, damaged or of another)"
    ):
      StoreSource(tmp_path, "train")
  write_store(tmp_path, "train", source_of(files), SETTINGS)
  assert content(tmp_path) == content(whole)


def test_a_whole_store_is_not_written_again(files, whole, monkeypatch):
  monkeypatch.setattr(store._Writer, "_write_shard", lambda *_: pytest.fail("written"))
  assert len(write_store(whole, "train", source_of(files), SETTINGS)) == COUNT


def test_other_records_or_settings_make_another_store(files, tmp_path):
  write_store(tmp_path, "train", source_of(files), SETTINGS)
  before = content(tmp_path)
  plain = JsonlSource(files / "train.jsonl", files / "images")
  assert not write_store(tmp_path, "train", plain, SETTINGS)[0].boxes
  assert content(tmp_path) != before
  assert write_store(tmp_path, "train", source_of(files), SETTINGS)[0].boxes
  assert content(tmp_path) == before


ODD = (None, [], {}, -1, "x", 10**30, [None], [["x"]], True)


@pytest.mark.parametrize("place", [(), ("shards",), ("shards", 0), ("bad",), ("format",)])
def test_a_lying_manifest_is_one_error(whole, tmp_path, place):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  written = json.loads((whole / "train.json").read_text())
  fields = [(*place, name) for name in ("images", "bytes", "sha256")] if place[-1:] == (0,) else []
  for where in [place, *fields]:
    for new in ODD:
      if (where, new) in ((("bad",), []), (("format",), True)):
        continue  # as written, or equal to it
      (tmp_path / "train.json").write_text(json.dumps(replaced(written, where, new)))
      try:
        StoreSource(tmp_path, "train")
      except UsageError as error:
        assert str(tmp_path) in str(error)
      else:
        assert where[-1] in ("images", "sha256"), (where, new)  # wrong values of the right type


def test_more_entries_than_a_shard_holds_are_one_error(whole, tmp_path):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  manifest = json.loads((whole / "train.json").read_text())
  manifest["shards"][0]["images"] *= 50
  (tmp_path / "train.json").write_text(json.dumps(manifest))
  with pytest.raises((UsageError, BadRecordError), match=r"train"):
    StoreSource(tmp_path, "train")[100]


def test_a_damaged_entry_is_one_bad_record(files, tmp_path):
  store = write_store(tmp_path, "train", source_of(files), SETTINGS)
  shard = tmp_path / "train-00000-of-00003.array_record"
  data = bytearray(shard.read_bytes())
  data[data.index(store.image_name(2).encode())] ^= 1
  shard.write_bytes(data)
  store = StoreSource(tmp_path, "train")
  assert store[1].id == 1 and store[3].id == 3
  with pytest.raises(UnreadableImage, match="train.json/train_.*damaged entry"):
    ImageFiles(tmp_path / "train.json").open(store.image_name(2))
  with pytest.raises(BadRecordError, match="damaged entry") as caught:
    store[2]
  assert (caught.value.bad.file, caught.value.bad.line) == (str(shard), 3)


def test_unreadable_images_are_skipped_and_listed(files, tmp_path):
  images = tmp_path / "images"
  images.mkdir()
  for path in (files / "images").iterdir():
    (images / path.name).write_bytes(path.read_bytes())
  broken = images / "train_000004.png"
  broken.write_bytes(broken.read_bytes()[:60])
  source = JsonlSource(files / "train.jsonl", images, max_bad_share=0.04)
  store = write_store(tmp_path / "store", "train", source, SETTINGS)
  (bad,) = store.bad
  assert (bad.file, bad.line) == (str(files / "train.jsonl"), 5) and "train_000004" in bad.reason
  assert len(store) == COUNT - 1 == len(list(store))
  source.max_bad_share = 0.03
  with pytest.raises(TooManyBadRecords, match="1 of 26 records"):
    write_store(tmp_path / "strict", "train", source, SETTINGS)


def test_more_shards_than_records_are_allowed(files, tmp_path):
  store = write_store(tmp_path, "train", source_of(files), Settings(COUNT + 2, 0, 0))
  assert len(list(store)) == COUNT
  assert store.origin(COUNT - 1)[1] == 1


def test_settings_out_of_range_are_refused(files, tmp_path):
  for settings in (Settings(0, 0, 0), Settings(1, -1, 0), Settings(1, 0, -1)):
    with pytest.raises(ValueError, match="1 to 99999 shards"):
      write_store(tmp_path, "train", source_of(files), settings)
  with pytest.raises(UsageError, match="local disk"):
    write_store("gs://bucket/store", "train", source_of(files), SETTINGS)


def stream(store, shuffle=True, **options):
  return batches(
    store,
    lambda example: example.record.image,
    list,
    EpochOrder(4, 0, epochs=2, shuffle=shuffle),
    ReadOptions(**options),
  )


@pytest.mark.parametrize("shuffle", [True, False])
def test_two_hosts_read_each_record_once_an_epoch(whole, shuffle):
  hosts = [
    list(stream(StoreSource(whole, "train"), shard=Shard((index,), 2), shuffle=shuffle))
    for index in range(2)
  ]
  together = [name for pair in zip(*hosts, strict=True) for batch in pair for name in batch]
  assert len(together) == 2 * COUNT
  store = StoreSource(whole, "train")
  names = [store.image_name(index) for index in range(COUNT)]
  for epoch in (together[:COUNT], together[COUNT:]):
    assert sorted(epoch) == sorted(names)
    assert (epoch == names) == (not shuffle)
  assert not {*hosts[0][0]} & {*hosts[1][0]}


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_a_store_resumes_exactly(whole, workers):
  options = {"shard": Shard((1,), 2), "workers": workers}
  iterator = stream(StoreSource(whole, "train"), **options)
  states, expected = [iterator.get_state()], []
  for batch in iterator:
    expected.append(batch)
    states.append(json.loads(json.dumps(iterator.get_state())))
  assert len(expected) == EpochOrder(4, 0, epochs=2).num_batches(COUNT)
  for position in (0, 1, 6, len(expected)):
    resumed = stream(StoreSource(whole, "train"), **options)
    resumed.set_state(states[position])
    assert list(resumed) == expected[position:]


def test_a_remote_store_is_copied_once_and_reads_the_same(
  whole, gcs_folder, tmp_path, monkeypatch, capfd
):
  monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
  address = gcs_folder[1].upload(whole, gcs_folder[0])
  local, remote = StoreSource(whole, "train"), StoreSource(address, "train")
  assert "copying train-00002-of-00003.array_record: 131kB/131kB" in capfd.readouterr().err
  for expected, found in zip(local, remote, strict=True):
    assert found.record == expected.record and found.boxes == expected.boxes
    np.testing.assert_array_equal(found.image, expected.image)
  images, name = ImageFiles(f"{address}/train.json"), local.image_name(5)
  assert images.read(name) == ImageFiles(whole / "train.json").read(name)
  assert "copying" not in capfd.readouterr().err
  gcs_folder[1].files.rm(f"{address}/train-00001-of-00003.array_record")
  with pytest.raises(UsageError, match="train-00001-of-00003.array_record is missing"):
    StoreSource(address, "train")
