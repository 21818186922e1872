"""What a policy was not trained to be asked: images, words and forms of answers outside its training data."""

import logging
import re
from collections.abc import Iterable, Sequence

from etils import epath
from transformers import PreTrainedTokenizerFast

from spatial_vlm.huggingface.folder import find_folder
from spatial_vlm.huggingface.model_card import Knowledge, read_knowledge
from spatial_vlm.inference.questions import question_words
from spatial_vlm.tasks.task import Task

log = logging.getLogger(__name__)

LEAST_LETTERS = 3
"""Shorter words are no sign of a foreign vocabulary, even where each letter is a token."""


def unknown_form(folder: epath.Path, task: Task, form: str) -> str | None:
  """Returns why the policy of a folder may not answer in a form; None where it was trained to.

  A folder that `sft` and `dapo` did not write says nothing about forms. Such a model may well answer yes or no, but
  hardly in a form of this project.
  """
  known = read_knowledge(folder)
  if known is None:
    if form == "direct":
      return None
    return f"{folder} does not say that it learnt to answer in the form {form!r}, as policies of `sft` do"
  if form in known.forms or form not in question_words(task):
    return None
  learnt = f"it learnt {', '.join(known.forms)}" if known.forms else "it learnt none"
  return (
    f"{folder} was not trained to answer in the form {form!r} ({learnt}); the answer may be noise"
  )


def warn_of_forms(checkpoint: str, task: Task, forms: Iterable[str]) -> None:
  """Logs a warning for each form that the policy of a checkpoint folder was not trained to answer in."""
  folder = find_folder(checkpoint)
  for reason in (unknown_form(folder, task, form) for form in forms):
    if reason:
      log.warning("%s", reason)


def unfamiliar_image(known: Knowledge, size: tuple[int, int]) -> str | None:
  """Returns how an image (width, height) differs from the training images in size; None where it does not."""
  sides = (("wide", size[0], known.image_width), ("high", size[1], known.image_height))
  outside = [
    f"{pixels} pixels {name} (trained on {span[0]} to {span[1]})"
    for name, pixels, span in sides
    if span and not span[0] <= pixels <= span[1]
  ]
  return f"the image is {' and '.join(outside)}" if outside else None


def unfamiliar_words(tokenizer: PreTrainedTokenizerFast, statement: str) -> Sequence[str]:
  """Returns the words of a statement that the tokenizer spells letter by letter: its vocabulary lacks them."""
  words = dict.fromkeys(re.findall(rf"[^\W\d_]{{{LEAST_LETTERS},}}", statement))
  return [word for word in words if len(tokenizer.tokenize(f" {word}")) >= len(word)]
