"""What a draft has to pass before a policy learns from it: one pure function for each check.

A check returns why it refuses, or None. All of them are run, so that a report can tell which faults come together.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

from spatial_vlm import answers
from spatial_vlm.answers import Box
from spatial_vlm.config import UsageError
from spatial_vlm.data.records import Record
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.data.statement import read_statement
from spatial_vlm.synthesis.draft import Draft, Form, Unusable, chain
from spatial_vlm.synthesis.teacher import Reply, Usage
from spatial_vlm.synthesis.verify import quantities

SAME_PLACE = {name: name for name in RELATIONS} | {
  "at the left side of": "left of",
  "at the right side of": "right of",
  "over": "above",
  "under": "below",
  "beneath": "below",
}
"""Relations of VSR that boxes say something about, and those of `RELATIONS` whose evidence they share."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What is still accepted."""

  min_words: int
  max_words: int
  """Of the whole chain."""
  min_box_share: float
  max_box_share: float
  """Of the image, by area: below it is a speck, above it the whole picture."""
  number_tolerance: float
  """Between a number of the Reasoning and the boxes, in units of 0–1000."""
  geometry_margin: int
  """Evidence below this contradicts nothing, in units of 0–1000."""
  decisive: tuple[str, ...]
  """Relations whose boxes decide, both ways: a statement that boxes bear out and the label denies is refused too."""
  necessary: tuple[str, ...]
  """Relations that boxes can only speak against: what is above is higher, but what is higher may be behind."""

  def __post_init__(self):
    if unknown := {*self.decisive, *self.necessary} - set(SAME_PLACE):
      raise UsageError(
        f"boxes say nothing about the relations {sorted(unknown)}; choose decisive and necessary ones among "
        f"{', '.join(SAME_PLACE)}"
      )
    if not 0 <= self.min_words <= self.max_words:
      raise UsageError(
        f"min_words is {self.min_words} and max_words is {self.max_words}; give a least and a greatest number"
      )
    if not 0 <= self.min_box_share < self.max_box_share <= 1:
      raise UsageError(
        f"min_box_share is {self.min_box_share} and max_box_share is {self.max_box_share}; give rising shares of "
        "the image, from 0 to 1"
      )
    if self.number_tolerance < 0 or self.geometry_margin < 0:
      raise UsageError(
        f"number_tolerance is {self.number_tolerance} and geometry_margin is {self.geometry_margin}; give units of "
        "0–1000, from 0 on"
      )


