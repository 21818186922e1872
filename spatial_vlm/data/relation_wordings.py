"""Wordings of VSR's relations: the phrases by which English says each of them, as regular expressions.

A phrase is listed only if it always says its relation. Phrases that may say several ("by the bed", "in the back of the
truck") or more than the relation ("almost touching") are left out: a question with an unknown wording is compared by
similarity, one with a wrongly read wording would recall a wrong behavior.
"""

from spatial_vlm.data.relations import META_CATEGORY

_HAND_SIDE = "(?:[- ]hand)? side"

_OTHER_WORDINGS = {
  "adjacent to": "adjacent with",
  "against": "up against|(?:leaning|leaned|propped(?: up)?|pressed) against",
  "alongside": "alongside of",
  "among": "amongst",
  "at the back of": "at the rear of",
  "at the edge of": "on the edge of",
  "at the left side of": f"at the left(?:{_HAND_SIDE})? of",
  "at the right side of": f"at the right(?:{_HAND_SIDE})? of",
  "attached to": "attached onto|fastened to|fixed to|affixed to",
  "behind": "in back of",
  "close to": "close by",
  "congruent": "congruent (?:to|with)",
  "connected to": "connected with|joined to|linked to",
  "consists of": "consist of|consisting of|(?:made(?: up)?|composed) of",
  "contains": "contain|containing",
  "detached from": "disconnected from",
  "enclosed by": "enclosed (?:in|within)",
  "facing": "faces?|facing towards?",
  "facing away from": "faces? away from|turned away from|has its back (?:turned )?to",
  "far from": "distant from|a long way from",
  "has as a part": "ha(?:s|ve|ving) as (?:a )?part",
  "in the middle of": "(?:in|at) the (?:cent(?:er|re)|middle) of",
  "inside": "inside of",
  "left of": f"(?:to|on) the left(?:{_HAND_SIDE})? of",
  "near": "near to|in the vicinity of",
  "off": "off of",
  "on": "upon",
  "on top of": "on the top of|atop(?: of)?",
  "opposite to": "opposite(?: of)?|directly opposite(?: to)?",
  "outside": "outside of",
  "parallel to": "parallel with",
  "part of": "a part of",
  "perpendicular to": "at (?:a )?right angles? to|orthogonal to",
  "right of": f"(?:to|on) the right(?:{_HAND_SIDE})? of",
  "surrounding": "surrounds?|encircl(?:es?|ing)",
  "touching": "touch(?:es)?|(?:in|making) contact with|makes? contact with",
  "toward": "towards",
  "under": "underneath(?: of)?",
}

WORDINGS: dict[str, str] = {
  relation: "|".join(filter(None, [relation, _OTHER_WORDINGS.get(relation)]))
  for relation in META_CATEGORY
}
"""Relation of VSR → alternatives of its wording, lower case, a regular expression without groups that capture."""

MUTUAL: dict[str, str] = {
  "adjacent to": "adjacent",
  "close to": "close together",
  "connected to": "connected",
  "far from": "far apart",
  "parallel to": "parallel",
  "perpendicular to": "perpendicular",
  "touching": "touch|touching|in contact",
}
"""Relation → wordings after "X and Y are", of relations that hold for both objects alike."""

SYMMETRIC = (
  *MUTUAL,
  *("alongside", "beside", "by", "near", "next to", "far away from", "opposite to", "across from"),
)
"""Relations of which "X and Y are … each other" says the same as "X is … Y"."""
