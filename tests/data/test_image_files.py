"""Images from folders, tars and zips: the same bytes from each, and no path outside them."""

import io
import os
import pickle
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from spatial_vlm.config import UsageError
from spatial_vlm.data import image_locations
from spatial_vlm.data.image_files import ImageFiles
from spatial_vlm.data.image_locations import MissingImage, UnusableArchive
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.remote import CACHE_VARIABLE

NAMES = ("train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg", "top.png")


@pytest.fixture
def folder(tmp_path):
  """COCO's layout on a disk: images in sub-folders, and one next to them."""
  root = tmp_path / "coco"
  for number, name in enumerate(NAMES):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6 + number, 3), 60 * number, np.uint8)).save(root / name)
  return root


def tar_of(folder):
  path = folder.parent / "coco.tar"
  with tarfile.open(path, "w") as archive:
    archive.add(folder, arcname=".")
  return path


def zip_of(folder, method=zipfile.ZIP_STORED, name="coco.zip"):
  path = folder.parent / name
  with zipfile.ZipFile(path, "w", method) as archive:
    for file in sorted(folder.rglob("*")):
      archive.write(file, file.relative_to(folder))
  return path


@pytest.fixture
def places(folder):
  deflated = zip_of(folder, zipfile.ZIP_DEFLATED, "deflated.zip")
  return {"folder": folder, "tar": tar_of(folder), "zip": zip_of(folder), "deflated": deflated}


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "deflated"])
def test_folders_tars_and_zips_give_the_same_bytes(places, folder, kind):
  images = ImageFiles(places[kind])
  for number, name in enumerate(NAMES):
    assert images.read(name) == (folder / name).read_bytes()
    assert images.read(os.path.basename(name)) == (folder / name).read_bytes()
    assert images.open(name).size == (6 + number, 4)
  assert images.read("coco/train2017/1.jpg") == (folder / NAMES[0]).read_bytes()
  assert "top.png" in images and "4.jpg" not in images
  assert "elsewhere/1.jpg" not in images, "a name with a folder means that folder"
  for name in ("train2017", "4.jpg", "val2017/1.jpg"):
    with pytest.raises(MissingImage, match="is not in"):
      images.read(name)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_names_outside_the_root_are_refused(places, kind):
  images = ImageFiles(places[kind])
  for name in ("../top.png", "/etc/hostname", "val2017/../../top.png", "..\\top.png", "", "a\0"):
    with pytest.raises(MissingImage, match="leaves the image folder"):
      images.find(name)
  with pytest.raises(MissingImage, match="surrogates"):
    images.find("\ud800.png")


def test_a_name_shared_by_two_files_is_an_error_that_names_both(folder):
  (folder / "val2017" / "1.jpg").write_bytes(b"another")
  for place in (folder, tar_of(folder), zip_of(folder)):
    images = ImageFiles(place)
    with pytest.raises(MissingImage, match="'train2017/1.jpg' or 'val2017/1.jpg'"):
      images.read("1.jpg")
    assert images.read("val2017/1.jpg") == b"another"


def test_the_first_location_with_the_name_counts(folder, tmp_path):
  other = tmp_path / "other"
  other.mkdir()
  (other / "top.png").write_bytes(b"other")
  archive = zip_of(folder)
  for places in ((other, archive), f"{other}, {archive}"):
    images = ImageFiles(places)
    assert images.read("top.png") == b"other"
    assert images.read("3.jpg") == (folder / "val2017" / "3.jpg").read_bytes()
    with pytest.raises(MissingImage, match=r"is not in .*other, .*coco\.zip"):
      images.read("absent.jpg")


def test_a_comma_in_the_name_of_a_folder_is_part_of_it(tmp_path, folder):
  odd = folder.rename(tmp_path / "coco, 2017")
  assert "top.png" in ImageFiles(str(odd))


def test_threads_and_copies_read_their_own_files(places, folder):
  for kind in ("folder", "tar", "zip"):
    images = ImageFiles(places[kind])
    copy = pickle.loads(pickle.dumps(images))
    names = [name for name in NAMES for _ in range(50)]
    with ThreadPoolExecutor(8) as threads:
      found = list(threads.map(images.read, names))
    assert found == [(folder / name).read_bytes() for name in names]
    assert pickle.loads(pickle.dumps(images)).read("1.jpg") == copy.read("1.jpg") == found[0]


def test_no_file_stays_open(places):
  """Forked processes would share its position."""
  before = os.listdir("/proc/self/fd")
  for kind in ("folder", "tar", "zip"):
    images = ImageFiles(places[kind])
    images.read("1.jpg")
    assert len(os.listdir("/proc/self/fd")) == len(before), kind


