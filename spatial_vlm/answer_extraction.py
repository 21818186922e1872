"""Extracted answers: what a text states in whatever form, as VLMEvalKit's rules read it.

A *strict* verdict is that of an answer in the form that was asked for (`answers.Grammar`). An *extracted* one is read
from any wording, so that a model that was never taught the form is measured fairly. Both are reported.

VLMEvalKit's rules (`vlmeval/dataset/utils/yorn.py`, `vlmeval/utils/matching_util.py`): a text says yes if it has the
word "yes" and not the word "no". It chooses an option if the letter of exactly one option stands alone, or if it holds
the text of exactly one option. Two things are added, since otherwise right chains of thought and `**Yes**` would count
as no answer: the conclusion is read first (what follows `</think>` and the last `Answer:` or `Conclusion:`), and the
whole text only where the conclusion states nothing; and Markdown is no part of a word.
"""

import re
import string
from collections.abc import Mapping, Sequence

YES_NO: Mapping[int, str] = {1: "yes", 0: "no"}
"""Verdict → the word that states it."""
TRUE_FALSE: Mapping[int, str] = {1: "true", 0: "false"}

_MARK = re.compile(
  r"(?:\banswer|\bconclusion)\b[ *_]*(?:is\b[ *_]*:?|:)[ *_]*|\\boxed(?=\{)", re.IGNORECASE
)
_STEPS = re.compile(r"\W*(?:summary|reasoning|applying '\w+')\W*:", re.IGNORECASE)
_LAST_WORD = re.compile(r"[.!?\n]\W*(\w+)\W*[.!]\W*$")
_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")
_FIRST_LETTER = re.compile(r"[\s*_`\"'(\[{]*([A-Z])(?:[\s*_`\"')\]}]*$|[*_`\"']*[.):\]}\n])")
_ARTICLE = re.compile(r"\bA (?!or |and |is )(?=[a-z])")
_LETTER_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}_`\"'", " "))
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
_DIGITS = {
  word: str(number)
  for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve".split()
  )
}


def conclusion(text: str) -> str | None:
  """Returns the part of a text that states its answer; None where it ends before that part.

  That is what follows the last `</think>`, and in it the last `Answer:`, `Conclusion:` or `\\boxed`. Without any of
  them it is the whole text, unless the text is an unfinished thought or unfinished steps.

  >>> conclusion("<think>No gap.</think>\\n**Answer:** Yes."), conclusion("Reasoning: there is no gap")
  ('Yes.', None)
  """
  return next(iter(conclusions(text)), None)


def conclusions(text: str) -> list[str]:
  """Returns the parts of a text that may state its answer, the likeliest first.

  They are what follows each mark (see `conclusion`), from the last one, then the whole text: "No. My answer is based on
  the image." states its answer before the mark. Steps without a mark state it in a last sentence of one word at most.
  Nothing where the text ends after a mark, or within a thought.

  >>> conclusions("No. My answer is based on it."), conclusions("Reasoning: it touches. Yes."), conclusions("Answer:")
  (['based on it.', 'No. My answer is based on it.'], ['Yes'], [])
  """
  _, thought_end, after = text.rpartition("</think>")
  if not thought_end and "<think>" in text:
    return []
  marked = [after[mark.end() :].strip() for mark in _MARK.finditer(after)][::-1]
  if marked and not marked[0]:
    return []
  if not _STEPS.match(after):
    return [*marked, after.strip()]
  last = _LAST_WORD.search(after)
  return marked or ([last[1]] if last else [])


def extract_word(text: str, words: Mapping[int, str] = YES_NO) -> int:
  """Returns the verdict whose word alone occurs in the conclusion, or else in the text; −1 for none or several.

  >>> [extract_word(text) for text in ("**Yes**", "no.", "Yes and no", "Conclusion: Yes.", "It is true.")]
  [1, 0, -1, 1, -1]
  """
  for stated in conclusions(text):
    found = {*_WORD.findall(stated.lower())}
    if verdicts := [verdict for verdict, word in words.items() if word in found]:
      return verdicts[0] if len(verdicts) == 1 else -1
  return -1


def extract_option(text: str, options: Sequence[str]) -> int:
  """Returns the number of the option that the conclusion, or else the text, chooses; −1 for none or several.

  A letter counts where the letter of no other option stands alone: at the beginning ("(B)", "**B**", "B. the cat") or
  anywhere. A lone "A" in a longer text is an article, and so is an "A" before a word. Without a letter, the text of one
  option counts.

  >>> pets = ("the cat", "a dog")
  >>> [extract_option(text, pets) for text in ("(B)", "Answer: **B**", "A cat is near", "a dog", "C", "A or B")]
  [1, 1, -1, 1, -1, -1]
  """
  letters = {string.ascii_uppercase[number]: number for number, text in enumerate(options) if text}
  for stated in conclusions(text):
    words = stated.translate(_LETTER_PUNCTUATION).split()
    alone = letters.keys() & {*words}
    if len(alone) > 1:
      without_articles = _ARTICLE.sub("", stated).translate(_LETTER_PUNCTUATION).split()
      alone = letters.keys() & {*without_articles}
    if len(alone) > 1:
      return -1
    first = _FIRST_LETTER.match(stated)
    if first and {first[1]} == alone:
      return letters[first[1]]
    if alone and not (alone == {"A"} and len(words) > 3):
      return letters[alone.pop()]
    if (option := _option_in(stated, options)) >= 0:
      return option
  return -1


def _option_in(stated: str, options: Sequence[str]) -> int:
  """Returns the number of the only option whose text occurs; an option inside a longer one that occurs does not count.

  As in VLMEvalKit, a text of more than twice the length of all options restates none.
  """
  if len(stated) > 2 * sum(map(len, options)):
    return -1
  spans = {}
  for number, option in enumerate(options):
    pattern = rf"(?<!\w){re.escape(option.strip().lower())}(?!\w)"
    if option.strip() and (match := re.search(pattern, stated.lower())):
      spans[number] = match.span()
  outer = [
    number
    for number, (start, end) in spans.items()
    if not any(s <= start and end <= e and (s, e) != (start, end) for s, e in spans.values())
  ]
  return outer[0] if len(outer) == 1 else -1


def extract_short(text: str, right: str) -> int:
  """Returns 0 where the conclusion states the right word or number, 1 where it states another, −1 where it states none.

  Numbers, yes and no are looked for in the whole text if the conclusion has none. A number counts if it is the only
  one, in digits or as a word up to twelve; of yes and no, exactly one must occur; any other answer is compared without
  case, articles and punctuation.

  >>> [extract_short(text, "3") for text in ("There are three cups.", "3.0", "**4**", "2 or 3", "")]
  [0, 0, 1, 1, -1]
  >>> [extract_short(text, "Left") for text in ("The left.", "left lane")]
  [0, 1]
  """
  found, wanted = conclusions(text), normalized(right)
  if not any(found):
    return -1
  if wanted in YES_NO.values():
    said = extract_word(text)
    return -1 if said < 0 else int(YES_NO[said] != wanted)
  if (number := as_number(right)) is not None:
    stated = next(filter(None, map(_numbers, found)), set())
    return int(stated != {number})
  return int(normalized(found[0]) != wanted)


def _numbers(text: str) -> set[float | None]:
  digits = re.sub(r"[A-Za-z]+", lambda word: _DIGITS.get(word[0].lower(), word[0]), text)
  return {as_number(found) for found in _NUMBER.findall(digits)}


def as_number(text: str) -> float | None:
  """Returns the number that a text is, in digits or as a word up to twelve; None for any other text.

  >>> as_number("1,200."), as_number("Two"), as_number("two cups")
  (1200.0, 2.0, None)
  """
  stripped = text.strip().rstrip(".")
  digits = _DIGITS.get(stripped.lower(), stripped)
  found = _NUMBER.fullmatch(digits)
  return float(digits.replace(",", "").replace("−", "-")) if found else None


def normalized(text: str) -> str:
  """Returns a short answer without case, articles and punctuation.

  >>> normalized(" The **Left** lane. ")
  'left lane'
  """
  words = re.findall(r"\w+(?:[.,:]\d+)*", text.lower())
  return " ".join(word for word in words if word not in ("the", "a", "an"))
