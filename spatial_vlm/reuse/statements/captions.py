"""Statements about X and Y in VSR's grammar, made from the key of a relation."""

import re

from spatial_vlm.data.relation_wordings import WORDINGS
from spatial_vlm.reuse.statements.relation_keys import relation_key

_KEY = re.compile(r"(not )?(reversed )?(.+?)(?:, from (.+)'s viewpoint)?")


def caption_template(relation: str) -> str:
  """Returns a relation's caption in VSR's grammar.

  >>> caption_template("left of"), caption_template("contains")
  ('The {X} is left of the {Y}.', 'The {X} contains the {Y}.')
  """
  has_verb = relation.split()[0] in ("contains", "consists", "has")
  return f"The {{X}} {'' if has_verb else 'is '}{relation} the {{Y}}."


def masked_caption(key: str) -> str:
  """Returns a statement about X and Y with the relation key; "" for an unknown key.

  >>> masked_caption("contains"), masked_caption("not near")
  ('The X contains the Y.', 'The X is not near the Y.')
  >>> masked_caption("reversed left of, from X's viewpoint")
  "The X has the Y left of it, from the X's point of view."
  """
  parts = _KEY.fullmatch(key)
  if parts is None or parts[3] not in WORDINGS:
    return ""
  negation, is_reversed, relation, viewer = parts.groups()
  text = caption_template(relation).format(X="X", Y="Y").rstrip(".")
  if is_reversed:
    text = f"The X has the Y {relation} it"
  if negation and " is " in text:
    text = text.replace(" is ", " is not ", 1)
  elif negation:
    text = f"It is false that t{text[1:]}"
  text += f", from the {viewer}'s point of view." if viewer else "."
  return text if relation_key(text) == key else ""


def relation_in_words(words: str) -> str:
  """Returns the relation key of a relation as people write it; "" for an unknown one.

  >>> relation_in_words("is to the left of"), relation_in_words("contains"), relation_in_words("not touching")
  ('left of', 'contains', 'not touching')
  >>> relation_in_words("reversed behind"), relation_in_words("has behind it")
  ('reversed behind', 'reversed behind')
  """
  words = " ".join(words.split())
  if masked_caption(words):
    return words
  words = re.sub(r"^(?:is|are) ", "", words)
  with_object = re.sub(r"^(has|have|with) (?!the )", r"\1 the Y ", words)
  captions = (f"The X is {words} the Y.", f"The X {words} the Y.", f"The X {with_object}.")
  return next(filter(None, map(relation_key, captions)), "")
