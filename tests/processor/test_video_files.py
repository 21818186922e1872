import io
import pickle
import sys

import av
import numpy as np
import PIL.Image
import pytest
from transformers.video_utils import read_video_pyav

from spatial_vlm.processor import video_files
from spatial_vlm.processor.tiny_tokenizer import TINY_IMAGES
from spatial_vlm.processor.video import (
  UnreadableVideo,
  VideoInfo,
  VideoSettings,
  frame_numbers,
  patchify_video,
)
from spatial_vlm.processor.video_files import open_video

SETTINGS = VideoSettings(**vars(TINY_IMAGES), fps=2, min_frames=4, max_frames=768)


def _moving(frames=12, height=48, width=80):
  """A white square that moves over a slope from left to right, each frame different."""
  pixels = np.zeros((frames, height, width, 3), np.uint8)
  pixels[..., 1] = np.linspace(0, 200, width, dtype=np.uint8)
  for n in range(frames):
    left = 2 + n * (width - 14) // frames
    pixels[n, 4:14, left : left + 10] = 255
  return pixels


def _container(pixels, format="mp4", codec="libx264", rate=8):
  buffer = io.BytesIO()
  with av.open(buffer, "w", format=format) as container:
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = pixels.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1
    for frame in pixels:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
  return buffer.getvalue()


def _animation(pixels, format, duration):
  buffer = io.BytesIO()
  first, *others = map(PIL.Image.fromarray, pixels)
  exact = {"lossless": True} if format == "webp" else {}
  first.save(
    buffer, format, save_all=True, append_images=others, duration=duration, loop=0, **exact
  )
  return buffer.getvalue()


def _frames(video, numbers):
  return np.stack(list(video.read(numbers)))


def _assert_same_frames(frames, expected):
  """FFmpeg's conversion to RGB is not exact: single columns have differed by 2 of 255 between two runs."""
  np.testing.assert_allclose(frames.astype(int), expected.astype(int), rtol=0, atol=4)


def _centres(pixels):
  """Where the square is in each frame."""
  bright = pixels.min(axis=-1) > 128
  return [float(np.nonzero(frame)[1].mean()) for frame in bright]


@pytest.mark.parametrize(
  ("format", "codec"), [("mp4", "libx264"), ("avi", "mpeg4"), ("matroska", "mpeg4")]
)
def test_containers_equal_transformers(tmp_path, format, codec):
  path = tmp_path / "clip.video"
  path.write_bytes(_container(_moving(), format, codec))
  video = open_video(path)
  assert video.info == VideoInfo(12, 8.0, 48, 80)
  if (
    format == "mp4"
  ):  # elsewhere the header states no number of frames, and the reference finds none

    def sample(metadata, **_):
      assert (metadata.total_num_frames, metadata.fps) == (12, 8.0)
      return np.array(frame_numbers(video.info, SETTINGS))

    expected, _ = read_video_pyav(str(path), sample)
    _assert_same_frames(_frames(video, frame_numbers(video.info, SETTINGS)), expected)
  np.testing.assert_allclose(_centres(_frames(video, range(12))), _centres(_moving()), atol=1)
  np.testing.assert_allclose(
    patchify_video(open_video(path.read_bytes()), SETTINGS)[0],
    patchify_video(video, SETTINGS)[0],
    rtol=0,
    atol=4 / 127.5,
  )


def test_a_container_filmed_upright_is_turned():
  """As telephones store it: a wide image and a matrix that rotates it by 90°."""
  stored = _container(_moving())  # once: encoders do not promise the same bytes twice
  data = bytearray(stored)
  matrix = data.index(b"tkhd") + 44
  assert data[matrix : matrix + 4] == b"\x00\x01\x00\x00"
  one, none, minus = b"\x00\x01\x00\x00", bytes(4), b"\xff\xff\x00\x00"
  clockwise = [none, one, none, minus, none, none, b"\x00\x30\x00\x00", none, b"\x40\x00\x00\x00"]
  data[matrix : matrix + 36] = b"".join(clockwise)
  video = open_video(bytes(data))
  assert video.info == VideoInfo(12, 8.0, 80, 48)
  turned = np.rot90(_frames(open_video(stored), [0, 7]), -1, axes=(1, 2))
  _assert_same_frames(_frames(video, [0, 7]), turned)