class Rejection(NamedTuple):
  """Why a draft, or a reply without any, is not accepted."""

  check: str
  detail: str


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of one question to a teacher."""

  record: Record
  attempt: int
  """Counted from 0."""
  hinted: bool
  """Whether the teacher was told the label."""
  text: str | None
  """As the teacher wrote it."""
  draft: Draft | None
  """None where the text cannot be read as one."""
  rejections: tuple[Rejection, ...]
  model_version: str
  usage: Usage

  @property
  def accepted(self) -> bool:
    return not self.rejections


def examine(
  reply: Reply, form: Form, record: Record, limits: Limits
) -> tuple[Draft | None, tuple[Rejection, ...]]:
  """The draft in a reply, where there is one, and all that speaks against it."""
  if rejection := unfinished(reply):
    return None, (rejection,)
  try:
    draft = form.read(reply.text or "")
  except Unusable as error:
    return None, (Rejection("form", str(error)),)
  return draft, verify(draft, record, limits)


def unfinished(reply: Reply) -> Rejection | None:
  """A reply that was cut off, blocked or left empty is not read: what stands in it may look whole."""
  if reply.finish != "STOP":
    return Rejection("finish", f"ended by {reply.finish}")
  return None if reply.text else Rejection("finish", "nothing was written")


def verify(draft: Draft, record: Record, limits: Limits) -> tuple[Rejection, ...]:
  """All reasons to refuse a draft; none when it is accepted."""
  found = ((name, check(draft, record, limits)) for name, check in CHECKS.items())
  return tuple(Rejection(name, reason) for name, reason in found if reason is not None)


_HEADING = re.compile(
  r"</?[A-Za-z]+>|\b(?:summary|caption|reasoning|conclusion)\b\W{0,3}:|\b(?:step \d|final answer)\W{0,3}:|```|\*\*",
  re.IGNORECASE,
)

_FOREIGN = re.compile(r"[\u0400-\u1dff\u2e80-\ud7ff\uf900-\ufaff\uff00-\uffef]")
"""Letters of other scripts: some models slip into their first language."""


def steps(draft: Draft, record: Record, limits: Limits) -> str | None:
  """Four steps, each with words of its own and none within another, that read back as they were written."""
  texts = {"Summary": draft.summary, "Caption": draft.caption, "Reasoning": draft.reasoning}
  for name, text in texts.items():
    if not text.strip() and not (name == "Caption" and draft.objects):
      return f"the {name} is empty"
    if not text.isprintable():
      return f"the {name} holds control characters"
    if letters := _FOREIGN.search(text):
      return f"the {name} holds {letters[0]!r}"
    if heading := _HEADING.search(text):
      return f"the {name} holds {heading[0]!r}"
  answer = answers.STATEMENT.parse(chain(draft))
  valid: dict[str, Box] = {}
  for name, box in draft.objects:
    if _is_box(box):
      valid.setdefault(name, box)
  if answer is None or list(answer.boxes.items()) != list(valid.items()):
    read = answers.render_boxes(answer.boxes.items()) if answer else ""
    return f"the Caption reads back as {read!r}"
  return None


def conclusion(draft: Draft, record: Record, limits: Limits) -> str | None:
  """The verdict is the label, and what the Reasoning ends in."""
  said, is_so = (("no", "yes")[verdict] for verdict in (draft.verdict, record.label))
  if draft.verdict != record.label:
    return f"concludes {said!r}, the label is {is_so!r}"
  end = _SENTENCE_END.split(draft.reasoning.strip())[-1]
  if found := _denied(record).search(end) if draft.verdict else _plainly_asserted(end, record):
    return f"concludes {said!r}, but the Reasoning ends in {found[0]!r}"
  return None


_RELATIVE = re.compile(
  r"\b(?:not|no|nor|never|neither|cannot|nothing|whether|if|would|could|must|should|need\w*|requir\w*|rather|instead"
  r"|false|only|but|than|to be|being|statement|claim\w*)\b|n['’]t\b",
  re.IGNORECASE,
)
"""Words of a sentence that may name a statement without holding it true."""


def _plainly_asserted(sentence: str, record: Record) -> re.Match[str] | None:
  if _RELATIVE.search(sentence):
    return None
  return _asserted(record, _SUBJECTS).search(sentence)


def objects(draft: Draft, record: Record, limits: Limits) -> str | None:
  """Subject and object of the statement have a box each, under the names that the statement gives them."""
  wanted = stated_names(record)
  missing = [
    name for name, found in zip(wanted, named_objects(draft, record), strict=True) if not found
  ]
  if not any(wanted):
    return f"{record.caption!r} and its record name no objects"
  return f"no box for {missing} among {[name for name, _ in draft.objects]}" if missing else None


def boxes(draft: Draft, record: Record, limits: Limits) -> str | None:
  """Boxes lie in the image with an area between the limits; no name and no box stands twice."""
  by_name: dict[str, Box] = {}
  for name, box in draft.objects:
    if not _is_box(box):
      return f"{name} {list(box)} is no box x1 < x2, y1 < y2 in 0–1000"
    share = (box[2] - box[0]) * (box[3] - box[1]) / 1e6
    if not limits.min_box_share <= share <= limits.max_box_share:
      return f"{name} {list(box)} covers {share:.2%} of the image"
    if name.casefold() in by_name:
      return f"{name!r} stands twice"
    if box in by_name.values():
      other = next(other for other, its in by_name.items() if its == box)
      return f"{other!r} and {name!r} have one box, {list(box)}"
    by_name[name.casefold()] = box
  return None


def numbers(draft: Draft, record: Record, limits: Limits) -> str | None:
  """The numbers of the Reasoning come from the boxes, and compare as it says."""
  return quantities.first_fault(draft.reasoning, draft.objects, limits.number_tolerance)


def geometry(draft: Draft, record: Record, limits: Limits) -> str | None:
  """The boxes do not contradict the label, for relations that can be seen in them from the viewer's place."""
  subject, other = named_objects(draft, record)
  is_decisive = record.relation in limits.decisive
  is_necessary = record.relation in limits.necessary and record.label == 1
  if not (subject and other) or not (is_decisive or is_necessary):
    return None
  if (
    record.reference_frame is not None
  ):  # VSR says of such statements in whose frame they are meant
    return None
  by_name = dict(reversed(draft.objects))  # the first of a repeated name counts
  evidence = RELATIONS[SAME_PLACE[record.relation]].evidence(by_name[subject], by_name[other])
  if abs(evidence) < limits.geometry_margin or (evidence > 0) == bool(record.label):
    return None
  said = "true" if record.label else "false"
  return f"labelled {said}, but the boxes give {record.relation!r} an evidence of {evidence:+d}"


