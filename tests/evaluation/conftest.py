import numpy as np
import pytest

from spatial_vlm import answers
from spatial_vlm.data.records import Example, Record
from spatial_vlm.evaluation.predictions import Prediction

BOXES = {"cat": (100, 100, 300, 300), "mug": (600, 600, 800, 800)}


@pytest.fixture
def predict():
  """Makes a prediction; omitted fields get defaults."""

  def make(id, label, verdict, text=None, **fields):
    defaults = {
      "caption": "The cat is left of the mug.",
      "relation": "left of",
      "boxes_true": BOXES,
      "generated_tokens": 10,
      "prompt_tokens": 30,
      "truncated": False,
    }
    text = {1: "Yes.", 0: "No.", -1: "Ye"}[verdict] if text is None else text
    return Prediction(id=id, label=label, verdict=verdict, text=text, **defaults | fields)

  return make


@pytest.fixture
def chain():
  """Text of a chain with the given boxes."""

  def make(verdict, boxes):
    caption = answers.render_boxes(boxes.items()) if boxes else "nothing in sight"
    return answers.render_chain("Where are they?", caption, "x=200 < x=700", verdict)

  return make


@pytest.fixture
def example():
  def make(id, label, relation="left of", caption="The cat is left of the mug.", size=(64, 64)):
    record = Record("a.png", "", caption, label, relation, 0, "[]", "[]")
    image = np.random.default_rng(id).integers(0, 256, (*size, 3), np.uint8)
    return Example(record=record, image=image, boxes=BOXES, id=id)

  return make