@pytest.mark.parametrize("format", ["webp", "png"])
def test_animated_images(format):
  pixels = _moving()
  video = open_video(_animation(pixels, format, 125))
  assert video.info == VideoInfo(12, 8.0, 48, 80)
  np.testing.assert_array_equal(_frames(video, range(12)), pixels)
  np.testing.assert_array_equal(_frames(video, [3, 9]), pixels[[3, 9]])
  np.testing.assert_array_equal(_frames(video, [0]), pixels[[0]])  # backwards as well


def test_a_gif_counts_at_its_mean_rate():
  pixels = np.where(_moving() == 255, 255, 0).astype(np.uint8)  # colours that a palette holds
  video = open_video(_animation(pixels, "gif", [100, 300] * 6))
  assert video.info == VideoInfo(12, 5.0, 48, 80)
  np.testing.assert_array_equal(_frames(video, range(12)), pixels)


def test_a_folder_of_frames_in_the_order_of_their_numbers(tmp_path):
  pixels = _moving()
  for n, frame in enumerate(pixels):
    PIL.Image.fromarray(frame).save(tmp_path / f"frame_{n}.png")
  (tmp_path / "notes.txt").write_text("not a frame")
  video = open_video(tmp_path, fps=4)
  assert video.info == VideoInfo(12, 4, 48, 80)
  np.testing.assert_array_equal(_frames(video, range(12)), pixels)
  with pytest.raises(UnreadableVideo, match="a folder of frames has no rate; give fps"):
    open_video(tmp_path)
  (tmp_path / "frame_4.png").write_bytes(b"torn")
  with pytest.raises(ValueError, match=r"frame_4\.png: cannot identify"):
    patchify_video(video, SETTINGS)


def test_a_given_rate_overrides_the_files_rate():
  assert open_video(_container(_moving()), fps=3).info.fps == 3
  assert open_video(_animation(_moving(), "webp", 125), fps=3).info.fps == 3
  assert open_video(_animation(_moving(), "gif", 0), fps=3).info.fps == 3
  with pytest.raises(ValueError, match="fps is 0; .* positive"):
    open_video(_container(_moving()), fps=0)


def test_only_sampled_frames_are_kept(tmp_path):
  """Frames are decoded one at a time, and none after the last sampled one."""
  path = tmp_path / "clip.mp4"
  path.write_bytes(_container(_moving(60)))
  reading = open_video(path).read([2, 5])
  first, second = next(reading), next(reading)
  assert first.shape == second.shape == (48, 80, 3)
  assert next(reading, None) is None


def _sound(_):
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("aac", rate=8000)
    stream.layout = "mono"
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return buffer.getvalue()


def _still(_):
  buffer = io.BytesIO()
  PIL.Image.fromarray(_moving()[0]).save(buffer, "png")
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("contents", "reason"),
  [
    (lambda _: b"not a video", "Invalid data"),
    (lambda _: b"", "Invalid data|End of file"),
    (lambda _: _container(_moving())[:300], "moov|Invalid data"),
    (_still, "a still image; give it as an image"),
    (lambda _: _animation(_moving(), "gif", 0), "how long frames last; give fps"),
    (_sound, "no video stream, only sound"),
  ],
)
def test_unreadable_files_name_the_file_and_the_reason(tmp_path, contents, reason):
  path = tmp_path / "clip.video"
  path.write_bytes(contents(tmp_path))
  with pytest.raises(UnreadableVideo, match=rf"clip\.video: .*({reason})"):
    open_video(path)


@pytest.mark.parametrize(
  ("name", "contents"),
  [
    ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"),
    ("list.ffconcat", "ffconcat version 1.0\nfile clip.mp4\n"),
  ],
)
def test_what_would_open_other_files_is_refused(tmp_path, monkeypatch, name, contents):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "clip.mp4").write_bytes(_container(_moving()))
  (tmp_path / name).write_text(contents.format(tmp_path / "clip.mp4"))
  with av.open(name) as container:  # FFmpeg itself follows them
    assert container.streams.video[0].width == 80
  with pytest.raises(UnreadableVideo, match="list"):
    open_video(name)