def test_a_malicious_tar_gives_only_its_own_regular_files(tmp_path):
  secret = tmp_path / "secret.png"
  secret.write_bytes(b"secret")
  path = tmp_path / "evil.tar"
  with tarfile.open(path, "w") as archive:

    def add(name, kind=tarfile.REGTYPE, link="", content=b"inside"):
      info = tarfile.TarInfo(name)
      info.type, info.linkname, info.size = kind, link, len(content)
      archive.addfile(info, io.BytesIO(content))

    add("symbolic.png", tarfile.SYMTYPE, str(secret), b"")
    add("hard.png", tarfile.LNKTYPE, "../secret.png", b"")
    add("device.png", tarfile.CHRTYPE, content=b"")
    add("fifo.png", tarfile.FIFOTYPE, content=b"")
    add(str(secret))
    add("../secret.png")
    add("a/../b/up.png")
    add("./x//good.png")
  images = ImageFiles(path)
  assert images.read("x/good.png") == b"inside"
  for name in ("symbolic", "hard", "device", "fifo", "secret", "up", "a/up", "b/up"):
    assert f"{name}.png" not in images, name


def test_a_malicious_zip_gives_only_its_own_regular_files(tmp_path):
  path = tmp_path / "evil.zip"
  with zipfile.ZipFile(path, "w") as archive:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (0o120777) << 16
    archive.writestr(link, "/etc/hostname")
    for name in ("/etc/absolute.png", "../up.png", "windows\\..\\up2.png", "good.png"):
      archive.writestr(name, "inside")
    archive.writestr("bomb.png", bytes(1 << 29), zipfile.ZIP_DEFLATED)
  images = ImageFiles(path)
  assert images.read("good.png") == b"inside"
  for name in ("link", "absolute", "etc/absolute", "up", "up2"):
    assert f"{name}.png" not in images, name
  with pytest.raises(UnreadableImage, match="an image may have at most"):
    images.read("bomb.png")


def test_a_link_out_of_a_folder_is_refused_at_any_depth(folder, tmp_path):
  outside = tmp_path / "outside"
  outside.mkdir()
  (outside / "9.jpg").write_bytes(b"outside")
  (folder / "link.jpg").symlink_to(outside / "9.jpg")
  (folder / "test2017").symlink_to(outside)
  (folder / "alias.jpg").symlink_to(folder / "top.png")
  for name in ("link.jpg", "9.jpg", "test2017/9.jpg"):
    with pytest.raises(MissingImage, match="through a link"):
      ImageFiles(folder).read(name)
  assert ImageFiles(folder).read("alias.jpg") == (folder / "top.png").read_bytes()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_an_archive_that_is_cut_off_is_a_clear_error(folder, make, kept):
  path = make(folder)
  content = path.read_bytes().rstrip(b"\0")  # a tar is padded
  path.write_bytes(content[: int(kept * len(content))])
  with pytest.raises(UnusableArchive, match=rf"{path.name} cannot be read .*copy it again"):
    ImageFiles(path).find("1.jpg")


def test_a_tar_cut_between_two_members_is_noticed(folder):
  path = tar_of(folder)
  with tarfile.open(path) as archive:
    last = archive.getmembers()[-1]
  path.write_bytes(path.read_bytes()[: last.offset])
  with pytest.raises(UnusableArchive, match="its end is missing"):
    ImageFiles(path).find("1.jpg")


def test_a_damaged_header_in_the_middle_of_a_tar_is_noticed(folder):
  path = tar_of(folder)
  with tarfile.open(path) as archive:
    middle = archive.getmembers()[3]
  content = bytearray(path.read_bytes())
  content[middle.offset + 100] ^= 1
  path.write_bytes(content)
  with pytest.raises(UnusableArchive, match=f"damaged header at byte {middle.offset}"):
    ImageFiles(path).find("1.jpg")


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_an_archive_truncated_while_read_loses_only_the_missing_images(folder, make):
  path = make(folder)
  images = ImageFiles(path)
  images.find("1.jpg")
  os.truncate(path, 20)
  with pytest.raises(UnreadableImage, match="the archive ends within it"):
    images.read("1.jpg")


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused_with_the_remedy(folder, packing):
  for name in (f"coco.tar.{packing}", "renamed.tar"):
    path = folder.parent / name
    with tarfile.open(path, f"w:{packing}") as archive:
      archive.add(folder, arcname=".")
    with pytest.raises(UnusableArchive, match=r"unpack it to a folder or a plain \.tar, or make"):
      ImageFiles(path).find("1.jpg")


