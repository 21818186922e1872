"""Completion offers commands, options, settings with their values, and presets."""

import argcomplete
import pytest

from spatial_vlm import cli
from spatial_vlm.command_line import completion


class Finder(argcomplete.CompletionFinder):
  """Writes its debug output nowhere; by default it takes over file descriptor 9, which may be pytest's."""

  def _init_debug_stream(self):
    pass


@pytest.fixture
def complete(monkeypatch, tmp_path):
  """Returns what is offered for a line, as bash asks for it."""

  def offered(line):
    file = tmp_path / "offered"
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("_ARGCOMPLETE_SHELL", "bash")
    monkeypatch.setenv("_ARGCOMPLETE_COMP_WORDBREAKS", " \t\n\"'><=;|&(:")
    monkeypatch.setenv("COMP_TYPE", "9")
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    autocomplete = Finder()

    def to_file(parser, **options):
      with file.open("w") as stream:
        autocomplete(parser, exit_method=lambda status: None, output_stream=stream, **options)

    monkeypatch.setattr(argcomplete, "autocomplete", to_file)
    completion.complete(cli.COMMANDS)
    return file.read_text().split("\013")

  return offered


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("spatial-vlm ev", ["evaluate "]),
    ("spatial-vlm help sy", ["synthesize "]),
    (
      "spatial-vlm sft --config.optimizer.m",
      ["--config.optimizer.method=", "--config.optimizer.moments="],
    ),
    ("spatial-vlm sft --config.optimizer.method=a", ["adamw", "adafactor"]),
    ("spatial-vlm sft --config.frozen_int8=t", ["true "]),
    ("spatial-vlm sft --config configs/sft.py:b", ["bc "]),
    ("spatial-vlm dapo --config configs/sft.py:tiny --config.epo", ["--config.epochs="]),
    (
      "spatial-vlm plan --config configs/answer",
      ["configs/answer.py:tiny", "configs/answer.py:8b"],
    ),
  ],
)
def test_it_offers(complete, line, expected):
  assert complete(line) == expected


def test_every_command_is_offered(complete):
  assert {*cli.COMMANDS, "help", "completion"} <= {*complete("spatial-vlm ")}


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_code_for_a_shell_names_the_program(shell):
  assert "spatial-vlm" in completion.script(shell)