def test_missing_files_and_empty_folders(tmp_path):
  with pytest.raises(UnreadableVideo, match=r"missing\.mp4: .*No such file"):
    open_video(tmp_path / "missing.mp4")
  with pytest.raises(UnreadableVideo, match="holds no image"):
    open_video(tmp_path, fps=2)


def test_a_video_that_ends_early_is_an_error():
  data = _container(_moving(40, 96, 160), "avi", "mpeg4")
  video = open_video(data[: len(data) * 2 // 3])
  video.info = video.info._replace(frames=40)  # as a header written before the frames would state
  with pytest.raises(UnreadableVideo, match="ends before frame .* of 40"):
    _frames(video, range(40))


@pytest.mark.parametrize("make", [_container, lambda x: _animation(x, "gif", 125)])
def test_damaged_files_never_raise_anything_else(make):
  data = make(_moving())
  rng = np.random.default_rng(0)
  unreadable = 0
  for n in range(30):
    damaged = bytearray(data[: rng.integers(len(data))] if n % 2 else data)
    for at in rng.integers(0, len(damaged), n):
      damaged[at] = rng.integers(256)
    try:
      patchify_video(open_video(bytes(damaged), fps=8), SETTINGS)
    except ValueError as error:
      assert "video" in str(error) or "image" in str(error)
      unreadable += 1
  assert unreadable >= 5


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_frame_of_too_many_pixels_is_refused(monkeypatch):
  monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 48 * 80 - 1)
  for data in (_container(_moving()), _animation(_moving(), "webp", 125)):
    with pytest.raises(UnreadableVideo, match="80×48 pixels are more"):
      open_video(data)


def _crafted_gif(frames, side):
  """Frames of one pixel each on a large canvas: 23 bytes a frame."""
  head = b"GIF89a" + side.to_bytes(2, "little") * 2 + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
  frame = b"\x21\xf9\x04\x04\x04\0\0\0" + b"\x2c\0\0\0\0\x01\0\x01\0\0" + b"\x02\x02\x44\x01\0"
  return head + frames * frame + b";"


def test_long_animations_are_refused_before_they_are_decoded(monkeypatch):
  assert open_video(_crafted_gif(40, 8)).info == VideoInfo(40, 25.0, 8, 8)
  monkeypatch.setattr(video_files, "MAX_ANIMATION_FRAMES", 39)
  with pytest.raises(UnreadableVideo, match="more than 39 frames of 8×8 pixels; shorten it"):
    open_video(_crafted_gif(40, 8))
  monkeypatch.setattr(video_files, "MAX_ANIMATION_PIXELS", 3 * 2000**2)
  with pytest.raises(UnreadableVideo, match="more than 3 frames of 2000×2000 pixels"):
    open_video(_crafted_gif(40_000, 2000), fps=2)


def test_long_containers_are_refused(monkeypatch):
  monkeypatch.setattr(video_files, "MAX_FRAMES", 11)
  with pytest.raises(UnreadableVideo, match="12 frames, more than 11; cut it"):
    open_video(_container(_moving()))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch, tmp_path):
  path = tmp_path / "clip.mp4"
  path.write_bytes(_container(_moving()))
  monkeypatch.setitem(sys.modules, "av", None)
  with pytest.raises(ImportError, match=r"clip\.mp4 needs av, .*pip install .*\[video\]"):
    open_video(path)
  open_video(_animation(_moving(), "gif", 125))


@pytest.mark.parametrize("make", [_container, lambda x: _animation(x, "webp", 125)])
def test_a_video_can_be_sent_to_a_worker(tmp_path, make):
  path = tmp_path / "clip"
  path.write_bytes(make(_moving()))
  video = open_video(path)
  again = pickle.loads(pickle.dumps(video))
  np.testing.assert_array_equal(_frames(again, [1, 4]), _frames(video, [1, 4]))