_QUESTION = re.compile(
  r"\?|\b(?:whether|if|true or false|find out|asks?|asked)\b"
  r"|\b(?:assess|check|compar|decid|determin|evaluat|examin|judg|question|task|verif)\w*",
  re.IGNORECASE,
)
"""Ways to say what is asked."""
_ASKS = re.compile(r"\bwhether\b|(?<!\bas )(?<!\beven )\bif\b|\btrue or false\b", re.IGNORECASE)
"""What follows, up to the end of the sentence, is asked and not said."""
_REPORTS = re.compile(r"\b(?:claim|question|sentence|statement|task)\b", re.IGNORECASE)
"""What follows is somebody's claim, as in "the statement says that …"."""
_VERDICT = re.compile(
  r"\b(?:is|are|was|be|holds?|proves?)(?: \w+)? (?:true|false|correct|incorrect|untrue)\b"
  r"|\bis(?: \w+)? (?:right|wrong)(?=[.,;!]|$)|\b(?:does|do)(?: not|n't) hold\b"
  r"|\b(?:claim|description|sentence|statement)\b[^.?]*\b(?:(?:in)?accurate|confirmed|contradicted|fails|fulfilled"
  r"|holds(?=[.,;!]|$)|(?:in)?valid|refuted|satisfied|supported)\b"
  r"|(?:^|[.;:!?—–-] *)(?:yes|no|true|false)(?=[.,;:!]| *[—–-]|$)"
  r"|\b(?:answer|conclusion|label|verdict)\W{1,3}(?:(?:is|says|was|(?:can|must|should|will|would) be)\W{1,3})?"
  r"(?:\w+ly )?(?:yes|no|true|false)\b",
  re.IGNORECASE,
)
"""A verdict, outside sentences that ask for one."""
_CONFIRMS = re.compile(
  r"\b(?:indeed|in fact|as stated|as claimed|(?:in)?correctly (?:says|states|describes|claims)"
  r"|which is (?:not )?(?:true|false|correct|incorrect|right|wrong)|contrary to the (?:statement|claim))\b",
  re.IGNORECASE,
)
"""A verdict wherever it stands."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?!True\?)")


def leak(draft: Draft, record: Record, limits: Limits) -> str | None:
  """The Summary asks, and neither it nor the Caption gives away the verdict, or takes the statement or its opposite for
  granted."""
  if draft.summary.strip() and not _QUESTION.search(draft.summary):
    return f"the Summary asks nothing: {draft.summary[:80]!r}"
  for step, text in (("Summary", draft.summary), ("Caption", draft.caption)):
    for sentence in _SENTENCE_END.split(text):
      if found := _CONFIRMS.search(sentence) or _denied(record).search(sentence):
        return f"the {step} says {found[0]!r}"
      if sentence.endswith("?"):
        continue
      said = _ASKS.split(sentence, maxsplit=1)[0]
      if found := _VERDICT.search(said):
        return f"the {step} says {found[0].strip()!r}"
      found = _asserted(record).search(said)
      if found and not _REPORTS.search(said[: found.start()]):
        return f"the {step} asserts {found[0]!r}"
  return None


_JUDGED = r"(?:answer|conclusion|judge?ment|label|response|verdict)"
_HINT = re.compile(
  rf"\b(?:(?:standard|given|provided|correct|expected|known|stated|reference|gold|target|true) {_JUDGED}s?"
  rf"|(?:accord\w*|agree\w*|confirm\w*|consistent|in line|match\w*) (?:(?:to|with) )?(?:the |its |this ){_JUDGED}"
  r"|ground[- ]truth|annotat(?:ors?|ions?|ed)|as (?:i was |we were )?(?:instructed|told|hinted|requested)"
  r"|as (?:the (?:prompt|user)|you) (?:mention|sa|stat|told)\w*"
  r"|(?:i|we) (?:was|were|am|are|have been) (?:told|given|instructed|informed)|hint(?:s|ed)?(?! of)"
  r"|(?:i|we) know(?: that)? (?:the (?:answer|claim|conclusion|statement)|it (?:is|must be) (?:true|false))"
  r"|(?:since|because|given that|knowing that|as) (?:we know |it is known )?(?:that )?the (?:answer|claim|statement)"
  r" (?:is|holds|must|should|has to|does not|cannot)"
  r"|(?:answer|conclusion|verdict) (?:has to|is supposed to|must|needs to|should) be"
  r"|labell?ed (?:as )?(?:true|false|yes|no)|label (?:is|says) (?:true|false|yes|no)"
  r"|(?:people|others|humans|observers) (?:who looked|agreed?|held|judged?|hold (?:the|this) (?:claim|statement))"
  r"|as an ai|(?:known|supposed|said|held|stated|given|judged) to be (?:true|false|correct|incorrect))\b",
  re.IGNORECASE,
)


def hint(draft: Draft, record: Record, limits: Limits) -> str | None:
  """No step shows that the verdict was known before."""
  for step in (draft.summary, draft.caption, draft.reasoning):
    if found := _HINT.search(step):
      return f"says {found[0]!r}"
  return None


def length(draft: Draft, record: Record, limits: Limits) -> str | None:
  """The words of all steps together, boxes aside, are neither too few nor too many."""
  count = sum(len(text.split()) for text in (draft.summary, draft.caption, draft.reasoning))
  if limits.min_words <= count <= limits.max_words:
    return None
  return f"{count} words; allowed are {limits.min_words} to {limits.max_words}"


Check = Callable[[Draft, Record, Limits], str | None]
CHECKS: dict[str, Check] = {
  check.__name__: check
  for check in (steps, conclusion, objects, boxes, numbers, geometry, leak, hint, length)
}
"""By name, in the order in which they are reported."""


def stated_names(record: Record) -> tuple[str, str]:
  """Subject and object of the statement; "" where neither its words nor its fields tell."""
  # VSR misspells some of the fields, never the words.
  if statement := read_statement(record.caption):
    return statement[0], statement[2]
  return record.subj or "", record.obj or ""


def named_objects(draft: Draft, record: Record) -> tuple[str, str]:
  """Names that the draft gives subject and object of the statement, "" for one that has no box of its own."""
  names = [name for name, _ in draft.objects]
  subject, other = (_find(name, names) for name in stated_names(record))
  return subject, "" if other == subject else other


def _find(wanted: str, names: list[str]) -> str:
  """The name that means the same, articles, case and number aside."""
  words = _folded(wanted)
  alike = {words, f"{words}s", f"{words}es", words.removesuffix("s"), words.removesuffix("es")}
  return next((name for name in names if wanted and _folded(name) in alike), "")


def _folded(text: str) -> str:
  """
  >>> _folded("The Red  mug.")
  'red mug'
  """
  return re.sub(r"^(?:the|an?) ", "", " ".join(re.findall(r"\w+", text.casefold())))


_SUBJECTS = r"it|they|he|she"
_OBJECTS = r"it|them|him|her|this|that"


def _asserted(record: Record, subjects: str = "(?!)") -> re.Pattern[str]:
  """The statement as part of a sentence: its words in their order, with a few others between them, such as "the cat
  sits on a wooden table". `subjects` may stand for the subject."""
  subject, other = map(_words, stated_names(record))
  middle = r"(?:[\w'’-]+,? ){0,4}?"
  return re.compile(
    rf"\b(?:{subject}|{subjects}),? {middle}{_relation(record)} (?:[\w'’-]+ ){{0,2}}?"
    rf"(?:{other}{f'|{_OBJECTS}' if subjects != '(?!)' else ''})\b",
    re.IGNORECASE,
  )


def _denied(record: Record) -> re.Pattern[str]:
  """The relation to the object with "not" before it."""
  other = _words(stated_names(record)[1])
  return re.compile(
    rf"(?:\b(?:can)?not|n['’]t|\bnor|\bnever) (?:(?!but\b|only\b)[\w'’-]+ ){{0,3}}?{_relation(record)} "
    rf"(?:[\w'’-]+ ){{0,2}}?(?:{other}|{_OBJECTS})\b",
    re.IGNORECASE,
  )


def _relation(record: Record) -> str:
  """Pattern of the relation's words; "facing" is "faces" as well, and "at the left side of" also stands after "on"."""
  first, *rest = re.sub(r"^(?:at|in) the ", "", record.relation.casefold()).split() or [""]
  stem = first.removesuffix("ing").removesuffix("s")
  if stem != first:
    return rf"{re.escape(stem)}(?:ing|es|e|s)?{''.join(' ' + re.escape(word) for word in rest)}"
  return re.escape(" ".join([first, *rest]))


def _words(name: str) -> str:
  return re.escape(name.casefold()) if name else "(?!)"


def _is_box(box: Box) -> bool:
  x1, y1, x2, y2 = box
  return 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000
