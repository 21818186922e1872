"""Grammars of written answers: the one of statements, how its answers are rendered, and the boxes in them.

An answer is a few lines of text. A `Grammar` is its only definition: `Grammar.parse` reads text with it, and
`rewards.verdict_automaton` compiles the same patterns into a table over token ids, so that both always agree.

Answers to statements (`STATEMENT`) have three forms:

  chain   Summary: … / Caption: … / Reasoning: … / Conclusion: Yes.|No.    (four steps, each on a line)
  short   Applying 'behavior_…': … / Conclusion: Yes.|No.
  direct  Yes.|No.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in 0–1000 of the image's width and height, as Qwen3-VL writes them."""

_CORNERS = re.compile(r" \[(\d{1,4}), (\d{1,4}), (\d{1,4}), (\d{1,4})\]")
_NO_NAME = re.compile(r"[^\w\u0300-\u036f '’&-]")
"""What ends a name before its box: all but letters with their accents, digits, and what "man's hat" needs."""


@dataclasses.dataclass(frozen=True)
class Answer:
  """A parsed answer."""

  form: str
  verdict: int
  """The number of the stated verdict, as in `Grammar.verdicts`; for statements 1 is yes and 0 is no."""
  steps: dict[str, str]
  """Text of the named groups of the form."""

  @property
  def boxes(self) -> dict[str, Box]:
    """Named boxes of the caption, in the order in which they are written (empty outside a chain)."""
    return parse_boxes(self.steps.get("caption", ""))


@dataclasses.dataclass(frozen=True)
class Grammar:
  """The texts that count as an answer: the pattern of a form, then that of a verdict, and nothing else.

  Patterns are regular expressions of ASCII characters without look-around, whose classes may be negated (`[^\\n]`). No
  text may match with two verdicts.

  Raises ValueError for a grammar without a form or a verdict, for a negative verdict (−1 means "no answer") and for a
  pattern that is not ASCII.
  """

  forms: Mapping[str, str]
  """Name of a form → pattern of what stands before the verdict; its named groups are the steps."""
  verdicts: Mapping[int, str]
  """Verdict, at least 0 → pattern of the words that state it."""

  def __post_init__(self):
    if not self.forms or not self.verdicts or min(self.verdicts) < 0:
      raise ValueError(
        f"a grammar needs a form and verdicts of at least 0; got the forms {sorted(self.forms)} and the verdicts "
        f"{sorted(self.verdicts)}"
      )
    if foreign := [p for p in (*self.forms.values(), *self.verdicts.values()) if not p.isascii()]:
      raise ValueError(f"pattern {foreign[0]!r} is not ASCII; describe other characters by [^…]")

  def parse(self, text: str) -> Answer | None:
    """Returns the answer that `text` is, in any form; None when `text` is not exactly one answer.

    >>> STATEMENT.parse("Yes.").verdict
    1
    >>> STATEMENT.parse("Yes. No.") is None
    True
    """
    for form, prefix in self.forms.items():
      for verdict, ending in self.verdicts.items():
        if match := re.fullmatch(prefix + ending, text):
          return Answer(form, verdict, match.groupdict())
    return None


_CHAIN = (
  r"Summary: (?P<summary>[^ \n][^\n]*)\n"
  r"Caption: (?P<caption>[^ \n][^\n]*)\n"
  r"Reasoning: (?P<reasoning>[^ \n][^\n]*)\n"
  r"Conclusion: "
)
_SHORT = r"Applying '(?P<behavior>behavior_[a-z0-9_]+)': (?P<comparison>[^ \n][^\n]*)\nConclusion: "

FORMS: Mapping[str, str] = {"chain": _CHAIN, "short": _SHORT, "direct": ""}
"""Forms of answers, without the verdict that ends them."""

STATEMENT = Grammar(
  forms=FORMS,
  verdicts={1: r"Yes\.", 0: r"No\."},
)
"""Answers to the question whether a statement holds."""

_CONCLUSION = {1: "Yes.", 0: "No."}


def render_chain(summary: str, caption: str, reasoning: str, verdict: int) -> str:
  """Returns the four steps as text; every step is folded onto one line.

  >>> render_chain("a", "b", "c", 1)
  'Summary: a\\nCaption: b\\nReasoning: c\\nConclusion: Yes.'
  """
  steps = {"Summary": summary, "Caption": caption, "Reasoning": reasoning}
  lines = [f"{name}: {_one_line(name, text)}" for name, text in steps.items()]
  return "\n".join([*lines, f"Conclusion: {_CONCLUSION[verdict]}"])


def render_short(behavior: str, comparison: str, verdict: int) -> str:
  """Returns the short form, which names the behavior that it recalls.

  >>> render_short("behavior_left_of", "cup x=100 < cat x=200", 1)
  "Applying 'behavior_left_of': cup x=100 < cat x=200\\nConclusion: Yes."
  """
  return f"Applying '{behavior}': {_one_line('comparison', comparison)}\nConclusion: {_CONCLUSION[verdict]}"


def render_direct(verdict: int) -> str:
  """Returns `Yes.` or `No.`, the verdict alone."""
  return _CONCLUSION[verdict]


def render_boxes(boxes: Iterable[tuple[str, Box]]) -> str:
  """Returns named boxes as a caption lists them.

  >>> render_boxes([("cat", (0, 20, 400, 600)), ("red mug", (500, 0, 1000, 80))])
  'cat [0, 20, 400, 600], red mug [500, 0, 1000, 80]'
  """
  return ", ".join(f"{name} [{x1}, {y1}, {x2}, {y2}]" for name, (x1, y1, x2, y2) in boxes)


def parse_boxes(text: str) -> dict[str, Box]:
  """Returns the named boxes in `text`.

  The first box of a repeated name counts; boxes outside 0–1000 or without area do not.

  >>> parse_boxes("man's hat [0, 20, 400, 600], 2 cats [500, 0, 1000, 80].")
  {"man's hat": (0, 20, 400, 600), '2 cats': (500, 0, 1000, 80)}
  """
  boxes: dict[str, Box] = {}
  before = 0
  for match in _CORNERS.finditer(text):
    name = _NO_NAME.split(text[before : match.start()])[-1].lstrip(" '’&-").rstrip()
    before = match.end()
    x1, y1, x2, y2 = (int(number) for number in match.groups())
    if any(map(str.isalpha, name)) and x1 < x2 <= 1000 and y1 < y2 <= 1000:
      boxes.setdefault(name, (x1, y1, x2, y2))
  return boxes


def _one_line(step: str, text: str) -> str:
  line = " ".join(text.split())
  if not line:
    raise ValueError(f"step {step!r} of an answer is empty; every step needs at least one word")
  return line
