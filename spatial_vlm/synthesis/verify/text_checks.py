"""Checks of a draft's words: form, length, conclusion, leaked verdicts and betrayed hints.

Each check returns the reason for a rejection, or None.
"""

import re

from spatial_vlm import answers
from spatial_vlm.answers import Box
from spatial_vlm.data.records import Record
from spatial_vlm.synthesis.draft import Draft, chain
from spatial_vlm.synthesis.verify.box_checks import is_box
from spatial_vlm.synthesis.verify.check_settings import CheckSettings
from spatial_vlm.synthesis.verify.statement_patterns import SUBJECT_PRONOUNS, asserted, denied

_HEADING = re.compile(
  r"</?[A-Za-z]+>|\b(?:summary|caption|reasoning|conclusion)\b\W{0,3}:|\b(?:step \d|final answer)\W{0,3}:|```|\*\*",
  re.IGNORECASE,
)

_FOREIGN = re.compile(r"[\u0400-\u1dff\u2e80-\ud7ff\uf900-\ufaff\uff00-\uffef]")
"""Letters of other scripts: some models switch to another language."""


def check_steps(draft: Draft, record: Record, settings: CheckSettings) -> str | None:
  """Requires three non-empty text steps without headings inside, whose chain parses back to the same boxes."""
  texts = {"Summary": draft.summary, "Caption": draft.caption, "Reasoning": draft.reasoning}
  for name, text in texts.items():
    if not text.strip() and not (name == "Caption" and draft.objects):
      return f"the {name} is empty"
    if not text.isprintable():
      return f"the {name} contains control characters"
    if letters := _FOREIGN.search(text):
      return f"the {name} contains {letters[0]!r}"
    if heading := _HEADING.search(text):
      return f"the {name} contains {heading[0]!r}"
  answer = answers.STATEMENT.parse(chain(draft))
  valid: dict[str, Box] = {}
  for name, box in draft.objects:
    if is_box(box):
      valid.setdefault(name, box)
  if answer is None or list(answer.boxes.items()) != list(valid.items()):
    parsed = answers.render_boxes(answer.boxes.items()) if answer else ""
    return f"the Caption parses back as {parsed!r}"
  return None


def check_conclusion(draft: Draft, record: Record, settings: CheckSettings) -> str | None:
  """Requires that the verdict equals the label and agrees with the Reasoning's last sentence."""
  verdict, label = (("no", "yes")[value] for value in (draft.verdict, record.label))
  if draft.verdict != record.label:
    return f"concludes {verdict!r}, but the label is {label!r}"
  end = _SENTENCE_END.split(draft.reasoning.strip())[-1]
  if found := denied(record).search(end) if draft.verdict else _plainly_asserted(end, record):
    return f"concludes {verdict!r}, but the Reasoning ends in {found[0]!r}"
  return None


_NOT_ASSERTING = re.compile(
  r"\b(?:not|no|nor|never|neither|cannot|nothing|whether|if|would|could|must|should|need\w*|requir\w*|rather|instead"
  r"|false|only|but|than|to be|being|statement|claim\w*|without|nowhere|hardly|scarcely|unlike|lacks?|avoid\w*"
  r"|fail(?:s|ing)?|(?:far from|short of) \w+ing)\b|n['’]t\b",
  re.IGNORECASE,
)
"""Words of a sentence that may mention a statement without asserting it."""


def _plainly_asserted(sentence: str, record: Record) -> re.Match[str] | None:
  """Finds the statement in a sentence without words such as "not", "if" or "whether"."""
  if _NOT_ASSERTING.search(sentence):
    return None
  return asserted(record, SUBJECT_PRONOUNS).search(sentence)


_QUESTION = re.compile(
  r"\?|\b(?:whether|if|true or false|find out|asks?|asked)\b"
  r"|\b(?:assess|check|compar|decid|determin|evaluat|examin|judg|question|task|verif)\w*",
  re.IGNORECASE,
)
"""Words that mark the Summary as a question or task."""
_ASKS = re.compile(r"\bwhether\b|(?<!\bas )(?<!\beven )\bif\b|\btrue or false\b", re.IGNORECASE)
"""The rest of the sentence after a match is asked, not asserted."""
_REPORTS = re.compile(r"\b(?:claim|question|sentence|statement|task)\b", re.IGNORECASE)
"""The text after a match reports a claim, as in "the statement says that …"."""
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
"""Matches a stated verdict; skipped in sentences that ask for one."""
_CONFIRMS = re.compile(
  r"\b(?:indeed|in fact|as stated|as claimed|(?:in)?correctly (?:says|states|describes|claims)"
  r"|which is (?:not )?(?:true|false|correct|incorrect|right|wrong)|contrary to the (?:statement|claim))\b",
  re.IGNORECASE,
)
"""Matches a stated verdict in any sentence."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?!True\?)")


def check_leak(draft: Draft, record: Record, settings: CheckSettings) -> str | None:
  """Requires that the Summary asks, and that Summary and Caption neither state nor imply the verdict."""
  if draft.summary.strip() and not _QUESTION.search(draft.summary):
    return f"the Summary asks nothing: {draft.summary[:80]!r}"
  for step, text in (("Summary", draft.summary), ("Caption", draft.caption)):
    for sentence in _SENTENCE_END.split(text):
      if found := _CONFIRMS.search(sentence) or denied(record).search(sentence):
        return f"the {step} says {found[0]!r}"
      if sentence.endswith("?"):
        continue
      claim = _ASKS.split(sentence, maxsplit=1)[0]
      if found := _VERDICT.search(claim):
        return f"the {step} says {found[0].strip()!r}"
      found = asserted(record).search(claim)
      if found and not _REPORTS.search(claim[: found.start()]):
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


def check_hint(draft: Draft, record: Record, settings: CheckSettings) -> str | None:
  """Requires that no step shows knowledge of the label."""
  for step in (draft.summary, draft.caption, draft.reasoning):
    if found := _HINT.search(step):
      return f"says {found[0]!r}"
  return None


def check_length(draft: Draft, record: Record, settings: CheckSettings) -> str | None:
  """Requires an allowed number of words in all steps together, boxes not counted."""
  count = sum(len(text.split()) for text in (draft.summary, draft.caption, draft.reasoning))
  if settings.min_words <= count <= settings.max_words:
    return None
  return f"{count} words; allowed are {settings.min_words} to {settings.max_words}"
