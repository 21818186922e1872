"""Videos, and rows of all kinds in one batch: from pixels to logits against transformers, its processor included.

Both sides get the same messages; nothing that one of them computes is given to the other.
"""

import copy
import dataclasses
import functools
import json
from functools import partial

import jax
import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from spatial_vlm.model import qwen3_vl
from spatial_vlm.processor.chat import (
  Processor,
  Size,
  collate_batch,
  collate_prompts,
  encode,
)
from spatial_vlm.processor.tiny_tokenizer import train_tokenizer
from spatial_vlm.processor.tokenizer import VISUAL_TOKENS, load_tokenizer
from spatial_vlm.processor.video import Clip
from spatial_vlm.types import Params

VIDEO_ROW = 3


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pair:
  """A random model with a processor, as transformers has it and as this package has it."""

  model: transformers.Qwen3VLForConditionalGeneration
  theirs: transformers.Qwen3VLProcessor
  params: Params
  ours: Processor

  @property
  def config(self):
    return self.ours.model_config


@pytest.fixture(scope="module")
def pair(reference, tmp_path_factory):
  """`pair("tiny")`: the random model of that name, with a tokenizer of its own."""

  @functools.cache
  def make(size: str) -> Pair:
    folder = tmp_path_factory.mktemp(f"talking-{size}")
    train_tokenizer(
      ["Is the red circle left of the blue square in the video? Which moves? Yes. No."], 400, folder
    )
    ids = load_tokenizer(folder).get_vocab()
    ids = {f"{name}_token_id": ids[token] for name, token in VISUAL_TOKENS.items()}
    config = dataclasses.replace(reference(size).config, **ids)
    (folder / "config.json").write_text(json.dumps(config.to_huggingface()))
    factor = config.vision.patch_size * config.vision.spatial_merge_size
    for name, frames in (("preprocessor", 1), ("video_preprocessor", 4)):
      path = folder / f"{name}_config.json"
      pixels = frames * factor**2
      limits = {"shortest_edge": 4 * pixels, "longest_edge": 12 * pixels}
      changes = {"patch_size": config.vision.patch_size, "size": limits}
      path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    model = copy.deepcopy(reference(size).model)
    for name, id in ids.items():
      setattr(model.config, name, id)
    theirs = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    theirs.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return Pair(model, theirs, reference(size).params, Processor.from_folder(folder))

  return make


def _noise(*shape):
  return np.random.default_rng(shape).integers(0, 256, shape, np.uint8)


def _image(height, width):
  return {"type": "image", "image": PIL.Image.fromarray(_noise(height, width, 3))}


def _video(frames, fps, height, width):
  """Frames that differ, brighter and brighter."""
  pixels = _noise(frames, height, width, 3) // 2 + np.linspace(0, 120, frames)[:, None, None, None]
  return {"type": "video", "video": Clip(pixels.astype(np.uint8), fps)}


def _text(text):
  return {"type": "text", "text": text}


def _conversations():
  """Text alone, an image, two images, a video, and images and videos in turn."""
  question = _text("Is the red circle left of the blue square?")
  contents = [
    [_text("Which moves?")],
    [_image(60, 90), question],
    [_image(40, 30), _text("in the "), _image(50, 110), question],
    [_text("in the video "), _video(11, 4.0, 50, 70), question],
    [_image(30, 40), _video(4, 2.5, 60, 40), question, _image(64, 32), _video(3, 1.0, 40, 90), _text("No?")],
  ]  # fmt: skip
  return [[{"role": "user", "content": content}] for content in contents]


def _reference_inputs(pair, conversations, side):
  """The inputs that transformers makes of the messages; it takes the videos' metadata separately."""
  conversations = copy.deepcopy(conversations)
  metadata = []
  for messages in conversations:
    for part in messages[0]["content"]:
      if part["type"] == "video":
        outline = part["video"].info
        metadata.append({"total_num_frames": outline.frames, "fps": outline.fps})
        part["video"] = part["video"].pixels
  return pair.theirs.apply_chat_template(
    conversations,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    add_generation_prompt=True,
    processor_kwargs={"video_metadata": metadata, "padding": True, "padding_side": side},
  )


