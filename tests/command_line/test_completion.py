"""Completion offers commands, options, settings with their values, and presets."""

import argcomplete
import pytest

from spatial_vlm import cli
from spatial_vlm.command_line import completion


@pytest.fixture
def complete(monkeypatch, tmp_path):
  """Returns what is offered for a line, as a shell asks for it."""
  # By default argcomplete writes debug output to file descriptor 9, which may be pytest's.
  monkeypatch.setattr(argcomplete.CompletionFinder, "_init_debug_stream", lambda self: None)
  call = argcomplete.CompletionFinder.__call__

  def offered(line, shell="bash"):
    file = tmp_path / "offered"
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("_ARGCOMPLETE_SHELL", shell)
    monkeypatch.setenv("_ARGCOMPLETE_COMP_WORDBREAKS", " \t\n\"'><=;|&(:")
    monkeypatch.setenv("COMP_TYPE", "9")
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))

    def to_file(finder, parser, **options):
      with file.open("w") as stream:
        call(finder, parser, exit_method=lambda status: None, output_stream=stream, **options)

    monkeypatch.setattr(argcomplete.CompletionFinder, "__call__", to_file)
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


def test_values_have_no_description_in_zsh(complete):
  found = complete("spatial-vlm sft --config.optimizer.method=mu", "zsh")
  assert found == ["muon :"]
