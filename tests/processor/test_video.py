import dataclasses
import json

import numpy as np
import pytest
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
  Qwen3VLVideoProcessor,
  smart_resize,
)
from transformers.video_utils import VideoMetadata

from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.processor.video import (
  Clip,
  UnreadableVideo,
  VideoInfo,
  VideoSettings,
  frame_numbers,
  patchify_video,
  smart_resize_video,
  timestamps,
  video_grid,
)

HALF = (0.5, 0.5, 0.5)
SETTINGS = {
  "tiny": VideoSettings(8, 2, 2, 4096, 65_536, HALF, HALF, 2, 4, 768),
  "8b": VideoSettings(16, 2, 2, 4096, 25_165_824, HALF, HALF, 2, 4, 768),
  "uneven": VideoSettings(
    patch_size=14,
    temporal_patch_size=3,
    merge_size=2,
    min_pixels=30_000,
    max_pixels=60_000,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    fps=1.5,
    min_frames=5,
    max_frames=7,
  ),
}
OUTLINES = [
  VideoInfo(4, 2, 64, 64),
  VideoInfo(9, 3.0, 70, 90),
  VideoInfo(5, 0.4, 33, 200),
  VideoInfo(41, 7.5, 120, 90),
  VideoInfo(30, 29.97, 13, 40),
  VideoInfo(3, 1.0, 100, 37),
]


@pytest.fixture(params=SETTINGS)
def settings(request) -> VideoSettings:
  return SETTINGS[request.param]


def _reference(settings):
  return Qwen3VLVideoProcessor(
    patch_size=settings.patch_size,
    temporal_patch_size=settings.temporal_patch_size,
    merge_size=settings.merge_size,
    size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
    image_mean=list(settings.mean),
    image_std=list(settings.std),
    fps=settings.fps,
    min_frames=settings.min_frames,
    max_frames=settings.max_frames,
    cap_pixels_per_frame=False,
  )


def _clip(info, seed=0):
  shape = (info.frames, info.height, info.width, 3)
  return Clip(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), info.fps)


def _outlines(count):
  rng = np.random.default_rng(0)
  frames = np.exp(rng.uniform(np.log(3), np.log(60_000), count)).astype(int)
  sizes = np.exp(rng.uniform(np.log(4), np.log(4000), (count, 2))).astype(int)
  for n, (height, width) in zip(frames, sizes, strict=True):
    if max(height, width) < 150 * min(height, width):
      yield VideoInfo(int(n), float(rng.choice([0.3, 1, 2, 12.5, 24, 29.97, 60])), height, width)


@pytest.mark.parametrize("info", OUTLINES, ids=str)
def test_patches_equal_hugging_face_value_for_value(settings, info):
  clip = _clip(info)
  metadata = VideoMetadata(total_num_frames=info.frames, fps=info.fps)
  expected = _reference(settings)(
    videos=[clip.pixels], video_metadata=[metadata], return_tensors="np"
  )
  patches, grid = patchify_video(clip, settings)
  assert grid == tuple(expected["video_grid_thw"][0]) == video_grid(info, settings)
  assert patches.dtype == np.float32
  np.testing.assert_array_equal(patches, expected["pixel_values_videos"])


def test_sampled_frames_and_times_equal_hugging_face(settings):
  reference = _reference(settings)
  for info in _outlines(300):
    metadata = VideoMetadata(total_num_frames=info.frames, fps=info.fps)
    expected = reference.sample_frames(metadata, fps=settings.fps)
    assert frame_numbers(info, settings) == expected.tolist()
    times = Qwen3VLProcessor._calculate_timestamps(
      None, expected, info.fps, settings.temporal_patch_size
    )
    assert timestamps(info, settings) == times
    assert len(times) == video_grid(info, settings)[0]


def test_sizes_equal_hugging_face(settings):
  factor = settings.patch_size * settings.merge_size
  for frames, _, height, width in _outlines(500):
    frames = min(max(frames, settings.temporal_patch_size), 768)
    expected = smart_resize(
      frames,
      height,
      width,
      settings.temporal_patch_size,
      factor,
      settings.min_pixels,
      settings.max_pixels,
    )
    assert smart_resize_video(frames, height, width, settings) == expected