@functools.cache
def _expected(pair, side):
  """Logits of the reference, and where tokens are real."""
  inputs = _reference_inputs(pair, _conversations(), side)
  with torch.no_grad():
    logits = pair.model(**inputs).logits.numpy()
  return logits, inputs["attention_mask"].numpy() > 0


def _rows(pair):
  return [encode(pair.ours, m, generation_prompt=True) for m in _conversations()]


def _batch(pair):
  rows = _rows(pair)
  longest, most = max(len(row.tokens) for row in rows), max(row.patches for row in rows)
  return collate_batch([[row] for row in rows], pair.ours, Size(longest, most + 8))


def _prompts(pair):
  rows = _rows(pair)
  return collate_prompts(rows, pair.ours, range(len(rows)), [-1] * len(rows), 1, 64)


@partial(jax.jit, static_argnums=1)
def _logits(params, config, rows):
  return qwen3_vl.logits(params, config, qwen3_vl.forward(params, config, rows))


def _largest_difference(pair, rows, side, of_rows=slice(None)) -> float:
  """Largest absolute difference of a logit at a real token, in units of about one standard deviation."""
  expected, real = _expected(pair, side)
  assert 0.5 < expected[real].std() < 2
  got = np.asarray(_logits(pair.params, pair.config, rows))
  return float(np.abs(got - expected)[of_rows][real[of_rows]].max())


@pytest.mark.parametrize(
  ("size", "side"),
  [
    ("tiny", "right"),
    pytest.param("tiny", "left", marks=pytest.mark.slow),
    pytest.param("small", "right", marks=pytest.mark.slow),
  ],
)
def test_logits_of_mixed_rows_equal_the_reference(pair, size, side):
  pair = pair(size)
  rows = _prompts(pair) if side == "left" else _batch(pair)
  image, video = pair.config.image_token_id, pair.config.video_token_id
  kinds = [(row == image).any() + 2 * (row == video).any() for row in rows.tokens]
  assert kinds == [0, 1, 1, 2, 3]
  assert _largest_difference(pair, rows, side) <= 1e-5


def test_inputs_equal_the_reference(pair):
  """Value for value: the models that the test above compares get equal inputs."""
  pair = pair("tiny")
  inputs, batch = _reference_inputs(pair, _conversations(), "right"), _batch(pair)
  np.testing.assert_array_equal(batch.tokens, inputs["input_ids"])
  np.testing.assert_array_equal(batch.segments, inputs["attention_mask"])
  positions, _ = pair.model.model.get_rope_index(
    inputs["input_ids"],
    inputs["mm_token_type_ids"],
    inputs["image_grid_thw"],
    inputs["video_grid_thw"],
    inputs["attention_mask"],
  )
  np.testing.assert_array_equal(batch.positions, positions.permute(1, 2, 0))
  visuals = [
    visual
    for row, messages in zip(_rows(pair), _conversations(), strict=True)
    for visual in zip(
      row.images, [p["type"] for p in messages[0]["content"] if p["type"] != "text"], strict=True
    )
  ]
  for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
    patches = np.concatenate([patches for (patches, _), k in visuals if k == kind])
    np.testing.assert_array_equal(patches, inputs[name])


def test_a_row_is_as_it_is_alone(pair):
  """The other rows of a batch do not affect a row: here they are zeros."""
  pair = pair("tiny")
  batch = _batch(pair)

  def blank_others(x):
    alone = np.zeros_like(x)
    alone[VIDEO_ROW] = x[VIDEO_ROW]
    return alone

  together, alone = (
    np.asarray(_logits(pair.params, pair.config, rows))[VIDEO_ROW]
    for rows in (batch, jax.tree.map(blank_others, batch))
  )
  real = batch.segments[VIDEO_ROW] > 0
  np.testing.assert_allclose(alone[real], together[real], atol=1e-5)


