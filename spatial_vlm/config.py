"""Configurations: plain data from `FILE:preset`, overridden leaf by leaf and checked when loaded.

A config file is a Python file with `get_config(preset) -> ConfigDict`. It is not part of the package: `load` imports it
by its path. Its leaves are numbers, booleans, strings and tuples. An optional leaf is
`ml_collections.config_dict.placeholder(type)`; a leaf that the user must give is `required_placeholder(type)`.

>>> config = load("configs/sft.py:tiny", ["--config.seed=7"])         # doctest: +SKIP
>>> config.seed                                                       # doctest: +SKIP
7
"""

import ast
import contextlib
import dataclasses
import difflib
import fnmatch
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath
from ml_collections import config_dict

from spatial_vlm.jsonl import read_object
from spatial_vlm.settings.range_table import RANGES
from spatial_vlm.settings.ranges import problem
from spatial_vlm.workdir import SETTINGS_FILE, foreign_entries, holds_only_settings, other_command

PACKAGE_FOLDER = Path(__file__).resolve().parent
CONFIG_ROOTS = (PACKAGE_FOLDER.parent, Path(sysconfig.get_path("data"), "share", "spatial-vlm"))
"""Folders of the project's own `configs/`: the checkout, then the data of the installed package."""
LIBRARIES = (
  "spatial-vlm jax jaxlib flax optax orbax-checkpoint grain transformers tokenizers ml-collections numpy scann"
).split()
LEAF_TYPES = (bool, int, float, str, tuple)
RENAMED_LEAVES = {
  "data.arrangement": "data.batching",
  "data.patches": "data.prompt_shapes",
  "data.prompt_tokens": "data.prompt_shapes",
  "estimate.most_prompt_tokens": "estimate.max_prompt_tokens",
  "estimate.second_share": "estimate.second_attempt_share",
  "keep_checkpoints": "max_to_keep",
  "local.faults": "local.fault_share",
  "local.mistakes": "local.mistake_share",
  "max_rounds": "max_rollout_rounds",
  "max_tokens": "max_new_tokens",
  "patches": "prompt_shapes",
  "patience.first_delay_s": "retry.initial_delay_s",
  "patience.max_delay_s": "retry.max_delay_s",
  "patience.tries": "retry.max_tries",
  "policy.patches": "policy.prompt_shape",
  "policy.prompt_tokens": "policy.prompt_shape",
  "prompt_tokens": "prompt_shapes",
  "prompts": "groups_per_batch",
  "round_prompts": "rollout_batch_size",
  "samples": "group_size",
  "similarity_floor": "min_similarity",
}
"""Former names of leaves and their names now, for the error that an old name raises."""

_SECRET = re.compile(
  r"api_?key|secret|password|credential|(access|auth|bearer)_token", re.IGNORECASE
)

log = logging.getLogger(__name__)


class UsageError(ValueError):
  """An error that the user can correct: the command line shows the message without a traceback."""


class UsageErrorOfAll(UsageError):
  """A UsageError that every process of a run raises; process 0 shows it."""


class Config(config_dict.ConfigDict):
  """A ConfigDict that records which of its leaves were read (see `unread`)."""

  if TYPE_CHECKING:  # ml_collections gives every leaf one wide union type

    def __getattr__(self, name: str) -> Any: ...

  def __init__(self, fields: config_dict.ConfigDict | None = None):
    super().__init__(convert_dict=False)
    object.__setattr__(self, "names_read", set())
    for name, value in {} if fields is None else fields.items():
      self[name] = Config(value) if isinstance(value, config_dict.ConfigDict) else value

  def __getitem__(self, key: str) -> Any:
    value = super().__getitem__(key)
    self.names_read.add(key)
    return value


