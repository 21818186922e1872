"""Explanations of the forms of answers, with one example, for models that were not tuned on them."""

from collections.abc import Mapping

from spatial_vlm.answers import render_boxes

_STEPS = """Answer in four lines and write nothing else:
Summary: what is asked, in one sentence.
Caption: each object that matters with its box, as name [x1, y1, x2, y2], with commas between them. x1, y1 is the top \
left corner and x2, y2 the bottom right corner, in whole numbers from 0 to 1000 of the image's width and height.
Reasoning: the comparison that decides, in one line.
Conclusion: {words}

For example, {example}:
Summary: {summary}
Caption: {caption}
Reasoning: The center of the cat is at x=250 and that of the mug at x=675. 250 < 675, so the cat is left of the mug.
Conclusion: {word}"""

_SHORT = """Answer in two lines and write nothing else. The first names the procedure that you follow and makes the \
comparison, the second concludes: {words} For example:
Applying 'behavior_left_of': cat x=250 < mug x=675
Conclusion: {word}"""

_CAPTION = render_boxes([("cat", (100, 300, 400, 700)), ("mug", (600, 400, 750, 600))])


def explain_statements(words: Mapping[int, str]) -> dict[str, str]:
  """Returns the explanation of each form of an answer to a statement.

  Args:
    words: verdict → how it is written, such as {1: "Yes.", 0: "No."}.
  """
  choice = f"{words[1]} if the statement is true of the image, {words[0]} if it is not."
  return {
    "chain": _STEPS.format(
      words=choice,
      example='for the statement "The cat is left of the mug."',
      summary="Is the cat left of the mug?",
      caption=_CAPTION,
      word=words[1],
    ),
    "short": _SHORT.format(words=choice, word=words[1]),
    "direct": f"Answer with one word and write nothing else: {choice}",
  }


def explain_questions() -> dict[str, str]:
  """Returns the explanation of each form of an answer to a question of yes or no."""
  return _explain_question("Yes. or No.", "Is the cat left of the mug?", "Yes.")


def explain_short() -> dict[str, str]:
  """Returns the explanation of each form of an answer to a question that asks for a letter, a word or a number."""
  words = "the letter, word or number that the question asks for."
  return _explain_question(words, "Is the cat left or right of the mug?", "left")


def _explain_question(words: str, question: str, word: str) -> dict[str, str]:
  example = f'for the question "{question}"'
  return {
    "chain": _STEPS.format(
      words=words, example=example, summary=question, caption=_CAPTION, word=word
    ),
    "short": _SHORT.format(words=words, word=word),
    "direct": f"Write nothing but {words} For example: {word}",
  }


def explain_choices() -> dict[str, str]:
  """Returns the explanation of each form of an answer to a multiple-choice question."""
  choice = "the letter of the right option and a full stop."
  return {
    "chain": _STEPS.format(
      words=choice,
      example='for the question "Where is the cat?" with the options "A. right of the mug" and "B. left of the mug"',
      summary="Is the cat right or left of the mug?",
      caption=_CAPTION,
      word="B.",
    ),
    "short": _SHORT.format(words=choice, word="B."),
    "direct": f"Write nothing but {choice} For example: B.",
  }
