"""Statements in VSR's grammar: subject, relation, object."""

import re

_STATEMENT = re.compile(
  r"\s*(?:the|an?) (?P<subj>.+?) (?P<relation>(?:is|are) .+|contains?|consists? of|ha(?:s|ve) as a part)"
  r" (?:the|an?) (?P<obj>.+?)\s*[.?!]?\s*",
  re.IGNORECASE,
)
"""VSR's grammar, which every caption of its training and development splits follows."""


def read_statement(caption: str) -> tuple[str, str, str] | None:
  """Returns subject, relation (with its verb) and object of a caption in VSR's grammar; None for any other caption.

  >>> read_statement("The potted plant is at the right side of the dining table.")
  ('potted plant', 'is at the right side of', 'dining table')
  """
  match = _STATEMENT.fullmatch(caption)
  return match and (match["subj"], " ".join(match["relation"].lower().split()), match["obj"])