def load(spec: str, overrides: Sequence[str] = (), complete: bool = True) -> Config:
  """Returns the config of `FILE:preset` with overrides of the form `--config.leaf.path=value`.

  A value is read as the type of the leaf's default: `3`, `1e-4`, `true`, `text`, `(1, 2)`; `none` empties an
  optional leaf.

  Args:
    complete: require a value for every required leaf. If False, required leaves without a value become "" or 0.

  Raises:
    UsageError: the file, preset or leaf does not exist, a value has the wrong type or is out of its range, or required
      leaves have no value (the message names all of them).
  """
  config = read_preset(spec)
  for override in overrides:
    _override(config, override.removeprefix("--config."), spec)
  values = leaves(config)
  missing = [name for name, value in values.items() if value is REQUIRED]
  check_ranges({name: value for name, value in values.items() if value is not REQUIRED})
  if missing and complete:
    flags = " ".join(f"--config.{name}=…" for name in missing)
    raise UsageError(f"{spec} needs values for {', '.join(missing)}: add {flags}")
  for name in missing:
    group, leaf, field = _field(config, name)
    group[leaf] = field.get_type()()
  loaded = Config(config.copy_and_resolve_references())
  loaded.get("algorithm")  # `check_ranges` has read it
  loaded.lock()
  return loaded


def check_ranges(values: Mapping[str, Any]) -> None:
  """Raises UsageError for values (dotted name of a leaf → value) out of their ranges; the message names all of them."""
  ranges = RANGES.get(values.get("algorithm", ""), {})
  problems = [problem(name, value, ranges.get(name)) for name, value in values.items()]
  if found := [text for text in problems if text]:
    raise UsageError("; ".join(found))


def free_texts(config: Config) -> dict[str, str]:
  """Returns the leaves that hold any text, such as paths; those with a range hold names."""
  values = leaves(config)
  ranges = RANGES.get(values.get("algorithm", ""), {})
  return {
    name: value
    for name, value in values.items()
    if isinstance(value, str) and value and name != "algorithm" and name not in ranges
  }


def read_preset(spec: str) -> config_dict.ConfigDict:
  """Returns `get_config(preset)` of the file; required leaves may have no value."""
  path, preset = find_preset(spec)
  with _errors_in_one_line(path), _imported(path) as module:
    if not hasattr(module, "get_config"):
      raise UsageError(f"{path} is not a config file: it does not define get_config(preset)")
    try:
      config = module.get_config(preset)
    except ValueError as error:
      raise UsageError(f"{path}: {error}") from error
    if not isinstance(config, config_dict.ConfigDict):
      raise UsageError(f"{path}: get_config returns a {type(config).__name__}, not a ConfigDict")
  _check_leaves(config, path)
  return config


def find_preset(spec: str) -> tuple[Path, str]:
  """Returns file and preset of `FILE:preset`.

  The project's own file comes first: a folder `configs` next to foreign data is never executed in its place. A path
  that begins with `.`, `/` or `~` means this file alone.

  Raises:
    UsageError: the text has another form, or there is no such file.
  """
  file, colon, preset = spec.rpartition(":")
  if not colon or not file.endswith(".py") or "\0" in spec:
    raise UsageError(
      f"--config is {spec!r}, but has the form FILE.py:PRESET, e.g. configs/sft.py:tiny"
    )
  return _find(file), preset


