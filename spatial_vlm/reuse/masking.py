"""What statements ask, without the objects that they ask about."""

import re

from spatial_vlm.data.statement import read_statement


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