def test_damage_within_an_archive_affects_one_image(folder):
  for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    path = zip_of(folder, method)
    with zipfile.ZipFile(path) as archive:
      info = archive.getinfo("train2017/1.jpg")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + 20] ^= 255
    path.write_bytes(content)
    images = ImageFiles(path)
    with pytest.raises(UnreadableImage, match="damaged"):
      images.read("1.jpg")
    with pytest.raises(UnreadableImage, match=r"cannot read image .*coco.zip/train2017/1.jpg: .*"):
      images.open("1.jpg")
    assert images.open("2.jpg").size == (7, 4)


def test_a_method_of_compression_that_is_not_read_is_named(folder):
  with pytest.raises(UnreadableImage, match="compressed by method 14; make a zip that"):
    ImageFiles(zip_of(folder, zipfile.ZIP_LZMA)).read("1.jpg")


def test_a_missing_or_truncated_image_is_named(folder):
  images = ImageFiles(folder)
  images.find("1.jpg")
  (folder / "train2017" / "1.jpg").unlink()
  with pytest.raises(UnreadableImage, match=r"train2017/1\.jpg: No such file"):
    images.open("1.jpg")
  (folder / "top.png").write_bytes((folder / "top.png").read_bytes()[:40])
  with pytest.raises(UnreadableImage, match=r"cannot read image .*/coco/top\.png: "):
    images.open("top.png")


def test_locations_that_are_neither_folder_nor_archive_are_refused(folder, tmp_path):
  (tmp_path / "notes.txt").write_text("no images")
  with pytest.raises(UsageError, match="not a folder, a .tar, a .zip or the .json of a store"):
    ImageFiles(tmp_path / "notes.txt")
  with pytest.raises(UnusableArchive, match="absent.zip cannot be read .*No such file"):
    ImageFiles(tmp_path / "absent.zip").find("1.jpg")
  with pytest.raises(MissingImage, match="'1.jpg' is not in .*/nowhere"):
    ImageFiles(tmp_path / "nowhere").find("1.jpg")


@pytest.fixture
def remote_places(places, gcs_folder, tmp_path, monkeypatch):
  monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
  address, store = gcs_folder
  names = {kind: f"{address}/{path.name}" for kind, path in places.items()}
  return {kind: store.upload(path, names[kind]) for kind, path in places.items()}


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "deflated"])
def test_remote_folders_tars_and_zips_give_the_same_bytes(remote_places, folder, kind, tmp_path):
  images = pickle.loads(pickle.dumps(ImageFiles(remote_places[kind])))
  for number, name in enumerate(NAMES):
    assert images.read(name) == (folder / name).read_bytes()
    assert images.read(os.path.basename(name)) == (folder / name).read_bytes()
    assert images.open(name).size == (6 + number, 4)
  for name in ("train2017", "4.jpg", "val2017/1.jpg"):
    with pytest.raises(MissingImage, match="is not in gs://"):
      images.read(name)
  assert (tmp_path / "cache").exists() == (kind != "folder"), "images of folders are streamed"


def test_a_remote_folder_is_listed_once(remote_places, monkeypatch):
  calls, listed = [], image_locations.list_files
  monkeypatch.setattr(
    image_locations, "list_files", lambda folder: calls.append(folder) or listed(folder)
  )
  images = ImageFiles(remote_places["folder"])
  assert all(name in images for name in NAMES) and "4.jpg" not in images
  assert calls == [remote_places["folder"]]


def test_a_missing_remote_image_or_archive_is_named(remote_places, gcs_folder):
  images = ImageFiles(remote_places["folder"])
  images.find("top.png")
  gcs_folder[1].files.rm(f"{remote_places['folder']}/top.png")
  with pytest.raises(UnreadableImage, match=r"gs://.*top\.png"):
    images.read("top.png")
  with pytest.raises(UnusableArchive, match=r"none\.zip cannot be read"):
    ImageFiles(f"{gcs_folder[0]}/none.zip").find("top.png")


def test_a_zip_of_a_version_to_come_is_named(tmp_path):
  path = tmp_path / "new.zip"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a.png", b"a")
  data = bytearray(path.read_bytes())
  data[data.index(b"PK\x01\x02") + 6] = 99  # the version that is needed to extract
  path.write_bytes(data)
  with pytest.raises(UnusableArchive, match=r"new\.zip cannot be read .*version"):
    ImageFiles(path).open("a.png")
