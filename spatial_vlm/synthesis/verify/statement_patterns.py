"""Finds the statement of a record in a draft: its two objects by name, and sentences that assert or deny it."""

import re

from spatial_vlm.data.records import Record
from spatial_vlm.data.statement import read_statement
from spatial_vlm.synthesis.draft import Draft

SUBJECT_PRONOUNS = r"it|they|he|she"
_OBJECT_PRONOUNS = r"it|them|him|her|this|that"
_OTHER_RELATION = r"(?!away |front of )"
"""Words that would make another relation of the one before: "facing" and "facing away from it"."""
_NEVER = "(?!)"
"""Pattern without any match."""


def statement_objects(record: Record) -> tuple[str, str]:
  """Returns the subject and object of the statement; "" for one that neither caption nor fields name."""
  # The caption goes first, because VSR misspells some fields but no caption.
  if statement := read_statement(record.caption):
    return statement[0], statement[2]
  return record.subj or "", record.obj or ""


def match_objects(draft: Draft, record: Record) -> tuple[str, str]:
  """Returns the draft's names of the statement's subject and object; "" for one without its own box."""
  names = [name for name, _ in draft.objects]
  subject, other = (_find(name, names) for name in statement_objects(record))
  return subject, "" if other == subject else other


def asserted(record: Record, subject_pronouns: str = _NEVER) -> re.Pattern[str]:
  """Returns a pattern of the asserted statement: its words in order, with a few other words between them.

  It matches, for example, "the cat sits on a wooden table". `subject_pronouns` may stand for the subject; if they are
  given, pronouns may also stand for the object.
  """
  subject, other = map(_name_pattern, statement_objects(record))
  middle = r"(?:[\w'’-]+,? ){0,4}?"
  return re.compile(
    rf"\b(?:{subject}|{subject_pronouns}),? {middle}{_relation_pattern(record)} {_OTHER_RELATION}"
    rf"(?:[\w'’-]+ ){{0,2}}?(?:{other}{f'|{_OBJECT_PRONOUNS}' if subject_pronouns != _NEVER else ''})\b",
    re.IGNORECASE,
  )


def denied(record: Record) -> re.Pattern[str]:
  """Returns a pattern of the denied statement: "not" or "without", the relation and the object."""
  other = _name_pattern(statement_objects(record)[1])
  return re.compile(
    rf"(?:\b(?:can)?not|n['’]t|\bnor|\bnever|\bwithout) (?:(?!but\b|only\b)[\w'’-]+ ){{0,3}}?"
    rf"{_relation_pattern(record)} (?:[\w'’-]+ ){{0,2}}?(?:{other}|{_OBJECT_PRONOUNS})\b",
    re.IGNORECASE,
  )


def _find(wanted: str, names: list[str]) -> str:
  """Returns the first of `names` that equals `wanted` up to article, case and number; "" if there is none."""
  words = _normalized(wanted)
  variants = {words, f"{words}s", f"{words}es", words.removesuffix("s"), words.removesuffix("es")}
  return next((name for name in names if wanted and _normalized(name) in variants), "")


def _normalized(text: str) -> str:
  """Returns `text` in lower case, without articles and punctuation.

  >>> _normalized("The Red  mug.")
  'red mug'
  """
  return re.sub(r"^(?:the|an?) ", "", " ".join(re.findall(r"\w+", text.casefold())))


def _relation_pattern(record: Record) -> str:
  """Returns a pattern of the relation's words.

  "facing" also matches "faces"; "at the left side of" also matches after "on the".
  """
  first, *rest = re.sub(r"^(?:at|in) the ", "", record.relation.casefold()).split() or [""]
  stem = first.removesuffix("ing").removesuffix("s")
  if stem != first:
    return rf"{re.escape(stem)}(?:ing|es|e|s)?{''.join(' ' + re.escape(word) for word in rest)}"
  return re.escape(" ".join([first, *rest]))


def _name_pattern(name: str) -> str:
  return re.escape(name.casefold()) if name else _NEVER
