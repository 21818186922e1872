"""The last lines of a command: where its result is, and the commands that read it."""

import shlex
from collections.abc import Sequence


def ending(result: str, config_spec: str, *steps: Sequence[object]) -> str:
  """Returns the last lines of a command.

  Args:
    result: names of files and the folder that holds them.
    config_spec: --config of the command. Commands that follow one at the scale of 8B get their own preset `8b`.
    steps: command lines without `spatial-vlm`, as words; a shell gets them quoted.

  >>> print(ending("a.json in runs/b c", "configs/dapo.py:8b", ["answer", "--checkpoint", "runs/b c"]))
  <BLANKLINE>
  result: a.json in runs/b c
  next:   spatial-vlm answer --config configs/answer.py:8b --checkpoint 'runs/b c'
  """
  lines = [f"\nresult: {result}"]
  for label, (name, *words) in zip(("next:  ", *["       "] * len(steps)), steps, strict=False):
    if config_spec.endswith(":8b") and "--config" not in words:
      words = ["--config", f"configs/{name}.py:8b", *words]
    lines.append(f"{label} {shlex.join(['spatial-vlm', str(name), *map(str, words)])}")
  return "\n".join(lines)


def leaf(name: str, value: object) -> str:
  """Returns the option that sets a leaf."""
  return f"--config.{name}={value}"
