"""Reads which relation a caption states: the key by which behaviors are looked up.

  The cat is to the left of the dog.                        left of
  On the left-hand side of the dog is a cat.                left of
  The cat isn't left of the dog.                            not left of
  The cat is left of the dog from the dog's point of view.  left of, from Y's viewpoint
  The dog has the cat behind it.                            reversed behind

A caption is read as a whole or not at all: words that neither this grammar nor the name of an object can hold leave
the caption without a key, and its similarity decides. A name has at most four words, none of them a preposition, a
modal verb or a quantifier. Negations, viewpoints and hedges ("almost", "or") are found in any sentence, so that
similarity never equates a statement with its qualified form. A hedged statement has no key.
"""

import dataclasses
import functools
import re

from spatial_vlm.data.relation_wordings import MUTUAL, SYMMETRIC, WORDINGS

_FUNCTION_WORDS = (
  "the|an?|to|of|from|on|in|at|by|with|under|over|above|below|beneath|behind|beside|between|among|amongst|around|along"
  "|across|through|into|onto|off|out|up|down|towards?|past|near|next|beyond|after|before|against|within|inside"
  "|outside|without|atop|underneath|opposite|adjacent|close|far|left|right|front|back|sides?|top|bottom|middle"
  "|cent(?:er|re)|edge|corner|end|rear|part|half|and|or|but|nor|not|no|than|as|is|are|was|were|be|being|been|has|have"
  "|having|had|does|do|did|that|which|who|whom|whose|while|where|when|if|then|so|because|its?|they|them|there|here"
  "|only|almost|nearly|views?|viewpoint|perspective|each|one|another|other|you|we|i|can|sees?|seen|parallel|touching"
  "|facing|own|might|may|could|should|would|must|shall|will|cannot|ought|seldom|rarely|hardly|scarcely|barely|never"
  "|probably|possibly|perhaps|maybe|likely|unlikely|sometimes|often|always|nothing|nobody|none|noone|few|every|all|most"
)
"""Words that no object's name contains: a reading that would need one in a name is wrong."""
_DETERMINER = "(?:(?:the|an?|one|this|that|some|my|your|his|her|their|our) )?"
_WORD = rf"(?!(?:{_FUNCTION_WORDS})\b)[^\W_][\w'-]*"
_NAME = rf"{_WORD}(?: {_WORD}){{0,3}}?"
_X, _Y = (rf"{_DETERMINER}(?P<{letter}>{_NAME})" for letter in "xy")
_LINK = (
  r"(?:(?:is|are|was|were|be|being|'s|(?:appears?|seems?)(?: to be)?|can|does|do|did|stands?|standing|sits?|sitting"
  r"|lies?|lying|rests?|resting|seated|parked|perched|stays?|remains?|located|positioned|situated|placed|found|spotted"
  r"|seen|shown|visible|that|which|also|just|clearly|indeed|currently|now|immediately"
  r"|right(?= (?:next|beside|behind|by|near|above|below|under|in|on|at|against)\b)) )"
)
_PICTURE = "(?:the|this) (?:image|picture|photo|photograph|scene|frame)"
_LEAD = (
  rf"(?:(?:there|here) (?:is|are|appears? to be|seems? to be|stands|sits|lies) |(?:is|are|does|do|did) (?:there )?"
  rf"|(?:i|you|we|one) (?:can )?(?:see|find|spot|notice) |in {_PICTURE},? |it is true that "
  rf"|{_PICTURE} (?:shows|depicts|has) )"
)
_RELATION = "(?:{})".format("|".join(f"(?P<r{i}>{w})" for i, w in enumerate(WORDINGS.values())))
_MUTUAL = "(?:{})".format("|".join(f"(?P<m{i}>{w})" for i, w in enumerate(MUTUAL.values())))
_POSTURE = "(?:standing|sitting|lying|resting|seated|located|positioned|placed)"
_ON_ITS = f"(?: {_POSTURE})? (?:to|on|at) (?P<its>its|his|her|their)"
_LEFT_OR_RIGHT = "(?:own )?(?P<side>left|right)(?:[- ]hand)?(?: side)?"
_SENTENCES = tuple(
  re.compile(pattern)
  for pattern in (
    f"(?P<lead>{_LEAD}*){_X},? (?P<link>{_LINK}*){_RELATION} {_Y}",
    f"{_RELATION} {_Y},? (?P<lead>(?:{_LINK}|{_LEAD})+){_X}",
    f"{_LEAD}*{_X} and {_Y} {_LINK}*(?:{_RELATION} (?P<mutual>each other|one another)|{_MUTUAL})",
    f"{_LEAD}*{_X} (?P<part>has|have) {_Y} as a part",
    f"{_LEAD}*{_X} (?P<reversed>has|have|with) {_Y}(?: {_POSTURE})? {_RELATION} (?:it|him|her|them)",
    f"{_LEAD}*{_X} (?P<reversed>has|have|with) {_Y}{_ON_ITS} {_LEFT_OR_RIGHT}",
    f"{_LEAD}*{_X},? {_LINK}*(?:to|on|at) {_Y}'s {_LEFT_OR_RIGHT}",
  )
)
_VERBS = (
  "contains",
  "consists of",
  "has as a part",
  "facing",
  "facing away from",
  "surrounding",
  "touching",
)
"""Relations that a verb of their own may say, without "is"."""
_WEAK = ("to", "from", "by", "at", "with", "after", "through")
"""Relations whose preposition means something else after most verbs ("seen by", "found after")."""
_BE = re.compile("(?:(?:is|are|was|were|be|that|which|also|just) )*")
_SIGHT = "(?:point of view|viewpoint|vantage point|perspective|standpoint|view|eyes|side|angle)"
_VIEWER = "(?:(?:the|a) )?(?:camera|viewer|observer|photographer)"
_CAMERA = re.compile(
  rf",? ?\b(?:as |when )?(?:seen |viewed )?from (?:{_VIEWER}'s|our|my|your) {_SIGHT}\b,?"
  rf"|,? ?\bfrom the {_SIGHT} of {_VIEWER}\b,?| (?:in|of) {_PICTURE}$"
)
"""The default frame: the picture as the camera shows it."""
_VIEWPOINT = re.compile(
  r",? ?\b(?:as |when )?(?:seen |viewed |judged )?(?:"
  rf"(?:from|through) (?:{_DETERMINER}(?P<a>{_NAME})'s|(?P<b>its|his|her|their)) (?:own )?{_SIGHT}"
  rf"|from the {_SIGHT} of {_DETERMINER}(?P<c>{_NAME})"
  rf"|from where {_DETERMINER}(?P<d>{_NAME}) (?:is|stands|sits|lies)"
  rf"|(?:seen|viewed) (?:by|from) {_DETERMINER}(?P<e>{_NAME})"
  rf"|as {_DETERMINER}(?P<f>{_NAME}) sees it)\b,?"
)
_NEGATIONS = re.compile(
  r"\b(?:not|never|nowhere|neither|no longer|nothing|nobody|none|noone|without|fails? to|anything but)\b ?|n't\b"
  r"|(?<=can)not\b|\bfar from (?:being|actually)\b ?|(?<!\bthe )(?<!\ba )\bno\b ?"
  r"|\b(?:it is )?(?:false|untrue|wrong|incorrect|a lie) that |\b(?:deny|denies|denied|denying)\b ?"
  r"|,? (?:which|that|but this|but that) is (?:a lie|false|untrue|wrong|incorrect)$"
)
"""Words that negate; "the no parking sign" has none."""
_WITHOUT_APOSTROPHE = re.compile(
  r"\b(ai|is|are|was|were|do|does|did|has|have|had|ca|wo|could|should|would|might|must)nt\b"
)
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘´`ʼ′", "'"))
_HEDGES = re.compile(
  r"\b(?:almost|nearly|partly|partially|barely|hardly|scarcely|seldom|rarely|sometimes|few|half|might|may|could|should"
  r"|would|will|shall|must|maybe|perhaps|possibly|probably|likely|unlikely|doubt(?:s|ed|ful)?|pretend(?:s|ed)?"
  r"|refuse[sd]?|avoid(?:s|ed)?|wants?|wanted|hates?|dislikes?|tries|tried|claims?|claimed|said|guess|thinks?|thought"
  r"|believed?|supposedly|allegedly|or|either|rather|instead|except|unless|if|only|supposed|used|until|reverse"
  r"|opposite of what)\b"
)
_REVERSALS = re.compile(
  r"\b(?:has|have|with)\b.* (?:it|him|her|them|(?:its|his|her|their) (?:\w+ ?){1,3})$|\bwhose\b"
)


@dataclasses.dataclass(frozen=True)
class Reading:
  """The relation that a caption states about X and Y."""

  key: str
  """The relation of VSR, with "not", "reversed" and the viewpoint, if the caption has them."""
  subject: str
  """Name of the object X, without article, in lower case."""
  other: str
  """Name of the object Y."""


def relation_key(caption: str) -> str | None:
  """Returns the key of the relation that a caption states; None if the caption cannot be read.

  >>> relation_key("There is a cat to the left of the dog.")
  'left of'
  >>> relation_key("The cat isn't at the right-hand side of the dog.")
  'not at the right side of'
  >>> relation_key("The cat is left of the dog, seen from the dog's point of view.")
  "left of, from Y's viewpoint"
  >>> relation_key("The cat is fond of the dog.") is None
  True
  """
  reading = read_relation(caption)
  return reading and reading.key


@functools.lru_cache(maxsize=65_536)
def read_relation(caption: str) -> Reading | None:
  """Returns the relation and the objects of a caption; None if any part of the caption is unknown."""
  text, viewpoint, negations = _without_qualifiers(caption)
  if _HEDGES.search(text) or viewpoint in ("its", "his", "her", "their"):  # whose view is not said
    return None
  matches = filter(None, (sentence.fullmatch(text) for sentence in _SENTENCES))
  for groups in (match.groupdict() for match in matches):
    relation = _relation(groups)
    if _is_plausible(groups, relation):
      break
  else:
    return None
  if groups.get("side"):
    if viewpoint:
      return None
    viewpoint = groups["x"] if groups.get("its") else groups["y"]
  key = "not " * negations + ("reversed " if groups.get("reversed") else "") + relation
  if viewpoint:
    letters = {groups["x"]: "X", groups["y"]: "Y"}
    key += f", from {letters.get(viewpoint, viewpoint)}'s viewpoint"
  return Reading(key, groups["x"], groups["y"])


def forget_readings() -> None:
  """Clears the cache of `read_relation`."""
  read_relation.cache_clear()


def is_name(text: str) -> bool:
  """Whether a text can be the name of an object: at most four words, none of them a preposition or an article."""
  return re.fullmatch(_NAME, text.casefold()) is not None


def qualifiers(caption: str) -> frozenset[str]:
  """Returns what qualifies a statement, read or not: "not", "viewpoint", "reversed" and hedges.

  >>> sorted(qualifiers("From the dog's view, the cat is almost touching it, or not."))
  ['almost', 'not', 'or', 'viewpoint']
  """
  text, viewpoint, negations = _without_qualifiers(caption)
  found = set(_HEDGES.findall(text))
  reading = read_relation(caption)
  if negations % 2:
    found.add("not")
  if viewpoint or (reading and "viewpoint" in reading.key):
    found.add("viewpoint")
  if reading.key.startswith(("reversed", "not reversed")) if reading else _REVERSALS.search(text):
    found.add("reversed")
  return frozenset(found)


def _without_qualifiers(caption: str) -> tuple[str, str, int]:
  """Returns the statement in lower case, whose viewpoint it takes ("" if none) and the number of its negations."""
  text = " ".join(caption.casefold().translate(_APOSTROPHES).split()).strip(" .?!")
  text = _WITHOUT_APOSTROPHE.sub(r"\1n't", text)
  text = _CAMERA.sub("", text)
  viewpoint = ""
  if match := _VIEWPOINT.search(text):
    viewpoint = next(filter(None, match.groups()))
    text = text[: match.start()] + text[match.end() :]
  text, negations = _NEGATIONS.subn("", text)
  return " ".join(text.split()).strip(" ,"), viewpoint, negations


def _relation(groups: dict[str, str | None]) -> str:
  if groups.get("part"):
    return "has as a part"
  if side := groups.get("side"):
    return f"{side} of"
  for prefix, relations in (("r", WORDINGS), ("m", MUTUAL)):
    for number, relation in enumerate(relations):
      if groups.get(f"{prefix}{number}"):
        return relation
  raise AssertionError(f"no relation in {groups}")


def _is_plausible(groups: dict[str, str | None], relation: str) -> bool:
  """Whether no verb or adverb hides in a name ("cat looks" at, "cat sadly" is) or changes the preposition."""
  names = [groups["x"] or "", groups["y"] or ""]
  if any(re.fullmatch(r".* \w+(?:ing|ed|ly)", name) for name in names):
    return False
  if groups.get("mutual"):
    return relation in SYMMETRIC
  link = groups.get("link")
  if link and re.match(r"be |\w+ing ", link) and " " in names[0] and not groups["lead"]:
    return False  # the name may end in a verb ("cat avoids" sitting)
  if link == "" and not groups["lead"]:
    return relation in _VERBS or " " not in names[0]
  return relation not in _WEAK or link is None or bool(_BE.fullmatch(link))
