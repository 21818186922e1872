"""The choice of a config's programs."""

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.model.config import PRESETS
from spatial_vlm.planning.batch_rows import BATCH_ROWS
from spatial_vlm.planning.programs import PROGRAMS, algorithm_of, trace_programs

NAMES = {
  "configs/sft.py:tiny": ["SFT step", "writing weights"],
  "configs/dapo.py:tiny": [
    "publishing weights",
    "validation",
    "sampling",
    "judging",
    "collecting groups",
    "old log-probabilities",
    "DAPO update",
    "writing weights",
  ],
  "configs/dapo.py:tiny,engine.kind=slots": [
    "publishing weights",
    "reading prompts into slots",
    "16 tokens of every slot",
    "judging",
    "collecting groups",
    "old log-probabilities",
    "DAPO update",
    "writing weights",
  ],
  "configs/evaluate.py:tiny,in_flight=1": ["answers", "a single answer"],
  "configs/evaluate.py:tiny,prompt_slots=16": [
    "reading prompts into slots",
    "16 tokens of every slot",
    "a single answer",
  ],
  "configs/evaluate.py:tiny,in_flight=1,method=zero-shot": [
    "answers",
    "a single answer",
    "logits of the first token",
  ],
  "configs/behaviors.py:tiny,in_flight=1": ["answers"],
  "configs/answer.py:tiny": ["answer"],
  "configs/serve.py:tiny": ["reading prompts into slots", "8 tokens of every slot"],
  "configs/synthesize.py:self": ["sampled answers"],
}
"""Config with changes → the programs that its command runs."""


@pytest.mark.parametrize("command", PROGRAMS)
def test_each_config_names_its_command(load_config, command):
  for preset in ("tiny", "8b"):
    assert algorithm_of(load_config(f"configs/{command}.py:{preset}")) == command


def test_other_configs_are_refused(load_config):
  with pytest.raises(
    UsageError, match="algorithm is 'scenes'; programs can be planned for sft, dapo, evaluate"
  ):
    algorithm_of(load_config("configs/scenes.py:tiny"))
  with pytest.raises(UsageError, match="teacher is 'gemini', which runs elsewhere"):
    trace_programs(load_config("configs/synthesize.py:8b"), PRESETS["tiny"], [])
  with pytest.raises(UsageError, match="chains is 'c.jsonl': no model answers then"):
    chains = load_config("configs/behaviors.py:tiny", "chains=c.jsonl")
    trace_programs(chains, PRESETS["tiny"], [])


def test_training_commands_have_rows():
  assert BATCH_ROWS.keys() == {"sft", "dapo"} < PROGRAMS.keys()


@pytest.mark.parametrize("spec", NAMES)
def test_programs_of_every_command(load_config, eight_chips, spec):
  config = load_config(*spec.split(","))
  programs = trace_programs(config, PRESETS["tiny"], eight_chips.devices)
  assert [program.name for program in programs] == NAMES[spec]


@pytest.mark.parametrize("command", ["evaluate", "behaviors"])
def test_batches_that_the_command_refuses_are_not_planned(load_config, eight_chips, command):
  for changes, message in (
    (["in_flight=1", "batch_size=12"], "batch_size is 12; it must be a multiple"),
    (["in_flight=2"], "in_flight is 2 on a mesh of 8 devices"),
  ):
    with pytest.raises(UsageError, match=message):
      config = load_config(f"configs/{command}.py:tiny", *changes)
      trace_programs(config, PRESETS["tiny"], eight_chips.devices)


def test_groups_that_no_slots_hold_are_not_planned(load_config, eight_chips):
  changes = ["engine.kind=slots", "engine.prompt_slots=16", "engine.samples_per_slot=2"]
  config = load_config("configs/dapo.py:tiny", *changes, "group_size=5")
  with pytest.raises(UsageError, match="group_size is 5;.* hold 4 answers on each part"):
    trace_programs(config, PRESETS["tiny"], eight_chips.devices)


def test_the_checks_of_the_command_are_made_for_the_hosts_of_the_slice(load_config):
  pytest.importorskip("libtpu")
  from spatial_vlm.planning.chips import topology_devices

  _, devices = topology_devices("v5e:4x4", 1)
  for spec, leaf in (
    ("configs/sft.py:8b", "batch_size=24"),
    ("configs/dapo.py:8b", "validate_batch=3"),
  ):
    with pytest.raises(
      ValueError, match=rf"{leaf.partition('=')[0]} is \d+; it must be a multiple"
    ):
      trace_programs(load_config(spec, leaf), PRESETS["tiny"], devices)
