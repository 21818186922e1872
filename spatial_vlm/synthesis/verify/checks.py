"""Verifies a reply: parses its draft and runs every check of `CHECKS`.

All checks run, so that a report can show which faults occur together.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from spatial_vlm.data.records import Record
from spatial_vlm.synthesis.draft import Draft
from spatial_vlm.synthesis.errors import UnusableDraftError
from spatial_vlm.synthesis.formats import ResponseFormat
from spatial_vlm.synthesis.teacher import Reply, Usage
from spatial_vlm.synthesis.verify import box_checks, text_checks
from spatial_vlm.synthesis.verify.check_settings import CheckSettings

Check = Callable[[Draft, Record, CheckSettings], str | None]
CHECKS: dict[str, Check] = {
  "steps": text_checks.check_steps,
  "conclusion": text_checks.check_conclusion,
  "objects": box_checks.check_objects,
  "boxes": box_checks.check_boxes,
  "numbers": box_checks.check_numbers,
  "geometry": box_checks.check_geometry,
  "leak": text_checks.check_leak,
  "hint": text_checks.check_hint,
  "length": text_checks.check_length,
}
"""Name → check, in the order of the reports. A check returns the reason for a rejection, or None."""


class Rejection(NamedTuple):
  """One reason why an answer is not accepted."""

  check: str
  """A name in `CHECKS`, or "finish", "format", "refused", "version", "repeated" or "unbalanced"."""
  detail: str


@dataclasses.dataclass(frozen=True)
class CheckedAnswer:
  """The answer to one question, after verification."""

  record: Record
  attempt: int
  """Counted from 0."""
  hinted: bool
  """Whether the question contained the label."""
  text: str | None
  """The teacher's text, unchanged; None if there is none."""
  draft: Draft | None
  """None if the text does not follow the response format."""
  rejections: tuple[Rejection, ...]
  model_version: str
  usage: Usage

  @property
  def accepted(self) -> bool:
    """True if no check rejected the answer."""
    return not self.rejections


def examine(
  reply: Reply, response_format: ResponseFormat, record: Record, settings: CheckSettings
) -> tuple[Draft | None, tuple[Rejection, ...]]:
  """Returns the draft of a reply (None if it has none) and all reasons to reject it."""
  if rejection := find_unfinished(reply):
    return None, (rejection,)
  try:
    draft = response_format.parse(reply.text or "")
  except UnusableDraftError as error:
    return None, (Rejection("format", str(error)),)
  return draft, verify(draft, record, settings)


def find_unfinished(reply: Reply) -> Rejection | None:
  """Rejects a reply that was cut off, blocked or empty; its text may look complete and is not parsed."""
  if reply.finish != "STOP":
    return Rejection("finish", f"finish reason {reply.finish}")
  return None if reply.text else Rejection("finish", "the text is empty")


def verify(draft: Draft, record: Record, settings: CheckSettings) -> tuple[Rejection, ...]:
  """Runs all checks and returns their rejections; an empty tuple accepts the draft."""
  reasons = ((name, check(draft, record, settings)) for name, check in CHECKS.items())
  return tuple(Rejection(name, reason) for name, reason in reasons if reason is not None)
