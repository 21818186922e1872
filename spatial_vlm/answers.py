"""The written forms of an answer: rendered, parsed and matched here for everyone.

An answer is a few lines of text. The grammar below is the only definition: `parse` reads text with it, and
`rewards` compiles the same patterns into a table over token ids, so that both always agree.

  chain   Summary: … / Caption: … / Reasoning: … / Conclusion: Yes.|No.    (four steps, each on a line)
  short   Applying 'behavior_…': … / Conclusion: Yes.|No.
  direct  Yes.|No.
"""

import dataclasses
import re
from collections.abc import Iterable

CHAIN = (
  r"Summary: (?P<summary>[^ \n][^\n]*)\n"
  r"Caption: (?P<caption>[^ \n][^\n]*)\n"
  r"Reasoning: (?P<reasoning>[^ \n][^\n]*)\n"
  r"Conclusion: "
)
SHORT = r"Applying '(?P<behavior>behavior_[a-z0-9_]+)': (?P<comparison>[^ \n][^\n]*)\nConclusion: "
DIRECT = ""
FORMS = {"chain": CHAIN, "short": SHORT, "direct": DIRECT}
VERDICTS = {1: r"Yes\.", 0: r"No\."}
"""Each form followed by one of the verdicts is the whole answer; nothing may precede or follow."""

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in 0–1000 of the image's width and height, as Qwen3-VL writes them."""

_BOX = re.compile(r"([A-Za-z][A-Za-z0-9 _-]*?) \[(\d+), (\d+), (\d+), (\d+)\]")
_CONCLUSION = {1: "Yes.", 0: "No."}


@dataclasses.dataclass(frozen=True)
class Answer:
  """A parsed answer; `verdict` is 1 for yes and 0 for no."""

  form: str
  verdict: int
  steps: dict[str, str]

  @property
  def boxes(self) -> dict[str, Box]:
    """Named boxes of the caption, in the order in which they are written (empty outside a chain)."""
    return parse_boxes(self.steps.get("caption", ""))


def parse(text: str) -> Answer | None:
  """Reads an answer of any form; None when `text` is not exactly one answer.

  >>> parse("Yes.").verdict
  1
  >>> parse("Yes. No.") is None
  True
  """
  for form, prefix in FORMS.items():
    for verdict, conclusion in VERDICTS.items():
      if match := re.fullmatch(prefix + conclusion, text):
        return Answer(form, verdict, match.groupdict())
  return None


def render_chain(summary: str, caption: str, reasoning: str, verdict: int) -> str:
  """The four steps as text; every step is folded onto one line.

  >>> render_chain("a", "b", "c", 1)
  'Summary: a\\nCaption: b\\nReasoning: c\\nConclusion: Yes.'
  """
  steps = {"Summary": summary, "Caption": caption, "Reasoning": reasoning}
  lines = [f"{name}: {_one_line(name, text)}" for name, text in steps.items()]
  return "\n".join([*lines, f"Conclusion: {_CONCLUSION[verdict]}"])


def render_short(behavior: str, comparison: str, verdict: int) -> str:
  """The short form that names the behavior it recalls.

  >>> render_short("behavior_left_of", "cup x=100 < cat x=200", 1)
  "Applying 'behavior_left_of': cup x=100 < cat x=200\\nConclusion: Yes."
  """
  return f"Applying '{behavior}': {_one_line('comparison', comparison)}\nConclusion: {_CONCLUSION[verdict]}"


def render_direct(verdict: int) -> str:
  """The verdict alone: `Yes.` or `No.`"""
  return _CONCLUSION[verdict]


def render_boxes(boxes: Iterable[tuple[str, Box]]) -> str:
  """Named boxes as a caption lists them.

  >>> render_boxes([("cat", (0, 20, 400, 600)), ("red mug", (500, 0, 1000, 80))])
  'cat [0, 20, 400, 600], red mug [500, 0, 1000, 80]'
  """
  return ", ".join(f"{name} [{x1}, {y1}, {x2}, {y2}]" for name, (x1, y1, x2, y2) in boxes)


def parse_boxes(text: str) -> dict[str, Box]:
  """Named boxes found in `text`; the first of a repeated name counts, boxes outside 0–1000 or without area do not.

  >>> parse_boxes("cat [0, 20, 400, 600], red mug [500, 0, 1000, 80].")
  {'cat': (0, 20, 400, 600), 'red mug': (500, 0, 1000, 80)}
  """
  boxes: dict[str, Box] = {}
  for match in _BOX.finditer(text):
    x1, y1, x2, y2 = (int(number) for number in match.groups()[1:])
    if 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000:
      boxes.setdefault(match[1], (x1, y1, x2, y2))
  return boxes


def _one_line(step: str, text: str) -> str:
  line = " ".join(text.split())
  if not line:
    raise ValueError(f"step {step!r} of an answer is empty; every step needs at least one word")
  return line
