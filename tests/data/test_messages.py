"""Questions and messages."""

import numpy as np
import pytest

from spatial_vlm.data import messages
from spatial_vlm.tasks import statements

CAPTION = "The cat is left of the mug."


def test_forms_ask_the_same_statement_in_different_ways():
  questions = [
    statements.question(CAPTION, "direct"),
    statements.question(CAPTION, "chain"),
    statements.question(CAPTION, "short"),
  ]
  assert len(set(questions)) == 3
  assert all(question.startswith(f"{CAPTION} True? ") for question in questions)


def test_forms_that_cannot_be_asked_are_refused():
  with pytest.raises(
    ValueError, match="form is 'long'; allowed are \\['chain', 'direct', 'short'\\]"
  ):
    statements.question(CAPTION, "long")


def test_messages_carry_the_image_before_the_first_question_only():
  image = np.zeros((2, 2, 3), np.uint8)
  turns = messages.conversation(image, [("one", "1"), ("two", "2")])
  assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
  assert [[part["type"] for part in turn["content"]] for turn in turns] == [
    ["image", "text"],
    ["text"],
    ["text"],
    ["text"],
  ]
  assert turns[0]["content"][0]["image"] is image
  (asked,) = messages.messages(image, "one")
  assert asked == turns[0]
  assert messages.messages(image, "one", "1") == turns[:2]


def test_a_system_turn_stands_before_the_image():
  image = np.zeros((2, 2, 3), np.uint8)
  system, *turns = messages.messages(image, "one", "1", "Use behavior_left_of: compare.")
  text = {"type": "text", "text": "Use behavior_left_of: compare."}
  assert system == {"role": "system", "content": [text]}
  assert turns == messages.messages(image, "one", "1")
