"""From the fields of a row to the question that it holds: options, right answer, strata.

Each function takes the fields by column, as a table gives them, and raises ValueError with the fault of a bad row.
"""

import ast
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spatial_vlm.answer_extraction import YES_NO, normalized
from spatial_vlm.data.benchmark_record import BenchmarkRecord

Fields = Mapping[str, Any]
LETTERS = string.ascii_uppercase

_LETTER = re.compile(r"\s*[(\[]?([A-Za-z])[)\]]?[.:)]?\s*")
_OWN_LETTER = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*")
_OPTION_LINE = re.compile(r"^\s*\(?([A-Z])[.)]\s*(.+?)\s*$", re.MULTILINE)
_YES_NO_WORDING = re.compile(
  r"(?:\s+(?:please )?answer(?: the question)?(?: strictly)?(?: with)? \W?yes\W? or \W?no\b\W{0,2})+$",
  re.IGNORECASE,
)


def choice_record(
  fields: Fields,
  options: Sequence[str] = ("choices", "options", "answer_options"),
  relation: Sequence[str] = ("category",),
  strata: Sequence[str] = (),
  group: Callable[[Fields], str] = lambda fields: "",
) -> BenchmarkRecord:
  """Returns a multiple-choice question, worded as VLMEvalKit does: hint, question, options.

  Args:
    fields: of a row.
    options: columns with a list of options, of which the first that the row has counts. Columns A, B, … come first.
    relation: columns of the finest category, of which the first that the row has counts.
    strata: columns of further categories; those that the row lacks are skipped.
    group: fields → group of circular evaluation.
  """
  texts = _options(fields, options)
  hint = f"Hint: {fields['hint']}\n" if fields.get("hint") else ""
  listed = "\n".join(f"{LETTERS[n]}. {text}" for n, text in enumerate(texts) if text)
  return BenchmarkRecord(
    image=_image(fields),
    caption=f"{hint}Question: {_text(fields, 'question')}\nOptions:\n{listed}",
    label=choice(fields.get("answer"), texts),
    relation=_first(fields, relation),
    options=texts,
    strata=_strata(fields, strata),
    group=group(fields),
  )


def yes_no_record(
  fields: Fields, relation: Sequence[str] = ("category",), strata: Sequence[str] = ()
) -> BenchmarkRecord:
  """Returns a question or statement that is answered by yes or no, without the file's instruction to do so."""
  return BenchmarkRecord(
    image=_image(fields),
    caption=_YES_NO_WORDING.sub("", _text(fields, "question")),
    label=yes_no(fields.get("answer")),
    relation=_first(fields, relation),
    strata=_strata(fields, strata),
  )


def short_record(fields: Fields, relation: Sequence[str] = ("category",)) -> BenchmarkRecord:
  """Returns a question whose answer is a letter, a word or a number, with the instruction that the file gives.

  Options are read from columns A, B, …, or from lines of the question; where the answer is no letter, there are none.
  """
  if any(fields.get(letter) is not None for letter in LETTERS):
    return choice_record(fields, relation=relation)
  question, answer = _text(fields, "question"), _text(fields, "answer")
  found = {letter: text for letter, text in _OPTION_LINE.findall(question)}
  named = list(found) == list(LETTERS[: len(found)])
  options = tuple(found.values()) if len(found) > 1 and named and _LETTER.fullmatch(answer) else ()
  return BenchmarkRecord(
    image=_image(fields),
    caption=question,
    label=choice(answer, options) if options else 0,
    relation=_first(fields, relation),
    options=options,
    right="" if options else answer,
  )


def shuffled_record(
  image: str, question: str, options: Sequence[str], relation: str, strata: Mapping[str, str]
) -> BenchmarkRecord:
  """Returns a multiple-choice question from options of which the file lists the right one first.

  Their order is drawn from image and options, so that it is the same in every run and the answer is not always A.
  """
  order = list(range(len(options)))
  random.Random("\0".join([image, *options])).shuffle(order)
  asked = {"question": question, "options": [options[n] for n in order], "answer": order.index(0)}
  fields = {**asked, "category": relation, "image_name": image, **strata}
  return choice_record(fields, strata=tuple(strata))