def test_published_limits_are_of_the_whole_video():
  eight = SETTINGS["8b"]
  full_hd = video_grid(VideoInfo(250, 25, 1080, 1920), eight)  # 20 frames of ten seconds
  assert full_hd == (10, 52, 92)  # 832×1472 pixels
  hours = video_grid(VideoInfo(90_000, 25, 1080, 1920), eight)
  assert hours == (384, 8, 14)
  assert video_grid(VideoInfo(4, 2, 16, 16), eight) == (2, 2, 2)


def test_too_short_and_too_elongated_is_an_error_as_in_hugging_face(settings):
  with pytest.raises(ValueError, match="must be larger than temporal_factor"):
    smart_resize(1, 64, 64)
  with pytest.raises(UnreadableVideo, match="a video of 1 frame is too short"):
    patchify_video(_clip(VideoInfo(1, 2, 64, 64)), settings)
  with pytest.raises(ValueError, match="aspect ratio"):
    smart_resize(4, 64, 64 * 201)
  with pytest.raises(UnreadableVideo, match="12864×64 pixels is too elongated"):
    smart_resize_video(4, 64, 64 * 201, settings)
  smart_resize_video(4, 64, 64 * 200, settings)


def test_unreadable_videos_raise_the_error_of_unreadable_images():
  assert issubclass(UnreadableVideo, UnreadableImage)


def test_frames_of_several_sizes_are_refused(settings):
  class Changing(Clip):
    def read(self, numbers):
      return (self.pixels[n][: 40 if n < 3 else 39] for n in numbers)

  with pytest.raises(UnreadableVideo, match="frame 3 of a video has 50×39 pixels, others 50×40"):
    patchify_video(Changing(np.zeros((8, 40, 50, 3), np.uint8), 2.0), settings)


@pytest.mark.parametrize(
  "pixels", [np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8, 3)), np.zeros((4, 3, 8, 8), np.uint8)]
)  # fmt: skip
def test_arrays_other_than_rgb_bytes_are_refused(pixels):
  with pytest.raises(ValueError, match=r"uint8 \[F, H, W, 3\]"):
    Clip(pixels, 2.0)


@pytest.mark.parametrize("fps", [0, -2, float("inf"), float("nan")])
def test_a_rate_is_a_positive_number(fps):
  with pytest.raises(ValueError, match=f"fps is {fps}; .* positive"):
    Clip(np.zeros((4, 8, 8, 3), np.uint8), fps)


def test_settings_come_from_the_folder_and_unsupported_steps_are_refused(tiny_folder, tmp_path):
  assert VideoSettings.from_folder(tiny_folder) == SETTINGS["tiny"]
  with pytest.raises(FileNotFoundError, match="video_preprocessor_config.json is missing"):
    VideoSettings.from_folder(tmp_path)
  config = json.loads((tiny_folder / "video_preprocessor_config.json").read_text())
  path = tmp_path / "video_preprocessor_config.json"
  for change, reason in (
    ({"do_sample_frames": False}, "do_sample_frames is False; only True is supported"),
    ({"num_frames": 8}, "num_frames is 8; only None"),
    ({"cap_pixels_per_frame": True}, "cap_pixels_per_frame is True; only None"),
    ({"resample": 2}, "resample is 2"),
  ):
    path.write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=reason):
      VideoSettings.from_folder(tmp_path)
  path.write_text(json.dumps(config | {"fps": 4, "cap_pixels_per_frame": False}))
  expected = dataclasses.replace(SETTINGS["tiny"], fps=4)
  assert VideoSettings.from_folder(tmp_path) == expected
  path.unlink()
  whole = {"image_processor": {}, "video_processor": config | {"fps": 4}}
  (tmp_path / "processor_config.json").write_text(json.dumps(whole))
  assert VideoSettings.from_folder(tmp_path) == expected


def test_settings_that_transformers_writes(tiny_folder, tmp_path):
  """With every default of its class spelled out."""
  Qwen3VLVideoProcessor.from_pretrained(tiny_folder).save_pretrained(tmp_path)
  assert json.loads((tmp_path / "video_preprocessor_config.json").read_text())["max_frames"] == 768
  assert VideoSettings.from_folder(tmp_path) == SETTINGS["tiny"]
