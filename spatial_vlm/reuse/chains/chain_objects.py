"""The objects of a chain: their names, boxes, and the tokens that stand for them in a text."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

from spatial_vlm.answers import Answer, Box
from spatial_vlm.data.measurements import any_of, plain_spelling
from spatial_vlm.reuse.chains.comparison_words import object_token


@dataclasses.dataclass(frozen=True)
class Objects:
  """The objects of a chain: the statement's subject first, then its object, then those that only have a box."""

  names: tuple[str, ...]
  boxes: Mapping[str, Box]
  """By casefolded name."""
  aliases: Mapping[str, str]
  """Casefolded words that name an object ("table" for "dining table") → its name."""

  @classmethod
  def of(cls, answer: Answer, names: Iterable[str]) -> "Objects":
    """Returns the objects of a chain. The last word of a name names it if no other name ends in it.

    Without `names`, the Reasoning's first two objects are taken for those of the statement.
    """
    known = [name for name in (*names, *answer.boxes) if name]
    every = {name.casefold(): name for name in reversed(known)}
    mentioned = re.findall(any_of(known), answer.steps["reasoning"], re.IGNORECASE)
    ordered = dict.fromkeys(every[n.casefold()] for n in (*filter(None, names), *mentioned, *known))
    heads = collections.Counter(name.split()[-1] for name in every)
    short = {name.split()[-1]: full for name, full in every.items() if heads[name.split()[-1]] == 1}
    boxes = {name.casefold(): box for name, box in reversed(answer.boxes.items())}
    return cls(tuple(ordered), boxes, short | every)

  def hide(self, text: str) -> str:
    """Returns the text with a token for each name of an object."""
    tokens = dict(zip(self.names, self.tokens, strict=True))
    token = lambda match: tokens[self.aliases[match[0].casefold()]]  # noqa: E731
    return re.sub(any_of(self.aliases), token, text, flags=re.IGNORECASE)

  @property
  def tokens(self) -> tuple[str, ...]:
    return tuple(map(object_token, range(len(self.names))))

  def name(self, token: str) -> str:
    """Returns the object of a token; "" of ""."""
    return self.names[len(token) - 3] if token else ""

  def box(self, name: str) -> Box | None:
    return self.boxes.get(name.casefold())


def reasoning(answer: Answer, objects: Objects) -> str:
  """Returns the Reasoning as the readers here need it: plainly spelled, with tokens for objects."""
  return objects.hide(plain_spelling(answer.steps["reasoning"]))
