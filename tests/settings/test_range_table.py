"""Every number and every tuple of every preset has a range, and every preset is within them."""

from pathlib import Path

import pytest
from ml_collections.config_dict import FieldReference

from spatial_vlm import config as config_lib
from spatial_vlm.benchmark.measurements import MEASUREMENTS
from spatial_vlm.benchmark.subject import MODELS
from spatial_vlm.config import UsageError
from spatial_vlm.data.batch_plan import BATCHINGS
from spatial_vlm.data.vsr import PUBLISHED
from spatial_vlm.inference.controls import CONTROLS
from spatial_vlm.model.config import PRESETS
from spatial_vlm.model.stack import REMAT_POLICIES
from spatial_vlm.objectives.policy_objectives import OBJECTIVES
from spatial_vlm.optim import moments
from spatial_vlm.optim.optimizers import OPTIMIZERS
from spatial_vlm.optim.schedules import SCHEDULES
from spatial_vlm.planning.chips import CHIPS
from spatial_vlm.planning.programs import PROGRAMS
from spatial_vlm.reuse.extraction.extractors import EXTRACTORS
from spatial_vlm.rewards.table import REWARDS
from spatial_vlm.rollout.vllm_client import TRANSFERS
from spatial_vlm.settings import names
from spatial_vlm.settings.comments import docstring_parts
from spatial_vlm.settings.range_table import RANGES
from spatial_vlm.synthesis.teacher_table import TEACHERS
from spatial_vlm.synthesis.text_teacher import NO_TEXT
from spatial_vlm.synthesis.verify.check_settings import BOX_RELATIONS
from spatial_vlm.tasks import PROMPTS, TASKS
from spatial_vlm.tasks.statements import TEMPLATES
from spatial_vlm.train.engines import ENGINES

CONFIGS = Path(__file__).parents[2] / "configs"
SPECS = [
  f"configs/{path.name}:{preset}"
  for path in sorted(CONFIGS.glob("*.py"))
  for preset in docstring_parts(path)[1]
  if path.stem != "common"
]


def type_of(field):
  return field.get_type() if isinstance(field, FieldReference) else type(field)


@pytest.mark.parametrize("spec", SPECS)
def test_every_number_and_tuple_has_a_range(spec):
  fields = config_lib.fields(config_lib.read_preset(spec))
  ranges = RANGES[fields["algorithm"]]
  without = [
    name
    for name, field in fields.items()
    if type_of(field) not in (str, bool) and name not in ranges
  ]
  assert not without, f"{spec}: no range in settings/range_table.py for {without}"
  assert not ranges.keys() - fields.keys(), "ranges of leaves that do not exist"
  config_lib.load(spec, complete=False)  # the preset's own values are within them


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.endswith(":tiny")])
def test_numbers_that_are_none_are_refused_everywhere(spec):
  fields = config_lib.fields(config_lib.read_preset(spec))
  for name in (name for name, field in fields.items() if type_of(field) is float):
    for value in ("nan", "inf", "-inf"):
      with pytest.raises(UsageError, match=rf"^{name} is {value}; numbers must be finite$"):
        config_lib.load(spec, [f"{name}={value}"])


@pytest.mark.parametrize(
  ("command", "override", "message"),
  [
    ("dapo", "eps_high=-3", "eps_high is -3.0; it must be at least 0"),
    ("dapo", "eps_low=1.5", "eps_low is 1.5; it must be from 0 to 1"),
    ("dapo", "optimizer.learning_rate=-0.5", "optimizer.learning_rate is -0.5; it must be above 0"),
    ("sft", "optimizer.clip_norm=-1", "optimizer.clip_norm is -1.0; it must be above 0"),
    ("sft", "optimizer.beta1=1", "optimizer.beta1 is 1.0; it must be at least 0 and below 1"),
    ("sft", "optimizer.method=sgd", "optimizer.method is 'sgd'; choose one of adamw, muon, adafac"),
    ("sft", "mesh.data=0", "mesh.data is 0; it must be -1 or at least 1"),
    ("sft", "seed=4294967296", "seed is 4294967296; it must be at most 2147483647"),
    (
      "sft",
      "data.shapes=((0, 64),)",
      r"data.shapes is \(\(0, 64\),\); it must be one or more pairs",
    ),
    ("sft", "data.mix=(('a', 'b', -1.0),)", "data.mix is .* weights above 0"),
    ("sft", "trainable=()", r"trainable is \(\); it must be a tuple of 1 or more texts"),
    ("dapo", "objectives=(('ppo', 1.0),)", "objectives is .* names are dapo, gspo, kl_reference"),
    ("dapo", "answer_lengths=(0,)", r"answer_lengths is \(0,\); it must be a tuple of items, each"),
    ("synthesize", "checks.decisive=behind", "each one of left of, right of"),
    ("synthesize", "timeout_s=0", "timeout_s is 0.0; it must be above 0"),
    ("behaviors", "ask.teacher=local", "ask.teacher is 'local'; choose one of gemini, openai"),
    ("evaluate", "control=black", "control is 'black'; choose one of blank, cannot_tell"),
    ("serve", "temperature=3", "temperature is 3.0; it must be from 0 to 2"),
    ("scenes", "objects=(1, 2, 3)", "it must be a tuple of 2 items, each at least 1"),
    ("export", "run=a\0b", "run is 'a.x00b'; text must not have NUL characters"),
  ],
)
def test_values_that_make_no_sense_name_what_is_allowed(command, override, message):
  with pytest.raises(UsageError, match=message):
    config_lib.load(f"configs/{command}.py:tiny", [override])


def test_all_wrong_values_are_named_together():
  with pytest.raises(UsageError, match="^epochs is 0; .*; optimizer.eps is 0.0; .* above 0$"):
    config_lib.load("configs/sft.py:tiny", ["epochs=0", "optimizer.eps=0"])


@pytest.mark.parametrize(
  ("known", "table"),
  [
    (names.REMAT_POLICIES, REMAT_POLICIES),
    (names.OPTIMIZERS, OPTIMIZERS),
    (names.SCHEDULES, SCHEDULES),
    (names.MOMENTS, moments.DTYPES),
    (names.BATCHINGS, BATCHINGS),
    (names.ENGINES, ENGINES),
    (names.TRANSFERS, TRANSFERS),
    (names.OBJECTIVES, OBJECTIVES),
    (names.REWARDS, REWARDS),
    (names.TASKS, TASKS),
    (names.TEMPLATES, ("project", *TEMPLATES)),
    (names.PROMPTS, PROMPTS),
    (names.CONTROLS, ("", *CONTROLS)),
    (names.TEACHERS, TEACHERS),
    (names.TEXT_TEACHERS, {*TEACHERS} - {NO_TEXT}),
    (names.EXTRACTORS, EXTRACTORS),
    (names.PUBLISHED, ("", *PUBLISHED)),
    (names.MODELS, PRESETS),
    ((*names.MODELS, "small"), MODELS),
    (names.MEASUREMENTS, MEASUREMENTS),
    (names.BOX_RELATIONS, BOX_RELATIONS),
    (names.PLANNED, PROGRAMS),
    (names.TPU_VERSIONS, CHIPS),
  ],
)
def test_names_are_those_of_the_tables(known, table):
  assert sorted(known) == sorted(table)
