"""MkDocs hook: generates the pages that follow from the code, at every build."""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

from make_api import api_pages  # noqa: E402
from make_commands import commands_page  # noqa: E402
from make_configuration import configuration_page  # noqa: E402

ROOT = Path(__file__).parents[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Fills the navigation entry "API" with one page for each part of the package."""
  entries = [{title: path} for path, (title, _) in api_pages(ROOT).items()]
  config.nav = [{"API": entries} if "API" in entry else entry for entry in config.nav or []]
  return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
  """Adds the generated pages to those written by hand."""
  pages = {path: text for path, (_, text) in api_pages(ROOT).items()}
  pages["configuration.md"] = configuration_page(ROOT)
  pages["commands.md"] = commands_page(ROOT)
  for path, text in pages.items():
    files.append(File.generated(config, path, content=text))
  return files
