import dataclasses
import io
import json
import os

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from transformers import vision_utils
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from spatial_vlm.processor.image import (
  ImageSettings,
  UnreadableImage,
  open_image,
  patchify,
  smart_resize,
  vision_rows,
)
from spatial_vlm.processor.tiny_tokenizer import TINY_IMAGES

SETTINGS = {
  "tiny": TINY_IMAGES,
  "8b": ImageSettings(16, 2, 2, 65_536, 1_048_576, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  "uneven": ImageSettings(
    patch_size=14,
    temporal_patch_size=3,
    merge_size=2,
    min_pixels=3_136,
    max_pixels=200_704,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
  ),
}


@pytest.fixture(params=SETTINGS)
def settings(request) -> ImageSettings:
  return SETTINGS[request.param]


def _reference(image, settings):
  processor = Qwen2VLImageProcessorPil(
    patch_size=settings.patch_size,
    temporal_patch_size=settings.temporal_patch_size,
    merge_size=settings.merge_size,
    size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
    image_mean=list(settings.mean),
    image_std=list(settings.std),
  )
  output = processor(images=[image], return_tensors="np")
  return output["pixel_values"], tuple(output["image_grid_thw"][0])


def _assert_equal(image, settings):
  patches, grid = patchify(image, settings)
  expected, expected_grid = _reference(image, settings)
  assert grid == expected_grid
  assert patches.dtype == np.float32 == expected.dtype
  np.testing.assert_array_equal(patches, expected)


def test_photographs_equal_hugging_face_value_for_value(photographs, settings):
  for name, image in photographs.items():
    assert image.std() > 20, name
    _assert_equal(PIL.Image.fromarray(image), settings)
    _assert_equal(image, settings)


@pytest.mark.parametrize(
  "size",
  [(64, 64), (65, 63), (1, 1), (2, 3), (3, 7), (1, 200), (199, 1), (37, 911), (480, 7), (48, 80)],
)
def test_odd_sizes_equal_hugging_face(noise, settings, size):
  _assert_equal(noise(*size), settings)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_modes_equal_hugging_face(photographs, mode):
  image = PIL.Image.fromarray(photographs["chelsea"][:150, :211])
  if mode in ("RGBA", "LA"):
    image.putalpha(PIL.Image.fromarray(photographs["astronaut"][:150, :211, 0]))
  if mode == "I;16":
    image = PIL.Image.fromarray(np.arange(150 * 211, dtype=np.uint16).reshape(150, 211) * 2)
  _assert_equal(image if mode == "I;16" else image.convert(mode), TINY_IMAGES)


def test_transparent_palette_equals_hugging_face(photographs):
  buffer = io.BytesIO()
  image = PIL.Image.fromarray(photographs["coffee"][:90, :120]).quantize(16)
  image.save(buffer, "png", transparency=3)
  palette = PIL.Image.open(buffer)
  assert palette.mode == "P" and palette.info["transparency"] is not None
  _assert_equal(palette, TINY_IMAGES)
  opened = open_image(buffer.getvalue())
  np.testing.assert_array_equal(patchify(opened, TINY_IMAGES)[0], patchify(palette, TINY_IMAGES)[0])


def test_open_image_applies_the_exif_orientation(photographs, tmp_path):
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # to be turned by 90° clockwise
  path = tmp_path / "turned.jpg"
  PIL.Image.fromarray(photographs["coffee"]).save(path, exif=exif)
  opened, raw = open_image(path), PIL.Image.open(path)
  assert opened.size == raw.size[::-1] and opened.mode == "RGB"
  patches, grid = patchify(opened, TINY_IMAGES)
  expected, expected_grid = _reference(PIL.ImageOps.exif_transpose(raw), TINY_IMAGES)
  assert grid == expected_grid
  np.testing.assert_array_equal(patches, expected)


def test_smart_resize_bounds_the_area_in_whole_blocks():
  rng = np.random.default_rng(0)
  for height, width in rng.integers(1, 3000, (500, 2)):
    if max(height, width) > 200 * min(height, width):
      continue
    for settings in SETTINGS.values():
      h, w = smart_resize(int(height), int(width), settings)
      factor = settings.patch_size * settings.merge_size
      assert h % factor == w % factor == 0
      assert settings.min_pixels <= h * w
      assert h * w <= settings.max_pixels or min(h, w) == factor


def test_too_elongated_is_an_error_as_in_hugging_face(noise):
  _assert_equal(noise(1, 200), TINY_IMAGES)
  with pytest.raises(ValueError, match="201×1 pixels is too elongated"):
    patchify(noise(1, 201), TINY_IMAGES)
  with pytest.raises(ValueError, match="aspect ratio"):
    _reference(noise(1, 201), TINY_IMAGES)


@pytest.mark.parametrize(
  "array",
  [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
)
def test_arrays_other_than_rgb_bytes_are_refused(array):
  with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
    patchify(array, TINY_IMAGES)
  with pytest.raises(ValueError, match="an image is a str"):
    patchify("photo.png", TINY_IMAGES)


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_16_bit_greys_are_scaled_and_32_bit_ones_refused(format):
  grey = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
  opened = np.asarray(open_image(_encoded(grey, format)))
  np.testing.assert_array_equal(opened, np.repeat((grey / 257).round()[..., None], 3, axis=2))
  assert (opened.min(), opened.max()) == (0, 255)
  if format == "tiff":
    with pytest.raises(UnreadableImage, match="32 bits .mode F.; save the image with 8 or 16 bits"):
      open_image(_encoded(grey.astype(np.float32) / 65535, format))


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_broken_metadata_are_ignored(photographs, format):
  buffer = io.BytesIO()
  image = PIL.Image.fromarray(photographs["coffee"][:90, :120])
  image.save(buffer, format, exif=b"Exif\0\0no TIFF at all")
  assert open_image(buffer.getvalue()).size == (120, 90)


def test_a_program_named_as_an_image_is_not_run(tmp_path):
  path = tmp_path / "drawing.png"
  path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\nshowpage\n")
  with pytest.raises(UnreadableImage, match="cannot identify"):
    open_image(path)


def _encoded(image, format):
  buffer = io.BytesIO()
  PIL.Image.fromarray(image).save(buffer, format)
  return buffer.getvalue()


def test_unreadable_files_name_the_file_and_the_reason(photographs, tmp_path, monkeypatch):
  with pytest.raises(UnreadableImage, match=r"missing\.png"):
    open_image(tmp_path / "missing.png")
  text = tmp_path / "text.png"
  text.write_text("not an image")
  with pytest.raises(UnreadableImage, match=r"text\.png: cannot identify"):
    open_image(text)
  with pytest.raises(UnreadableImage, match="<0 bytes>"):
    open_image(b"")
  with pytest.raises(UnreadableImage):
    open_image(tmp_path)
  os.mkfifo(tmp_path / "pipe.png")
  with pytest.raises(UnreadableImage, match=r"pipe\.png: it is a folder or a device"):
    open_image(tmp_path / "pipe.png")
  data = _encoded(photographs["chelsea"], "png")
  monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 300 * 451 - 1)
  with (
    pytest.warns(PIL.Image.DecompressionBombWarning),
    pytest.raises(UnreadableImage, match="451×300 pixels are more"),
  ):
    open_image(data)
  monkeypatch.setattr(
    PIL.Image, "MAX_IMAGE_PIXELS", 60_000
  )  # beyond twice the limit PIL itself refuses
  with pytest.raises(UnreadableImage, match="bomb"):
    open_image(data)


@pytest.mark.filterwarnings("ignore::UserWarning")  # decoders print warnings
@pytest.mark.parametrize("format", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_damaged_files_never_raise_anything_else(photographs, format):
  data = _encoded(photographs["rocket"][:60, :80], format)
  open_image(data)
  rng = np.random.default_rng(0)
  unreadable = 0
  for n in range(60):
    damaged = bytearray(data[: rng.integers(len(data))] if n % 2 else data)
    for at in rng.integers(0, len(damaged) or 1, min(n, len(damaged))):
      damaged[at] = rng.integers(256)
    try:
      open_image(bytes(damaged))
    except UnreadableImage:
      unreadable += 1
  assert unreadable >= 15


def test_settings_come_from_the_folder_and_unsupported_steps_are_refused(tiny_folder, tmp_path):
  assert ImageSettings.from_folder(tiny_folder) == TINY_IMAGES
  with pytest.raises(FileNotFoundError, match="preprocessor_config.json is missing"):
    ImageSettings.from_folder(tmp_path)
  config = json.loads((tiny_folder / "preprocessor_config.json").read_text())
  path = tmp_path / "preprocessor_config.json"
  path.write_text(json.dumps(config | {"resample": 2}))
  with pytest.raises(ValueError, match="resample is 2"):
    ImageSettings.from_folder(tmp_path)
  del config["image_std"]
  path.write_text(json.dumps(config))
  with pytest.raises(ValueError, match="lacks 'image_std'"):
    ImageSettings.from_folder(tmp_path)


@pytest.mark.parametrize("has_size", [True, False])
def test_bounds_under_their_older_names_hold_as_in_hugging_face(tiny_folder, tmp_path, has_size):
  config = json.loads((tiny_folder / "preprocessor_config.json").read_text())
  config |= {"min_pixels": 4096, "max_pixels": None}
  if not has_size:
    del config["size"]
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
  found = ImageSettings.from_folder(tmp_path)
  expected = Qwen2VLImageProcessorPil.from_pretrained(tmp_path).size
  assert (found.min_pixels, found.max_pixels) == (4096, expected["longest_edge"])
  assert expected["shortest_edge"] == 4096


def test_settings_as_a_whole_processor_saves_them(tiny_folder, tmp_path):
  config = json.loads((tiny_folder / "preprocessor_config.json").read_text())
  whole = {"image_processor": config, "processor_class": "Qwen3VLProcessor"}
  (tmp_path / "processor_config.json").write_text(json.dumps(whole))
  assert ImageSettings.from_folder(tmp_path) == TINY_IMAGES


# --- what the vision tower reads


def _rows(config, grids):
  rng = np.random.default_rng(0)
  P = config.in_channels * config.temporal_patch_size * config.patch_size**2
  return [
    [(rng.normal(size=(t * h * w, P)).astype(np.float32), (t, h, w)) for t, h, w in row]
    for row in grids
  ]


@pytest.mark.parametrize("side", [8, 48])
def test_positions_of_patches_equal_transformers(tiny, side):
  config = dataclasses.replace(tiny.model_config.vision, num_position_embeddings=side**2)
  grids = [[(1, 8, 8), (1, 2, 14)], [(3, 4, 6)], [(1, 2, 2), (1, 48, 2), (2, 10, 96)]]
  vision = vision_rows(_rows(config, grids), config, patch_bucket=64)
  for b, row in enumerate(grids):
    grid = torch.tensor(row)
    count = int(grid.prod(dim=1).sum())
    coords = vision_utils.get_vision_position_ids(grid, config.spatial_merge_size)
    index, weight = vision_utils.get_vision_interpolation_indices_and_weights(
      grid, side, align_corners=True, spatial_merge_size=config.spatial_merge_size
    )
    ends = vision_utils.get_vision_cu_seqlens(grid)
    np.testing.assert_array_equal(vision.coords[b, :count], coords)
    np.testing.assert_array_equal(vision.pos_index[b, :count], index)
    np.testing.assert_array_equal(vision.pos_weight[b, :count], weight)
    np.testing.assert_array_equal(
      np.flatnonzero(np.diff(vision.segments[b, :count])) + 1, ends[1:-1]
    )
    assert vision.segments[b, 0] == 1 and vision.segments[b, count - 1] == len(ends) - 1
    assert not vision.segments[b, count:].any() and not vision.pos_weight[b, count:].any()


def test_rows_are_padded_to_whole_buckets(tiny):
  config = tiny.model_config.vision
  rows = _rows(config, [[(1, 8, 8)], [], [(1, 8, 8), (1, 2, 2)]])
  for bucket, M in ((64, 128), (68, 68), (4, 68), (256, 256)):
    vision = vision_rows(rows, config, bucket)
    assert vision.patches.shape == (3, M, 384)
    assert [int((row > 0).sum()) for row in vision.segments] == [64, 0, 68]
    np.testing.assert_array_equal(vision.patches[2, 64:68], rows[2][1][0])
    assert not vision.patches[0, 64:].any()


def test_rows_without_any_image_have_no_vision(tiny):
  assert vision_rows([[], []], tiny.model_config.vision, 64) is None


@pytest.mark.parametrize("bucket", [0, -4, 30])
def test_a_bucket_that_splits_merge_blocks_is_refused(tiny, bucket):
  with pytest.raises(ValueError, match=f"patch_bucket is {bucket}; .* multiple of 4"):
    vision_rows([[]], tiny.model_config.vision, bucket)
