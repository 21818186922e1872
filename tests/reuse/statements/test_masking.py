"""Masked captions: VSR's own sentences, its misspelt fields, and sentences of other shapes."""

import pytest

from spatial_vlm.reuse.statements.masking import mask_objects


@pytest.mark.parametrize(
  ("caption", "question"),
  [
    ("The bus is at the right side of the tv.", "The X is at the right side of the Y."),
    ("The cow has as a part the teddy bear.", "The X has as a part the Y."),
    ("the Cat is  left of a mug", "The X is left of the Y."),
  ],
)
def test_statements_of_vsr_lose_their_objects(caption, question):
  assert mask_objects(caption) == question


def test_misspelt_fields_do_not_matter():
  """VSR's zero-shot train split says subj "orse" for this caption."""
  assert mask_objects("The horse is next to the bus.", "orse", "bus") == "The X is next to the Y."


@pytest.mark.parametrize(
  ("caption", "subj", "obj", "question"),
  [
    ("A cat sits on my mug", "cat", "mug", "A X sits on my Y"),
    (
      "Is the red circle bar near a red circle?",
      "red circle",
      "red circle bar",
      "Is the Y near a X?",
    ),
    ("Concatenate the cat, bobcat, Mug", "cat", "mug", "Concatenate the X, bobcat, Y"),
    ("Which x.y (if any) holds?", "x.y", "any)", "Which X (if any) holds?"),
    ("Nothing is said.", "", "", "Nothing is said."),
  ],
)
def test_other_sentences_are_not_masked(caption, subj, obj, question):
  assert mask_objects(caption, subj, obj) == question


@pytest.mark.parametrize(
  ("caption", "question"),
  [
    ("You can see a cat to the left of the dog.", "You can see a X to the left of the Y."),
    ("To the left of the dog there is a cat.", "To the left of the Y there is a X."),
    (
      "The cat is left of the dog, from the dog's view",
      "The X is left of the Y, from the Y's view",
    ),
    ("The dog has a potted plant behind it.", "The X has a Y behind it."),
    ("The potted plants snuggle up to the hot dog", "The X snuggle up to the Y"),
    ("The hot dog greets the hot dog and the cat.", "The X greets the X and the Y."),
  ],
)
def test_objects_of_paraphrases_are_found(caption, question):
  assert mask_objects(caption) == question
