"""Tasks: how records are read, questions are put, and answers are parsed and scored.

`TASKS` holds the tasks that a config can name; a further task is one more entry.
"""

from collections.abc import Mapping
from types import MappingProxyType

from spatial_vlm.config import UsageError
from spatial_vlm.tasks import statements
from spatial_vlm.tasks.task import Task

TASKS: Mapping[str, Task] = MappingProxyType(
  {
    "vsr": statements.TASK,
    "scenes": statements.TASK,  # rendered scenes are written as VSR records, with boxes
  }
)
"""Name → task."""


def find_task(name: str) -> Task:
  """Returns the task of this name; raises UsageError, with the known names, for any other."""
  if name not in TASKS:
    raise UsageError(f"task is {name!r}; choose one of {', '.join(TASKS)}")
  return TASKS[name]
