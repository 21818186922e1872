"""The stages of the demo: their settings, and what they wait for."""

from etils import epath

from spatial_vlm import config
from spatial_vlm.demo import methods
from spatial_vlm.demo.stages import DONE, TIMED, stages


def settings(**changes):
  return config.load(
    "configs/demo.py:tiny", [f"--config.{name}={value}" for name, value in changes.items()]
  )


def test_every_stage_has_settings_that_its_command_knows(tmp_path):
  """A leaf that does not exist, or a value of another type, would stop the demo after minutes."""
  chosen = settings()
  plan = stages(chosen, epath.Path(tmp_path))
  for stage in plan:
    name = stage.command
    changes = [f"--config.{leaf}={value}" for leaf, value in stage.changes.items()]
    loaded = config.load(f"configs/{name}.py:{stage.preset}", changes)
    assert all(
      str(config.leaves(loaded)[leaf]) == str(value) for leaf, value in stage.changes.items()
    )
    assert stage.seconds > 0 and stage.title
  names = [stage.name for stage in plan]
  assert len({*names}) == len(names)
  assert {*methods.FOLDERS.values()} <= {stage.folder for stage in plan}
  assert [*methods.METHODS] == [*methods.FOLDERS][: len(methods.METHODS)]
  assert set(config.unread(chosen)) == {"scenes_shown", "stages_at_once"}  # read by the run itself


def test_every_command_accepts_the_small_demo(tmp_path):
  small = config.load("configs/demo.py:quick")
  assert config.leaves(small).keys() == config.leaves(settings()).keys()
  for stage in stages(small, epath.Path(tmp_path)):
    stage.settings()


def test_a_stage_waits_for_all_that_it_reads(tmp_path):
  """A stage needs every stage whose folder is in its settings, and comes after them in the plan."""
  plan = stages(settings(), epath.Path(tmp_path))
  before: dict[str, set[str]] = {}  # of each stage so far: all that are over when it begins
  for stage in plan:
    before[stage.name] = {*stage.needs}.union(*(before[need] for need in stage.needs))
    paths = [str(value) for value in stage.changes.values()]
    read = {s.folder for s in plan for path in paths if f"/{s.folder}/" in path}
    if stage.note == TIMED:
      read |= {stage.folder}
    assert {f"{folder}/{DONE}" for folder in read} <= before[stage.name]


def test_one_question_at_a_time_is_measured_when_nothing_else_runs(tmp_path):
  plan = stages(settings(timed_questions=7), epath.Path(tmp_path))
  timed = [stage for stage in plan if stage.changes.get("timed_questions")]
  models = [f for m, f in methods.FOLDERS.items() if m != methods.MAJORITY]
  assert sorted(stage.folder for stage in timed) == sorted(models)
  for stage in timed:
    assert stage.changes["timed_questions"] == 7
    assert len(stage.needs) == plan.index(stage)  # all before it are over
  untimed = stages(settings(timed_questions=0), epath.Path(tmp_path))
  assert [stage.name for stage in untimed] == [s.name for s in plan if s not in timed]


def test_labels_and_images_of_held_out_scenes_train_nothing(tmp_path):
  for stage in stages(settings(), epath.Path(tmp_path)):
    if stage.command in ("sft", "dapo", "behaviors"):
      assert not any("test" in str(value).rsplit("/", 1)[-1] for value in stage.changes.values())


def test_the_seed_reaches_every_stage_that_draws(tmp_path):
  plan = stages(settings(seed=7), epath.Path(tmp_path))
  drawing = [stage for stage in plan if "seed" in stage.settings()]
  assert {stage.command for stage in drawing} == {"scenes", "sft", "dapo"}
  assert all(stage.settings().seed == 7 for stage in drawing)
