"""Statements in VSR's grammar, and what they ask without the objects that they ask about."""

import re

_STATEMENT = re.compile(
  r"\s*(?:the|an?) (?P<subj>.+?) (?P<relation>(?:is|are) .+|contains?|consists? of|ha(?:s|ve) as a part)"
  r" (?:the|an?) (?P<obj>.+?)\s*[.?!]?\s*",
  re.IGNORECASE,
)
"""VSR's grammar, which every caption of its training and development splits follows."""


def read_statement(caption: str) -> tuple[str, str, str] | None:
  """Subject, relation (with its verb) and object of a caption in VSR's grammar; None for any other caption.

  >>> read_statement("The potted plant is at the right side of the dining table.")
  ('potted plant', 'is at the right side of', 'dining table')
  """
  match = _STATEMENT.fullmatch(caption)
  return match and (match["subj"], " ".join(match["relation"].lower().split()), match["obj"])


def mask_objects(caption: str, subj: str = "", obj: str = "") -> str:
  """The question that a caption asks, its objects replaced by X and Y.

  The names are taken from VSR's grammar ("The SUBJ is RELATION the OBJ."). A caption of another shape keeps its
  words, except for `subj` and `obj` where they are given and stand in it. (VSR misspells some of these fields, so
  that the grammar is the better witness.)

  >>> mask_objects("The potted plant is at the right side of the dining table.")
  'The X is at the right side of the Y.'
  >>> mask_objects("A cat sits on my mug", "cat", "mug")
  'A X sits on my Y'
  """
  if statement := read_statement(caption):
    return f"The X {statement[1]} the Y."
  letters = {name.casefold(): letter for name, letter in ((obj, "Y"), (subj, "X")) if name}
  if not letters:
    return caption
  longest_first = sorted(letters, key=len, reverse=True)
  names = re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
  return names.sub(lambda match: letters[match[0].casefold()], caption)
