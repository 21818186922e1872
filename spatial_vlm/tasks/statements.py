"""The task of statements: whether a caption is true of an image."""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

from spatial_vlm.answer_extraction import TRUE_FALSE, YES_NO, extract_word
from spatial_vlm.answers import FORMS, STATEMENT, Grammar
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.evaluation.scores import score_statements
from spatial_vlm.tasks.explanations import explain_statements
from spatial_vlm.tasks.task import Question, Task, Template

LIST_OBJECTS = "List the objects."

INSTRUCTIONS: Mapping[str, str] = {
  "direct": "Answer Yes or No.",
  "chain": "Think in four steps: Summary, Caption, Reasoning, Conclusion.",
  "short": "Reasoning, Conclusion.",
}
"""Form of the answer → the project's instruction for it."""


def question(caption: str, form: str) -> str:
  """Returns the question whether `caption` holds, to be answered in `form` (see `answers`).

  >>> question("The cat is left of the mug.", "direct")
  'The cat is left of the mug. True? Answer Yes or No.'
  """
  return f"{caption} True? {instruction(form)}"


def instruction(form: str) -> str:
  """Returns the project's instruction for a form; ValueError, with the known ones, for any other."""
  if form not in INSTRUCTIONS:
    raise ValueError(f"form is {form!r}; allowed are {sorted(INSTRUCTIONS)}")
  return INSTRUCTIONS[form]


def behavior_prompt(line: str) -> str:
  """Returns the system turn that tells a policy to use the behavior of this line.

  >>> behavior_prompt("behavior_left_of: Compare the centres.")
  'Use behavior_left_of: Compare the centres.'
  """
  return f"Use {line}"


TASK = Task(
  read=JsonlSource,
  question=question,
  behavior_prompt=behavior_prompt,
  grammar=STATEMENT,
  first_words={1: "Yes", 0: "No"},
  score=functools.partial(score_statements, meta_category=META_CATEGORY),
  explanations=explain_statements({1: "Yes.", 0: "No."}),
)
"""True-or-false statements in VSR's record format."""


def _template(wording: str, direct: str, words: Mapping[int, str]) -> Template:
  """Returns a template of others.

  Args:
    wording: the question, with {} for the caption.
    direct: what follows it where the answer is the verdict alone. Other forms have the project's instruction there.
    words: verdict → the word that the wording asks for; a full stop may follow it.
  """

  def ask(caption: str, form: str) -> str:
    end = direct if form == "direct" else f" {instruction(form)}"
    return wording.replace("{}", caption) + end

  def extract(text: str, record: Question) -> int:
    return extract_word(text, YES_NO if words[1].lower() == "yes" else TRUE_FALSE)

  grammar = Grammar(FORMS, {verdict: rf"{word}\.?" for verdict, word in words.items()})
  return Template(
    question=ask,
    grammar=grammar,
    first_words=words,
    score=functools.partial(score_statements, meta_category=META_CATEGORY, grammar=grammar),
    extract=extract,
    explanations=explain_statements({verdict: f"{word}." for verdict, word in words.items()}),
  )


TEMPLATES: Mapping[str, Template] = MappingProxyType(
  {
    "vlmevalkit": _template(
      "{} Please answer yes or no.", " Please answer strictly Yes or No.", {1: "Yes", 0: "No"}
    ),
    "tri": _template(
      'Based on the image, is this statement "True" or "False"? {}',
      '\nRespond with "True" or "False" directly.',
      {1: "True", 0: "False"},
    ),
    "instructblip": _template(
      'Based on the image, is this statement true or false? "{}"',
      " Answer:",
      {1: "true", 0: "false"},
    ),
    "minigpt_v2": _template(
      "[vqa] Based on the image, is this statement true or false? {}",
      "",
      {1: "true", 0: "false"},
    ),
  }
)
"""Wordings of VSR's question in others' evaluations, word for word.

- `vlmevalkit`: questions of VLMEvalKit's `VSR-zeroshot` (`vsr_zeroshot_dataset_yn_strict.tsv`), as the metadata of the
  dataset `mm-eval/VSR` quote them.
- `tri`: TRI-ML/vlm-evaluation, `vlm_eval/models/prismatic.py` (there after a line break).
- `instructblip`: the same repository, `vlm_eval/models/instructblip.py`.
- `minigpt_v2`: Vision-CAIR/MiniGPT-4, `eval_scripts/eval_vqa.py` and `minigpt4/datasets/datasets/vqa_datasets.py`.

The cards of VSR on the Hugging Face hub (`cambridgeltl/vsr_random`, `vsr_zeroshot`) word no question.
"""

VSR = dataclasses.replace(TASK, templates=TEMPLATES)
"""VSR's two published splits, `random` and `zeroshot`: a file of one of them, or of `spatial-vlm data`.

Published records are JSON lines with image, image_link, caption, label (1 true, 0 false), relation, annotator_id,
vote_true_validator_id and vote_false_validator_id; the zero-shot split adds subj, obj and reference_frame. Source: Liu,
Emerson and Collier, arXiv 2205.00363; github.com/cambridgeltl/visual-spatial-reasoning.
"""
