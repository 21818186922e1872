"""Tasks of multiple choice, and of questions that ask for a letter, a word or a number."""

import dataclasses
import functools
import re
from collections.abc import Callable

from spatial_vlm.answer_extraction import extract_option, extract_short, normalized
from spatial_vlm.answers import FORMS, Grammar
from spatial_vlm.data.benchmark_record import BenchmarkRecord
from spatial_vlm.data.benchmarks.fields import LETTERS, Fields
from spatial_vlm.data.benchmarks.source import BenchmarkSource
from spatial_vlm.evaluation.scores import score
from spatial_vlm.tasks.explanations import explain_choices, explain_short
from spatial_vlm.tasks.statements import behavior_prompt, instruction
from spatial_vlm.tasks.task import Question, Task, Template, parsed_verdict, wording

CHOICE = Grammar(FORMS, {number: rf"{letter}\.?" for number, letter in enumerate(LETTERS)})
"""Answers that end in the letter of an option, A to Z; the verdict is its number."""
SHORT = Grammar(FORMS, {0: r"[^ \n][^\n]*"})
"""Answers that end in a word or a number: one line. Which one it is, `strict_short` compares."""


def choice_question(caption: str, form: str) -> str:
  """Returns a multiple-choice question with the project's instruction.

  >>> choice_question("Question: Where is it?\\nOptions:\\nA. left\\nB. right", "direct").splitlines()[-1]
  "Answer with the option's letter."
  """
  return f"{caption}\n{_LETTER_ALONE if form == 'direct' else instruction(form)}"


_LETTER_ALONE = "Answer with the option's letter."


def _vlmevalkit_question(caption: str, form: str) -> str:
  end = "" if form == "direct" else f" {instruction(form)}"
  return f"{caption}\nPlease select the correct answer from the options above.{end}"


def short_question(caption: str, form: str) -> str:
  """Returns a question whose caption says what the answer must be; another form has its instruction in that place.

  >>> short_question("How many?\\nPlease answer directly with a single word or number.", "chain")
  'How many?\\nThink in four steps: Summary, Caption, Reasoning, Conclusion.'
  """
  if form == "direct":
    return caption
  return f"{_DIRECTLY.sub('', caption)}\n{instruction(form)}"


_DIRECTLY = re.compile(r"\s*\bPlease answer directly with [^\n]*$", re.IGNORECASE)
"""RealWorldQA's instruction, which contradicts any other form."""


def extract_choice(text: str, record: Question) -> int:
  """Returns the number of the option that the text chooses; −1 for none."""
  return extract_option(text, record.options)


def strict_short(grammar: Grammar, text: str, record: Question) -> int:
  """Returns the number of the option whose letter ends the answer; without options, 0 for the right words, else 1.

  −1 where the text is no answer of the grammar. Words are compared without case, articles and punctuation.
  """
  if record.options:
    return parsed_verdict(CHOICE, text, record)
  if grammar.parse(text) is None:
    return -1
  return int(normalized(text.rpartition("Conclusion: ")[2]) != normalized(_right(record)))


def extract_choice_or_short(text: str, record: Question) -> int:
  """Returns the number of the option that the text chooses; without options, 0 for the right words, 1 for others."""
  if record.options:
    return extract_choice(text, record)
  return extract_short(text, _right(record))


def _right(record: Question) -> str:
  return record.right if isinstance(record, BenchmarkRecord) else ""


def choice_task(to_record: Callable[[Fields], BenchmarkRecord | None]) -> Task:
  """Returns a task of multiple choice, from a function of a row's fields."""
  letters = Template(
    question=choice_question,
    grammar=CHOICE,
    first_words=dict(enumerate(LETTERS)),
    score=functools.partial(score, grammar=CHOICE),
    extract=extract_choice,
    explanations=explain_choices(),
  )
  return Task(
    read=functools.partial(BenchmarkSource, to_record=to_record),
    behavior_prompt=behavior_prompt,
    **wording(letters),
    templates={"vlmevalkit": dataclasses.replace(letters, question=_vlmevalkit_question)},
  )


def short_task(to_record: Callable[[Fields], BenchmarkRecord | None]) -> Task:
  """Returns a task whose answers are letters, words or numbers, as each question says."""
  return Task(
    read=functools.partial(BenchmarkSource, to_record=to_record),
    question=short_question,
    behavior_prompt=behavior_prompt,
    grammar=SHORT,
    first_words={},
    score=functools.partial(score, grammar=SHORT),
    extract=extract_choice_or_short,
    strict=strict_short,
    explanations=explain_short(),
  )
