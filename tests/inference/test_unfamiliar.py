"""What a policy was not trained to be asked."""

import logging

import pytest
from etils import epath

from spatial_vlm.huggingface.model_card import KNOWLEDGE_FILE, Knowledge
from spatial_vlm.inference import unfamiliar
from spatial_vlm.processor.tokenizer import load_tokenizer
from spatial_vlm.tasks import find_task

KNOWN = Knowledge(["scenes"], ["chain"], (48, 64), (64, 64), 433, [])
TASK = find_task("scenes")


@pytest.fixture
def folder(tmp_path):
  (tmp_path / KNOWLEDGE_FILE).write_text(KNOWN.to_json())
  return epath.Path(tmp_path)


def test_a_form_that_was_not_taught_is_told(folder, tmp_path):
  assert unfamiliar.unknown_form(folder, TASK, "chain") is None
  assert unfamiliar.unknown_form(folder, TASK, "short").endswith(
    "was not trained to answer in the form 'short' (it learnt chain); the answer may be noise"
  )
  base = epath.Path(tmp_path / "base")
  assert "does not say that it learnt" in unfamiliar.unknown_form(base, TASK, "chain")
  assert unfamiliar.unknown_form(base, TASK, "direct") is None


def test_each_form_is_warned_of(folder, caplog):
  with caplog.at_level(logging.WARNING):
    unfamiliar.warn_of_forms(str(folder), TASK, ["chain", "short", "direct"])
  assert [record.args[0].split("'")[1] for record in caplog.records] == ["short", "direct"]


@pytest.mark.parametrize(
  ("size", "reason"),
  [
    ((64, 48), None),
    ((65, 64), "the image is 65 pixels wide (trained on 64 to 64)"),
    (
      (10, 99),
      "the image is 10 pixels wide (trained on 64 to 64) and 99 pixels high (trained on 48 to 64)",
    ),
  ],
)
def test_a_size_outside_the_training_images_is_told(size, reason):
  assert unfamiliar.unfamiliar_image(KNOWN, size) == reason
  assert (
    unfamiliar.unfamiliar_image(KNOWN._replace(image_height=None, image_width=None), size) is None
  )


def test_words_that_are_spelled_letter_by_letter_are_foreign(nano):
  tokenizer = load_tokenizer(epath.Path(nano))
  statement = "The purple bar is left of the green mug, or of the MUG."
  assert unfamiliar.unfamiliar_words(tokenizer, statement) == ["mug", "MUG"]