# Errors of popular ports. Each must change the logits; otherwise the tests above prove nothing about it.


def _video_frames(pair):
  """Number of frames of the row that is one video, and of the patches of a frame."""
  (_, (t, rows, columns)) = _rows(pair)[VIDEO_ROW].images[0]
  assert t > 2
  return t, rows * columns


def test_attending_across_frames_parity_breaks(pair):
  pair = pair("tiny")
  batch = _batch(pair)
  segments = batch.vision.segments.copy()
  segments[VIDEO_ROW] = np.minimum(segments[VIDEO_ROW], 1)
  batch = batch.replace(vision=batch.vision.replace(segments=segments))
  assert _largest_difference(pair, batch, "right", [VIDEO_ROW]) > 0.01
  assert _largest_difference(pair, batch, "right", [0, 1, 2, 4]) <= 1e-5


def test_with_positions_repeated_rather_than_tiled_parity_breaks(pair):
  """Each entry of a frame's position embedding t times in a row, not the whole of it t times."""
  pair = pair("tiny")
  batch = _batch(pair)
  t, frame = _video_frames(pair)
  index, weight = batch.vision.pos_index.copy(), batch.vision.pos_weight.copy()
  for array in (index, weight):
    array[VIDEO_ROW, : t * frame] = np.repeat(array[VIDEO_ROW, :frame], t, axis=0)
  batch = batch.replace(vision=batch.vision.replace(pos_index=index, pos_weight=weight))
  assert _largest_difference(pair, batch, "right", [VIDEO_ROW]) > 0.01


def test_without_timestamps_parity_breaks(pair, monkeypatch):
  pair = pair("tiny")
  shape = _batch(pair).tokens.shape[1], _batch(pair).vision.patches.shape[1]
  expected, real = _expected(pair, "right")
  before = _rows(pair)[VIDEO_ROW]
  as_it_is = Processor.encode_text

  def silent(self, text):
    return [] if text.endswith(" seconds>") else as_it_is(self, text)

  monkeypatch.setattr(Processor, "encode_text", silent)
  rows = _rows(pair)
  row = rows[VIDEO_ROW]
  assert len(row.tokens) < len(before.tokens) and row.patches == before.patches
  batch = collate_batch([[row] for row in rows], pair.ours, Size(*shape))
  got = np.asarray(_logits(pair.params, pair.config, batch))
  last = got[VIDEO_ROW, len(row.tokens) - 1] - expected[VIDEO_ROW, len(before.tokens) - 1]
  assert np.abs(last).max() > 0.1


def test_with_one_time_axis_for_the_whole_video_parity_breaks(pair):
  """Time that counts frames, as Qwen2-VL has it, in the place of a text of its own for each."""
  pair = pair("tiny")
  batch = _batch(pair)
  positions = batch.positions.copy()
  video = batch.tokens[VIDEO_ROW] == pair.config.video_token_id
  t, frame = _video_frames(pair)
  positions[VIDEO_ROW, video, 0] = positions[VIDEO_ROW, video, 0].min() + np.arange(
    video.sum()
  ) // (frame // pair.config.vision.merge_unit)
  assert _largest_difference(pair, batch.replace(positions=positions), "right", [VIDEO_ROW]) > 0.01


def test_greedy_generation_of_mixed_rows_equals_the_reference(pair, greedy):
  pair = pair("tiny")
  inputs = _reference_inputs(pair, _conversations(), "left")
  with torch.no_grad():
    expected = pair.model.generate(
      **inputs, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, inputs["input_ids"].shape[1] :].numpy()
  assert expected.shape == (5, 64)
  assert len(np.unique(expected)) > 20  # not the same token over and over
  got = greedy(pair.params, pair.config, _prompts(pair), 64)
  np.testing.assert_array_equal(np.asarray(got), expected)


def test_tokens_of_videos_are_never_sampled(pair):
  pair = pair("tiny")
  ids = [getattr(pair.config, f"{name}_token_id") for name in VISUAL_TOKENS]
  assert set(ids) <= set(pair.ours.special.never_sampled)
