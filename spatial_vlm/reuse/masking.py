"""Object-masked questions: statements whose objects are replaced by X and Y."""

import re

from spatial_vlm.data.statement import read_statement


def mask_objects(caption: str, subj: str = "", obj: str = "") -> str:
  """Returns the caption with its objects replaced by X and Y.

  The names are read by VSR's grammar ("The SUBJ is RELATION the OBJ."), since VSR misspells some of its `subj` and
  `obj` fields. A caption of another shape keeps its words, except for the given `subj` and `obj`.

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
