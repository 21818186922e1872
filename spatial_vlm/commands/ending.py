"""The last lines of a command: where its result is, and the commands that read it."""

import shlex


def ending(result: str, *steps: list[object]) -> str:
  """Returns the last lines of a command.

  Args:
    result: names of files and the folder that holds them.
    steps: command lines without `spatial-vlm`, as words; paths among them are quoted for a shell.

  >>> print(ending("a.json in runs/b c", ["answer", "--checkpoint", "runs/b c"]))
  <BLANKLINE>
  result: a.json in runs/b c
  next:   spatial-vlm answer --checkpoint 'runs/b c'
  """
  labels = ("next:  ", *["       "] * len(steps))
  lines = [f"\nresult: {result}"]
  for label, words in zip(labels, steps, strict=False):
    lines.append(f"{label} {shlex.join(['spatial-vlm', *map(str, words)])}")
  return "\n".join(lines)


def leaf(name: str, value: object) -> str:
  """Returns the option that sets a leaf."""
  return f"--config.{name}={value}"
