"""Libraries that only some commands need: extras of the package, and the line that installs one."""

import importlib.metadata
import importlib.util
import json
import shlex
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from spatial_vlm.config import PACKAGE_FOLDER, UsageError

EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
  {
    "bge-m3": ("tensorflow", "tensorflow_text"),
    "gcs": ("gcsfs", "google.cloud.storage"),
    "parquet": ("pyarrow",),
    "plan": ("libtpu",),
    "reuse": ("scann",),
    "serve": ("prometheus_client", "starlette", "uvicorn"),
    "synthesis": ("google.genai", "openai"),
    "video": ("av",),
  }
)
"""Extra of pyproject.toml → the modules that it brings."""


def require(extra: str, user: str, libraries: Iterable[str] = ()) -> None:
  """Raises UsageError, with the line that installs the extra, if one of its libraries is missing.

  Args:
    extra: a key of EXTRAS.
    user: subject of the message: what needs the libraries.
    libraries: those of the extra that are needed; all of them if empty.
  """
  if missing := [name for name in libraries or EXTRAS[extra] if not is_installed(name)]:
    raise UsageError(need(extra, user, missing))


def need(extra: str, user: str, missing: Iterable[str] = ()) -> str:
  """Returns the message about libraries of an extra that are missing."""
  names = " and ".join(missing or EXTRAS[extra])
  return f"{user} needs {names}, not installed here: {install_line(extra)}"


def is_installed(library: str) -> bool:
  """Returns whether a module can be found, without importing it; packages around it are imported."""
  try:
    return importlib.util.find_spec(library) is not None
  except ImportError:  # of the package around it
    return False


def install_line(extra: str) -> str:
  """Returns the command that adds an extra to this installation: a checkout, or a package from PyPI, git or a file."""
  root = PACKAGE_FOLDER.parent
  if (root / "pyproject.toml").is_file():
    line = f"pip install -e {shlex.quote(f'{root}[{extra}]')}"
    constraints = root / "constraints.txt"
    return f"{line} -c {shlex.quote(str(constraints))}" if constraints.is_file() else line
  return f"pip install {shlex.quote(f'spatial-vlm[{extra}]{_installed_from()}')}"


def _installed_from() -> str:
  """Returns " @ URL" of this installation, as pip reads it (PEP 610); empty if it came from an index."""
  try:
    text = importlib.metadata.distribution("spatial-vlm").read_text("direct_url.json")
  except importlib.metadata.PackageNotFoundError:
    text = None
  if not text:
    return ""
  origin = json.loads(text)
  if version := origin.get("vcs_info"):
    return f" @ {version['vcs']}+{origin['url']}@{version['commit_id']}"
  return f" @ {origin['url']}"
