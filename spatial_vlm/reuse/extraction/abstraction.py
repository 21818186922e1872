"""From the reasoning about one image to words that fit any: X and Y for the objects, no numbers."""

import re
from collections.abc import Iterable, Mapping

from spatial_vlm.answers import Answer
from spatial_vlm.reuse.statements.relation_keys import relation_key

BLANK = "…"
"""Stands for a number that is no coordinate ("only 20 units")."""
_VALUE = re.compile(r"\s*=\s*-?\d+(?:\.\d+)?%?")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?%?(?!\w)")
_EMPTY = re.compile(r"\(\s*[,;]*\s*\)")
_SENTENCE = re.compile(r"(?<=[.;])\s+")
_CLAUSE = re.compile(r"\s*[,;:]\s+")
_SIGN = re.compile(r"[<>≤≥=≈]")
_CONCLUSION = re.compile(r"[,;]?\s*\b(?:so|hence|thus|therefore|which means)\b.*$", re.IGNORECASE)
_OPENING = re.compile(r"^(?:since|because|as|given that|and|but|here|there)\b,?\s*", re.IGNORECASE)
_MEASURES = re.compile(r"\bspans?\b|\bcentred? (?:is )?at\b", re.IGNORECASE)
_EMPTY_CLAUSE = re.compile(r"(?:comparing|which)\b.*", re.IGNORECASE)
ANOTHER = "another object"
_NOUN = r"(?:left|right|top|bottom) (?:edge|side)|cent(?:re|er)|middle|width|height|area|gap|distance|overlap"
_MEASURED = re.compile(
  rf"(?=.*\b(?:{_NOUN}|[xywhd])\b)(?:(?:(?:[XY]|{ANOTHER})(?:'s)?|{_NOUN}|[xywhd]|the|its|of|to|and)\b ?)+"
)
"""A measurement whose number was dropped ("X centre x"): it compares nothing."""


def object_pattern(names: Iterable[str]) -> re.Pattern[str] | None:
  """Matches any of the names as whole words, with a plural s and an article; None without a name."""
  listed = sorted({name.casefold() for name in names if name.strip()}, key=len, reverse=True)
  if not listed:
    return None
  any_name = "|".join(map(re.escape, listed))
  return re.compile(rf"(?:\b(?:the|an?)\s+)?\b(?P<name>{any_name})(?:e?s)?\b", re.IGNORECASE)


def masked_reasoning(answer: Answer, names: tuple[str, str]) -> str:
  """Returns the Reasoning of a chain with X and Y for its two objects, coordinates without values, and BLANKs.

  >>> from spatial_vlm import answers
  >>> text = answers.render_chain("s", "cat [0, 0, 9, 9]", "The cat's top y=0 < the mug's top y=9, so yes.", 1)
  >>> masked_reasoning(answers.STATEMENT.parse(text), ("cat", "mug"))
  "X's top y < Y's top y, so yes."
  """
  letters = {names[1].casefold(): "Y", names[0].casefold(): "X"}
  pattern = object_pattern((*names, *answer.boxes))
  text = answer.steps["reasoning"]
  if pattern is not None:
    text = pattern.sub(lambda match: _letter(match["name"], letters), text)
  text = _NUMBER.sub(BLANK, _VALUE.sub("", text))
  return re.sub(r"\s+([,.;)])", r"\1", " ".join(_EMPTY.sub("", text).split()))


def deciding_sentences(masked: str, relation: str) -> list[str]:
  """Returns what is left of a masked reasoning as a rule.

  Dropped are measurements (also "X centre x", without a sign or a verb), conclusions, clauses that only state the
  relation itself, clauses from which a number is missing, and comparisons that do not say whose coordinates they
  compare.

  >>> deciding_sentences("X spans x to x; Y spans x to x. Since X x < Y x, X is left of Y.", "left of")
  ['X x < Y x']
  >>> deciding_sentences("The head of X points to Y, only … units away. So X is facing Y.", "facing")
  ['the head of X points to Y']
  """
  kept = []
  for sentence in _SENTENCE.split(masked):
    if _MEASURES.search(sentence) and not _SIGN.search(sentence):
      continue
    clauses = _CLAUSE.split(_CONCLUSION.sub("", sentence).strip(" .;,"))
    clauses = [_OPENING.sub("", clause.strip()) for clause in clauses]
    if rule := ", ".join(clause for clause in clauses if _is_rule(clause, relation)):
      kept.append(rule if rule[0] in "XY" else rule[0].lower() + rule[1:])
  return kept


def _is_rule(clause: str, relation: str) -> bool:
  says_whose = re.search(r"\b[XY]\b", clause) or not _SIGN.search(clause)
  restates = relation_key(clause) == relation
  return bool(
    clause
    and says_whose
    and BLANK not in clause
    and not restates
    and not _EMPTY_CLAUSE.match(clause)
    and not _MEASURED.fullmatch(clause)
  )


def _letter(name: str, letters: Mapping[str, str]) -> str:
  return letters.get(name.casefold(), ANOTHER)
