"""Records the cost of the 8B programs per chip of v5e:4x8, for the gate in `test_plan.py`.

python tests/commands/make_plan_8b.py    # two minutes on two cores; needs libtpu
"""

import importlib.metadata
import json

from test_plan import GOLDEN, MEASURED, measured


def main() -> None:
  figures = {"versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}}
  for name in MEASURED:
    found = measured(name)
    figures[name] = {"peak_bytes": found.peak_bytes, "collective_bytes": found.collective_bytes}
    print(name, figures[name])
  GOLDEN.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
  main()
