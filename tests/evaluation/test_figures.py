import io
import math

import numpy as np
import pytest
from PIL import Image

from spatial_vlm.evaluation import figures
from spatial_vlm.evaluation.scores import score_statements

VERMILLION = (0xD5, 0x5E, 0x00)
BLUE = (0x00, 0x72, 0xB2)


LEGEND = 180
"""Rows of pixels at the top of a column of scenes that explain their colours."""


def pixels(path, color, top=0):
  """Counts the pixels of exactly this colour below the row `top`."""
  return int((np.asarray(Image.open(path).convert("RGB"))[top:] == color).all(-1).sum())


@pytest.fixture
def stages():
  sft = [{"step": i, "loss": 3 / (i + 1), "grad_norm": 1.0} for i in range(300)]
  dapo = [
    {"step": i, "kept/reward": i / 9, "sampled/accuracy": 0.7, "entropy": 0.2, "time/step_s": 3.0}
    for i in range(9)
  ]
  dapo[4]["validation/accuracy"] = 0.75
  return {"SFT, chain of thought": sft, "DAPO": dapo[::-1]}


def draw_all(folder, stages, scores, examples, predictions):
  paths = [folder / name for name in ("curves.png", "relations.png", "scenes.png")]
  figures.training_curves(stages, paths[0])
  figures.accuracy_by_relation(scores, paths[1])
  figures.sample_scenes(examples, predictions, paths[2])
  return paths


def test_equal_figures_give_equal_bytes_and_carry_no_date(tmp_path, stages, predict, example):
  predictions = [predict(i, 1, i % 2) for i in range(5)]
  examples = [example(i, 1) for i in range(5)]
  scores = {"SFT, direct answer": score_statements(predictions)}
  (tmp_path / "again").mkdir()
  paths = draw_all(tmp_path, stages, scores, examples, predictions)
  for path, again in zip(
    paths, draw_all(tmp_path / "again", stages, scores, examples, predictions), strict=True
  ):
    assert path.read_bytes() == again.read_bytes()
    image = Image.open(io.BytesIO(path.read_bytes()))
    assert set(image.info) <= {"dpi"}
    assert 600 <= image.width <= 2000


def test_series_are_sorted_and_named_apart(stages):
  accuracy = next(panel for panel in figures.PANELS if "sampled/accuracy" in panel.metrics)
  names = {name: steps.tolist() for name, steps, _ in figures._series(accuracy, stages)}
  assert names == {"all groups": list(range(9)), "validation, greedy": [4]}
  loss = figures.PANELS[0]
  both = {
    "direct": [{"step": 1, "loss": 2.0}],
    "chain": [{"step": 1, "loss": None}, {"step": 2, "loss": 1.0}],
  }
  assert [(name, values.tolist()) for name, _, values in figures._series(loss, both)] == [
    ("direct", [2.0]),
    ("chain", [1.0]),
  ]


def test_only_measured_panels_are_drawn(tmp_path, stages):
  figures.training_curves({"SFT": stages["SFT, chain of thought"]}, tmp_path / "one.png")
  figures.training_curves(stages, tmp_path / "all.png")
  one, all_ = (Image.open(tmp_path / name) for name in ("one.png", "all.png"))
  assert all_.width == 3 * one.width and all_.height == 2 * one.height


def test_nothing_to_draw_is_an_error(tmp_path):
  with pytest.raises(
    ValueError, match=r"no metric to draw in stages \['SFT'\].*known metrics are .*'loss'"
  ):
    figures.training_curves({"SFT": [{"step": 1, "grad_norm": 2.0}]}, tmp_path / "x.png")
  assert not (tmp_path / "x.png").exists()


def test_more_methods_than_colours(tmp_path, predict):
  scores = {
    f"method {i}": score_statements([predict(j, 1, int(j > i)) for j in range(20)])
    for i in range(12)
  }
  figures.accuracy_by_relation(scores, tmp_path / "many.png")
  assert len(set(figures._cycle()[:12])) == 12
  assert pixels(tmp_path / "many.png", BLUE) > 100


def test_relation_that_one_method_lacks(tmp_path, predict):
  scores = {
    "a": score_statements([predict(0, 1, 1)]),
    "b": score_statements([predict(0, 1, 1, relation="near")]),
  }
  figures.accuracy_by_relation(scores, tmp_path / "lack.png")
  assert pixels(tmp_path / "lack.png", VERMILLION) > 0


def test_scene_shows_the_boxes_of_the_answer(tmp_path, example, predict, chain):
  """The subject's box is blue, the object's vermillion; an unparsable answer has none."""
  boxes = {"cat": (100, 100, 300, 300), "mug": (600, 600, 800, 800)}
  right = predict(0, 1, 1, chain(1, boxes))
  figures.sample_scenes([example(0, 1)], [right], tmp_path / "boxes.png", columns=1)
  figures.sample_scenes([example(0, 1)], [predict(0, 1, -1)], tmp_path / "none.png", columns=1)
  assert (
    pixels(tmp_path / "boxes.png", BLUE, LEGEND) > 500
    and pixels(tmp_path / "boxes.png", VERMILLION, LEGEND) > 500
  )
  assert pixels(tmp_path / "none.png", BLUE, LEGEND) == 0

  only_object = predict(0, 1, 1, chain(1, {"mug": boxes["mug"]}))
  figures.sample_scenes([example(0, 1)], [only_object], tmp_path / "object.png", columns=1)
  assert pixels(tmp_path / "object.png", BLUE, LEGEND) == 0
  assert pixels(tmp_path / "object.png", VERMILLION, LEGEND) > 500


