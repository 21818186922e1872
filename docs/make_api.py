"""Generates the API pages: one for each folder of the package, one for the files at its top."""

import ast
from pathlib import Path

PACKAGE = "spatial_vlm"
LEFT_OUT = ("assets", "commands")
"""Folders without an API page. The page "Commands" describes commands."""


def api_pages(root: Path) -> dict[str, tuple[str, str]]:
  """Returns address → (title, Markdown) of every page, with the overview first."""
  package = root / PACKAGE
  folders = sorted(
    path
    for path in package.iterdir()
    if path.is_dir() and path.name not in LEFT_OUT and _files(path)
  )
  parts = {"package": sorted(package.glob("*.py"))} | {path.name: _files(path) for path in folders}
  pages = {
    f"api/{name}.md": (_title(name), _page(root, name, files)) for name, files in parts.items()
  }
  return {"api/index.md": ("Overview", _overview(root, parts))} | pages


def _files(folder: Path) -> list[Path]:
  """Returns the modules of a folder and of its subfolders that have something to show."""
  return sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")


def _title(name: str) -> str:
  return PACKAGE if name == "package" else f"{PACKAGE}.{name}"


def _module(root: Path, path: Path) -> str:
  return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _summary(path: Path) -> str:
  """Returns the first line of a module's docstring."""
  return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def _page(root: Path, name: str, files: list[Path]) -> str:
  title = _title(name)
  lines = [f"# {title}", ""]
  init = root / PACKAGE / name / "__init__.py"
  if name != "package" and init.exists() and (summary := _summary(init)):
    lines += [summary, ""]
  for path in files:
    if path.name in ("__init__.py", "__main__.py"):
      continue
    module = _module(root, path)
    lines += [
      f"## {module.removeprefix(title + '.')} {{ #{module}-module }}",
      "",
      f"`{module}`",
      "",
      f"::: {module}",
      "",
    ]
  return "\n".join(lines)


def _overview(root: Path, parts: dict[str, list[Path]]) -> str:
  lines = [
    "# API",
    "",
    "These pages come from the docstrings of the source. [Design](../design.md) says which layer each part",
    "belongs to, and [Equations](../equations.md) leads from an equation to its function and its test.",
    "",
  ]
  for name, files in parts.items():
    lines += [f"## [{_title(name)}]({name}.md)", "", "| module | contents |", "|---|---|"]
    for path in files:
      if path.name not in ("__init__.py", "__main__.py"):
        module = _module(root, path)
        short = module.removeprefix(_title(name) + ".")
        text = _summary(path).replace("|", "\\|")
        lines.append(f"| [`{short}`]({name}.md#{module}-module) | {text} |")
    lines.append("")
  return "\n".join(lines)
