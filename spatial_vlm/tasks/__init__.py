"""Tasks: how records are read, questions are put, and answers are parsed and scored.

`TASKS` holds the tasks that a config can name; a further task is one more entry.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from spatial_vlm.config import UsageError
from spatial_vlm.tasks import statements
from spatial_vlm.tasks.benchmarks import BENCHMARKS
from spatial_vlm.tasks.task import Task

TASKS: Mapping[str, Task] = MappingProxyType(
  {
    "vsr": statements.VSR,
    "scenes": statements.TASK,  # rendered scenes are written as VSR records, with boxes
    **BENCHMARKS,
  }
)
"""Name → task."""


def find_task(name: str) -> Task:
  """Returns the task of this name; raises UsageError, with the known names, for any other."""
  if name not in TASKS:
    raise UsageError(f"task is {name!r}; choose one of {', '.join(TASKS)}")
  return TASKS[name]


def find_training_task(name: str) -> Task:
  """Returns the task of this name; raises UsageError for an unknown one and for a benchmark."""
  task = find_task(name)
  if task.held_out:
    allowed = ", ".join(name for name, task in TASKS.items() if not task.held_out)
    raise UsageError(
      f"task is {name!r}, a benchmark, whose records are there to measure on; train on one of {allowed}"
    )
  return task


PROMPTS: Mapping[str, Callable[[Task], Task]] = MappingProxyType(
  {"plain": lambda task: task, "explained": Task.explained}
)
"""Name → how questions are put: as the task words them, or with an explanation of the answer's form."""


def find_worded_task(name: str, template: str, prompt: str) -> Task:
  """Returns the task of this name in a wording and with a prompt; UsageError, with the known names, for any other."""
  if prompt not in PROMPTS:
    raise UsageError(f"prompt is {prompt!r}; choose one of {', '.join(PROMPTS)}")
  return PROMPTS[prompt](find_task(name).with_template(template))
