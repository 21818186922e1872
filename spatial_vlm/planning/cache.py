"""Costs of compiled programs, kept in a folder until something that determines them changes."""

import dataclasses
import hashlib
import importlib.metadata
import json

from etils import epath

from spatial_vlm.config import PACKAGE_FOLDER, Config, leaves, versions
from spatial_vlm.hosts import user_errors
from spatial_vlm.jsonl import parse_json
from spatial_vlm.planning.compiled import ProgramCost, compile_program
from spatial_vlm.planning.programs import trace_programs
from spatial_vlm.planning.target import Target
from spatial_vlm.progress import progress_bar


def program_costs(config: Config, target: Target, folder: epath.Path) -> list[ProgramCost]:
  """Returns the costs of a config's programs; compiles them unless `folder` holds their costs.

  Raises:
    UsageError: the config's command would refuse it, or a program does not compile.
  """
  file = folder / f"{fingerprint(config, target)}.json"
  try:
    return [ProgramCost.from_json(fields) for fields in parse_json(file.read_bytes())]
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    pass  # not compiled yet, or the process was killed while it wrote
  with user_errors():
    programs = trace_programs(config, target.model, target.devices)
  with progress_bar("compiling", len(programs), unit="program") as bar:
    costs = []
    for program in programs:
      bar.set_postfix_str(program.name)
      with user_errors():
        costs.append(compile_program(program, target.chip))
      bar.update()
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps([dataclasses.asdict(cost) for cost in costs]))
  return costs


def fingerprint(config: Config, target: Target) -> str:
  """Returns a hash of everything that determines the compiled programs, this package's source included."""
  digest = hashlib.sha256()
  for file in sorted(PACKAGE_FOLDER.rglob("*.py")):
    digest.update(file.read_bytes())
  described = [leaves(config), target.topology, target.slices, dataclasses.asdict(target.model)]
  described += [versions(), importlib.metadata.version("libtpu")]
  digest.update(json.dumps(described, sort_keys=True).encode())
  return digest.hexdigest()[:16]
