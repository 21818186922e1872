"""Who writes the chains of thought that a policy is first taught by."""

from typing import Protocol

from spatial_vlm.data.records import Example


class Teacher(Protocol):
  """Writes the four steps for a labelled example."""

  def chain(self, example: Example) -> str | None:
    """The answer as `answers.render_chain` writes it; None where the teacher has no trustworthy one."""
    ...