def test_boxes_lie_where_they_are_in_images_that_are_not_square(tmp_path, example, predict, chain):
  """A box over the right half of a wide image covers its right half."""
  wide = example(0, 1, size=(40, 120))
  wide.image[:] = 255
  wide.image[:, 60:] = (10, 200, 10)
  text = chain(1, {"cat": (500, 0, 1000, 1000)})
  figures.sample_scenes([wide], [predict(0, 1, 1, text)], tmp_path / "wide.png", columns=1)
  image = np.asarray(Image.open(tmp_path / "wide.png").convert("RGB")).astype(int)[LEGEND:]
  green = np.argwhere((image == (10, 200, 10)).all(-1))
  blue = np.argwhere((image == BLUE).all(-1))
  assert green.min(0)[1] == pytest.approx(blue.min(0)[1], abs=8)
  assert green.max(0)[1] == pytest.approx(blue.max(0)[1], abs=8)


@pytest.mark.parametrize("caption", ["The $\\nonsense{$ is on.", "word " * 100, "unbreakable" * 30])
def test_any_caption_can_be_drawn(tmp_path, example, predict, chain, caption):
  """Dollars are no formula, and a caption that is too long is cut."""
  text = chain(1, {"cat " * 20 + "x": (0, 0, 20, 20), "mug": (980, 980, 1000, 1000)})
  prediction = predict(0, 1, 1, text, caption=caption)
  figures.sample_scenes([example(0, 1)], [prediction], tmp_path / "caption.png")
  assert Image.open(tmp_path / "caption.png").width < 2500
  lines = figures._wrapped(caption).split("\n")
  assert len(lines) <= 3 and all(len(line) <= 34 for line in lines)


def test_scene_without_its_answer_is_an_error(tmp_path, example, predict):
  with pytest.raises(ValueError, match=r"2 examples, of which \[1\] have no prediction"):
    figures.sample_scenes([example(0, 1), example(1, 1)], [predict(0, 1, 1)], tmp_path / "x.png")
  with pytest.raises(ValueError, match="0 examples"):
    figures.sample_scenes([], [], tmp_path / "x.png")


def test_noise_is_averaged_without_moving_the_curve():
  axes = figures.Figure().add_subplot()
  steps = np.arange(400.0)
  figures._curve(axes, "loss", steps, 2 * steps + 1, figures.BLUE)
  raw, mean = axes.lines
  assert len(raw.get_xdata()) == 400 and len(mean.get_xdata()) == 391
  assert math.isclose(mean.get_ydata()[100], 2 * mean.get_xdata()[100] + 1)


def test_an_axis_covers_its_range_so_that_noise_stays_small(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
  records = [
    {"step": i, "sampled/accuracy": 0.7 + i / 1e3, "clip_high": 1e-4 * i, "kl_old": 1e-5 * i}
    for i in range(9)
  ]
  figures.training_curves({"DAPO": records}, tmp_path / "unused.png")
  limits = {axes.get_title(loc="left"): axes.get_ylim() for axes in drawn[0].axes}
  low, high = limits["DAPO: accuracy"]
  assert low <= 0.5 and 1.0 <= high < 1.1
  assert limits["DAPO: share of tokens whose ratio is clipped"][1] >= 0.005
  assert limits["DAPO: KL to the sampler, nats per token"][1] >= 0.001


def test_the_scenes_explain_their_boxes_and_colour_marks_objects_alone(
  tmp_path, example, predict, chain, monkeypatch
):
  drawn = []
  monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
  wrong = predict(0, 1, 0, chain(0, {"cat": (100, 100, 300, 300), "mug": (600, 600, 800, 800)}))
  figures.sample_scenes([example(0, 1)], [wrong], tmp_path / "unused.png")
  (legend,) = drawn[0].legends
  said = [text.get_text() for text in legend.get_texts()]
  assert any("dashed" in text and "true" in text for text in said)
  assert sum(text.startswith("answer: ") for text in said) == 3
  title = drawn[0].axes[0].title
  title = next(t for t in (drawn[0].axes[0]._left_title, title) if t.get_text())
  assert title.get_color() == figures.INK and title.get_fontweight() == "bold"


def test_accuracy_by_relation_has_a_title(tmp_path, predict, monkeypatch):
  drawn = []
  monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
  figures.accuracy_by_relation({"a": score_statements([predict(0, 1, 1)])}, tmp_path / "unused.png")
  assert "by relation" in drawn[0].axes[0].get_title(loc="left")