@contextlib.contextmanager
def _errors_in_one_line(path: Path) -> Iterator[None]:
  """Turns the errors of a config file into UsageError with the line in the file."""
  try:
    yield
  except UsageError:
    raise
  except SyntaxError as error:
    line = f", line {error.lineno}" if error.lineno else ""
    raise UsageError(f"{error.filename or path}{line}: {error.msg}") from error
  except Exception as error:
    folders = {folder.resolve() for folder in (path.parent, *config_folders())}
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).resolve().parent in folders]
    place = f"{inside[-1].filename}, line {inside[-1].lineno}" if inside else f"{path}"
    raise UsageError(f"{place}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _imported(path: Path) -> Iterator[types.ModuleType]:
  """Imports a config file as a member of a temporary package.

  The package spans the file's own folder and the project's `configs/`, so that `from .common import …` finds the
  project's `common.py` unless the file has one next to it. The package exists for this import alone: another config
  file of the same name, or a changed `common.py`, is never confused with it.
  """
  package = types.ModuleType(f"_configs_{next(_IMPORTS)}")
  package.__path__ = [os.fspath(folder) for folder in (path.parent, *config_folders())]
  name = f"{package.__name__}.{path.stem}"
  module_spec = importlib.util.spec_from_file_location(name, path)
  assert module_spec and module_spec.loader
  module = importlib.util.module_from_spec(module_spec)
  sys.modules |= {package.__name__: package, name: module}
  try:
    module_spec.loader.exec_module(module)
    yield module
  finally:
    for member in [other for other in sys.modules if other.startswith(f"{package.__name__}.")]:
      del sys.modules[member]
    del sys.modules[package.__name__]


_IMPORTS = itertools.count()


def config_folders() -> list[Path]:
  """Returns the folders of the project's own config files."""
  return [root / "configs" for root in CONFIG_ROOTS]


REQUIRED = object()
"""The value, in `leaves`, of a required leaf that has no value yet."""


def leaves(config: config_dict.ConfigDict) -> dict[str, Any]:
  """Returns dotted names and values of all leaves, sorted, without marking them as read."""
  return {
    name: _referred(field) if isinstance(field, config_dict.FieldReference) else field
    for name, field in fields(config).items()
  }


def fields(config: config_dict.ConfigDict, prefix: str = "") -> dict[str, Any]:
  """Returns as `leaves`, but a leaf that may be empty, or is required, is a `FieldReference`."""
  found = {}
  for name, value in config.items(preserve_field_references=True):
    if isinstance(value, config_dict.ConfigDict):
      found |= fields(value, f"{prefix}{name}.")
    else:
      found[prefix + name] = value
  return found


def is_required(field: Any) -> bool:
  """Returns whether a leaf of `fields` must be given and is not yet."""
  return isinstance(field, config_dict.FieldReference) and _referred(field) is REQUIRED


def unread(config: Config, prefix: str = "") -> list[str]:
  """Returns dotted names of the leaves that no code has read since `load`: an unread leaf is a dead option.

  `config.a.b`, `config["a"]["b"]`, `f(**config.a)` and `config.a.to_dict()` count as reading; `leaves`, comparisons
  and `snapshot` do not.
  """
  names = []
  for name, value in config.items(preserve_field_references=True):
    if isinstance(value, Config):
      names += unread(value, f"{prefix}{name}.")
    elif name not in config.names_read:
      names.append(prefix + name)
  return names


def settings_from(settings: type, config: Config, **known: object) -> Any:
  """Builds a frozen dataclass from the leaves of the same names.

  Args:
    settings: the dataclass.
    config: the group that holds the leaves.
    known: fields that are given by the caller instead of read from the config.
  """
  names = {field.name for field in dataclasses.fields(settings)} - known.keys()
  return settings(**{name: config[name] for name in names}, **known)


def check_algorithm(config: Config, command: str, allowed: Collection[str]) -> None:
  """Raises UsageError unless the config is for one of the `allowed` commands, whose configs `command` takes."""
  algorithm = config.get("algorithm")
  if algorithm in allowed:
    return
  presets = " or ".join(f"configs/{name}.py" for name in allowed)
  given = "has no leaf algorithm" if algorithm is None else f"is for {algorithm!r}"
  remedy = "" if algorithm is None else f"run `spatial-vlm {algorithm}`, or "
  raise UsageError(
    f"the config {given}: {remedy}give `spatial-vlm {command}` a preset of {presets}"
  )


Weighted = Sequence[tuple[str, float]]
"""A leaf that chooses entries of a table: names and weights."""


def check_names(leaf: str, chosen: Weighted, known: Collection[str]) -> None:
  """Raises UsageError if the leaf chooses nothing, or a name that is not `known`."""
  names = ", ".join(known)
  if not chosen:
    example = next(iter(known))
    raise UsageError(f"{leaf} is empty; choose from {names}, e.g. (({example!r}, 1.0),)")
  if unknown := [name for name, _ in chosen if name not in known]:
    raise UsageError(f"{leaf} names {unknown[0]!r}; known are {names}")


def snapshot(
  config: Config,
  workdir: epath.Path,
  harmless: Collection[str] = (),
  contents: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
  """Writes `config.json` at the first start in `workdir`; at later starts checks that the config is the same.

  The file also holds the command line, the versions of the libraries and the commit.

  Args:
    config: from `load`.
    workdir: created if it is missing.
    harmless: patterns (`log_*`, `*.workers`) of leaves that may change between two starts of one run.
    contents: leaf → digest of the files that it names (see `contents.contents`).

  Raises:
    UsageError: the run in `workdir` was started with other values, or with other contents of the files that they name;
      the message lists all differences.
  """
  given = json.loads(json.dumps(leaves(config)))
  path = workdir / SETTINGS_FILE
  if foreign := foreign_entries(workdir):
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    raise UsageError(
      f"{workdir} holds {', '.join(foreign[:3])}{more}, and no run; give an empty or a new --workdir"
    )
  workdir.mkdir(parents=True, exist_ok=True)
  if (stored := _read_settings(path)) is None:
    path.write_text(json.dumps(_describe(config, contents), indent=2) + "\n")
    return
  before = _leaves_of(stored, path)
  if other := other_command(stored, given):
    raise UsageError(f"{workdir} holds a run of `{other}`; give another --workdir")
  changes = [
    f"  {name}: {_show(before, name)} → {_show(given, name)}"
    for name in sorted(before.keys() | given.keys())
    if _show(before, name) != _show(given, name) and not matches_any(name, harmless)
  ]
  digests = found if isinstance(found := stored.get("contents"), dict) else {}
  replaced = [name for name, digest in contents.items() if digests.get(name, digest) != digest]
  if (changes or replaced) and holds_only_settings(workdir):  # the first start failed
    path.write_text(json.dumps(_describe(config, contents), indent=2) + "\n")
    return
  if changes:
    raise UsageError(
      f"{workdir} holds a run with another config:\n"
      + "\n".join(changes)
      + "\nGive the values that it was started with to continue it, or another --workdir to start a new run."
    )
  if replaced:
    names = "".join(f"\n  {name}: {_show(given, name)}" for name in replaced)
    raise UsageError(
      f"{workdir} holds a run that read other contents under the same names:{names}\nPut back what it was started with "
      "to continue it, or give another --workdir to start a new run."
    )
  if (then := stored.get("versions")) != (now := versions()):
    log.warning("%s was started with other versions: %s, now %s", workdir, then, now)


def read_snapshot(workdir: epath.Path) -> dict[str, Any] | None:
  """Returns the leaves that the run in `workdir` was started with; None before its first start.

  Raises UsageError if its config.json is not that of a run.
  """
  path = workdir / SETTINGS_FILE
  stored = _read_settings(path)
  return None if stored is None else _leaves_of(stored, path)


def _leaves_of(stored: Mapping[str, Any], path: epath.Path) -> dict[str, Any]:
  if not isinstance(values := stored.get("config"), dict):
    raise UsageError(f"{path} is not the config of a run; give another --workdir")
  return values


def matches_any(name: str, patterns: Iterable[str]) -> bool:
  """Tells whether a name matches one of the patterns.

  >>> matches_any("mesh.data", ("limit", "mesh.*")), matches_any("mesh", ("mesh.*",))
  (True, False)
  """
  return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def closest(word: str, known: Iterable[str]) -> str:
  """Returns the end of an error message: the known words closest to `word`, or all of them.

  >>> closest("stebs", ["steps", "seed"])
  '; did you mean steps?'
  >>> closest("rate", ["steps", "optim.rate"])
  '; did you mean optim.rate?'
  >>> closest("x", ["steps", "seed"])
  '; there are steps, seed'
  """
  known = list(known)
  endings = [name for name in known if name.endswith(f".{word}")]
  if matches := endings or difflib.get_close_matches(word, known, n=3):
    return f"; did you mean {' or '.join(matches)}?"
  return f"; there are {', '.join(known)}"


def _find(file: str) -> Path:
  given = Path(file).expanduser()
  own = [] if file.startswith((".", "/", "~")) else [root / file for root in CONFIG_ROOTS]
  for path in (*own, given):
    if path.is_file():
      if path in own and given.is_file() and not given.samefile(path):
        log.warning("%s is read, not the file in this folder: that one is ./%s", path, file)
      return path
  known = {other.name for path in (*own, given) for other in path.parent.glob("*.py")}
  raise UsageError(
    f"config file {file} was not found, neither in the project nor in this folder"
    + (closest(given.name, sorted(known)) if known else "")
  )


def _check_leaves(config: config_dict.ConfigDict, path: Path) -> None:
  for name, value in leaves(config).items():
    if value is not None and value is not REQUIRED and not isinstance(value, LEAF_TYPES):
      raise UsageError(
        f"{path}: leaf {name} is a {type(value).__name__}; a leaf is one of "
        + ", ".join(leaf_type.__name__ for leaf_type in LEAF_TYPES)
      )
    if _SECRET.search(name):
      raise UsageError(
        f"{path}: leaf {name}: secrets are given in the environment, never in a config"
      )


def _referred(reference: config_dict.FieldReference) -> Any:
  try:
    return reference.get()
  except config_dict.RequiredValueError:
    return REQUIRED


def _override(config: config_dict.ConfigDict, override: str, spec: str) -> None:
  name, equals, text = override.partition("=")
  if not equals:
    raise UsageError(f"--config.{name} has no value: write --config.{name}=VALUE")
  known = leaves(config)
  if name not in known:
    if inside := [other for other in known if other.startswith(f"{name}.")]:
      raise UsageError(f"--config.{name} is a group; its leaves are {', '.join(inside)}")
    raise UsageError(f"{spec} has no leaf {name}{_now_called(name, known)}")
  group, leaf, field = _field(config, name)
  is_reference = isinstance(field, config_dict.FieldReference)
  leaf_type = field.get_type() if is_reference else type(field)
  if leaf_type not in _READERS:
    raise UsageError(f"{spec}: leaf {name} is None; its config file should say placeholder(type)")
  if is_reference and not is_required(field) and text.lower() == "none":
    group[leaf] = None
    return
  try:
    group[leaf] = _READERS[leaf_type](text, known[name])
  except (KeyError, SyntaxError, ValueError) as error:
    example = "" if known[name] in (None, REQUIRED) else f", e.g. {known[name]!r} (the default)"
    raise UsageError(f"--config.{name}={text}: expected {leaf_type.__name__}{example}") from error


def _now_called(name: str, known: Collection[str]) -> str:
  """Returns the end of the message about an unknown leaf: its new name if it was renamed, else the closest ones."""
  new_name = RENAMED_LEAVES.get(name)
  return f"; it is now called {new_name}" if new_name in known else closest(name, known)


def _field(config: config_dict.ConfigDict, name: str) -> tuple[Any, str, Any]:
  """Returns the group that holds a leaf, its name in the group, and its value or placeholder."""
  *groups, leaf = name.split(".")
  group: Any = config
  for name in groups:
    group = group[name]
  return group, leaf, dict(group.items(preserve_field_references=True))[leaf]


def _read_bool(text: str, default: Any) -> bool:
  return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _read_tuple(text: str, default: Any) -> tuple:
  kinds = {type(item) for item in default} if isinstance(default, tuple) else set()
  if kinds == {str} and not text.lstrip().startswith(("(", "'", '"')):
    return _comma_separated(text)
  try:
    value = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    if default != () or text.lstrip().startswith("("):
      raise
    return _comma_separated(text)  # an empty default does not tell what its items are
  value = tuple(value) if isinstance(value, tuple | list) else (value,)
  if kinds == {float}:
    value = tuple(float(item) if type(item) is int else item for item in value)
  if kinds and not all(type(item) in kinds for item in value):
    raise ValueError(f"items of {value} are not {kinds}")
  return value


def _comma_separated(text: str) -> tuple[str, ...]:
  return tuple(part.strip() for part in text.split(",") if part.strip())


_READERS: dict[type, Callable[[str, Any], Any]] = {
  bool: _read_bool,
  int: lambda text, default: int(text),
  float: lambda text, default: float(text),
  str: lambda text, default: text,
  tuple: _read_tuple,
}


def _read_settings(path: epath.Path) -> dict[str, Any] | None:
  """Returns the content of config.json; None if it is missing, or incomplete since the start that wrote it was killed.

  Raises:
    UsageError: it cannot be read, and the workdir holds files of a run.
  """
  try:
    return read_object(path)
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    if path.is_file() and holds_only_settings(path.parent):
      return None
    raise UsageError(
      f"{path} is not the config of a run ({error}); put it back, or give another --workdir"
    ) from error


def _describe(config: Config, contents: Mapping[str, str]) -> dict[str, Any]:
  return {
    "contents": dict(contents),
    "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    "commit": _commit(),
    "config": leaves(config),
    "versions": versions(),
  }


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the installed libraries that results depend on."""
  installed = {"python": platform.python_version()}
  for name in LIBRARIES:
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return installed


def _commit() -> str | None:
  root = PACKAGE_FOLDER.parent
  if not (root / ".git").exists():
    return None
  command = [
    "git",
    "-C",
    str(root),
    "describe",
    "--always",
    "--dirty",
    "--abbrev=40",
    "--exclude=*",
  ]
  try:
    return subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None


def _show(values: dict[str, Any], name: str) -> str:
  return json.dumps(values[name]) if name in values else "(absent)"