def choice(answer: Any, options: Sequence[str]) -> int:
  """Returns the number of the right option: given as a letter, in parentheses or not, a text, or a number from 0.

  >>> options = ("2", "3", "4")
  >>> choice("(B)", options), choice("3", options), choice(1, options), choice("c.", options)
  (1, 1, 1, 2)
  """
  number = -1
  if isinstance(answer, int) and not isinstance(answer, bool):
    number = answer
  elif isinstance(answer, str):
    same = [n for n, option in enumerate(options) if normalized(option) == normalized(answer) != ""]
    if match := _LETTER.fullmatch(answer):
      number = LETTERS.index(match[1].upper())
    elif len(same) == 1:
      number = same[0]
    elif answer.strip().isdigit():
      number = int(answer)
  if not (0 <= number < len(options) and options[number]):
    raise ValueError(
      f"answer is {answer!r}, which names none of the options {', '.join(filter(None, options))!r}; answers of test "
      "splits are often hidden"
    )
  return number


def yes_no(answer: Any) -> int:
  """Returns 1 for yes and 0 for no, given as a word (or true and false), a number or a truth value.

  >>> yes_no("Yes"), yes_no("no."), yes_no(1), yes_no(False)
  (1, 0, 1, 0)
  """
  words = {word: verdict for verdict, word in YES_NO.items()} | {
    "true": 1,
    "false": 0,
    "1": 1,
    "0": 0,
  }
  if (word := normalized(str(answer))) not in words:
    raise ValueError(f"answer is {answer!r}; it must be yes or no")
  return words[word]


def _options(fields: Fields, columns: Sequence[str]) -> tuple[str, ...]:
  """Returns the options, "" for a letter without one."""
  lettered = [_option(fields.get(letter)) for letter in LETTERS]
  while lettered and not lettered[-1]:
    lettered.pop()
  column = next((name for name in columns if fields.get(name) is not None), None)
  if not lettered and column:
    lettered = [_option(text) for text in _listed(fields[column])]
    letters = [_OWN_LETTER.match(text) for text in lettered]
    if all(match and (match[1] or match[2]) == LETTERS[n] for n, match in enumerate(letters)):
      lettered = [_OWN_LETTER.sub("", text, count=1) for text in lettered]
  if not 2 <= sum(map(bool, lettered)) or len(lettered) > len(LETTERS):
    raise ValueError(
      f"the row has {sum(map(bool, lettered))} options; 2 to {len(LETTERS)} must be in the columns A, B, … or one of "
      f"{', '.join(columns)}"
    )
  return tuple(lettered)


def _option(value: Any) -> str:
  return "" if value is None else " ".join(str(value).split())


def _listed(value: Any) -> list[Any]:
  """Returns a list, which a TSV writes as text in JSON or Python."""
  if isinstance(value, str):
    try:
      value = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      value = None
  if not isinstance(value, list | tuple):
    raise ValueError("the options are no list")
  return list(value)


def _text(fields: Fields, name: str) -> str:
  value = fields.get(name)
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"{name} is {value!r}; it must be text")
  return value.strip()


def _image(fields: Fields) -> str:
  found = (fields.get(name) for name in ("image_name", "image_source", "filename", "image_path"))
  return next((value for value in found if isinstance(value, str) and value), "")


def _first(fields: Fields, names: Sequence[str]) -> str:
  return next((str(fields[name]) for name in names if fields.get(name) is not None), "all")


def _strata(fields: Fields, names: Sequence[str]) -> dict[str, str]:
  return {name: str(fields[name]) for name in names if fields.get(name) is not None}
