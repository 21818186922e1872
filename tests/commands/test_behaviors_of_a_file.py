"""`behaviors` from chains that exist already: without policy and images, by every extractor, with a review."""

import json

import pytest
import yaml

from spatial_vlm import config
from spatial_vlm.commands import behaviors
from spatial_vlm.data import conversations
from spatial_vlm.data.conversations import Conversation
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.evaluation.results import RecallCount, recalls_json
from spatial_vlm.processor.chat import Processor
from spatial_vlm.reuse.index.index_folder import load_index
from spatial_vlm.synthesis import scene_teacher
from spatial_vlm.synthesis.formats import CHAIN_QUESTION
from spatial_vlm.synthesis.local.local_server import LocalServer

PRESET = "configs/behaviors.py:chains"
INSTRUCTION = "yes when X comes before Y"


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
  """A file of 60 chains about scenes, whose images exist nowhere."""
  source = SceneSource("train", seed=3, count=60, image_size=8)
  path = tmp_path_factory.mktemp("chains") / "chains.jsonl"
  rows = (
    Conversation(
      f"{i}.png", CHAIN_QUESTION(source[i].record.caption).text, scene_teacher.chain(source[i])
    )
    for i in range(60)
  )
  conversations.write(path, rows)
  return path


@pytest.fixture
def of_file(run, chains, tmp_path):
  """Runs the command in the test's workdir with the chains and changed leaves."""

  def run_it(*arguments, **changes):
    defaults = {"chains": chains, "min_support": 2}
    return run("behaviors", tmp_path / "run", defaults | changes, "--config", PRESET, *arguments)

  return run_it


@pytest.fixture
def refused_file(of_file, capsys, tmp_path):
  def refuse(**changes):
    capsys.readouterr()
    assert of_file(**changes).code == 2
    assert not (tmp_path / "run" / "config.json").exists()
    return capsys.readouterr().err

  return refuse


def handbook(tmp_path):
  return load_index(tmp_path / "run" / "index").handbook


@pytest.mark.parametrize("extractor", ["pattern", "clusters"])
def test_a_file_is_enough(of_file, tmp_path, extractor):
  assert of_file(extractor=extractor).code == 0
  found = handbook(tmp_path)
  assert len(found) >= 3
  items = yaml.safe_load((tmp_path / "run" / "behaviors.yaml").read_text())
  assert [item["name"] for item in items] == [b.name for b in found.behaviors]
  for behavior in found.behaviors:
    assert all(record.startswith("train:") for record in behavior.provenance)
    assert behavior.relation in behavior.questions[0]
    assert behavior.saved_tokens > 10
  rows = [json.loads(line) for line in (tmp_path / "run" / "conversations.jsonl").open()]
  assert len(rows) > 40 and any("system" in row for row in rows)


def test_the_tokenizer_of_a_checkpoint_counts_tokens(of_file, tmp_path, nano):
  assert of_file().code == 0
  words = {b.name: b.saved_tokens for b in handbook(tmp_path).behaviors}
  (tmp_path / "run" / "config.json").unlink()
  assert of_file(checkpoint=nano).code == 0
  processor = Processor.from_folder(nano)
  for behavior in handbook(tmp_path).behaviors:
    assert behavior.tokens == len(processor.encode_text(behavior.line))
    assert behavior.saved_tokens != words[behavior.name]


def test_a_review_makes_the_index_and_is_never_overwritten(of_file, tmp_path, capsys):
  assert of_file().code == 0
  file = tmp_path / "run" / "behaviors.yaml"
  before = handbook(tmp_path)
  items = yaml.safe_load(file.read_text())
  items[0]["name"] = "behavior_renamed"
  hand_written = {"name": "behavior_mine", "instruction": "look", "relation": "behind"}
  file.write_text(yaml.safe_dump([items[0], *items[2:], hand_written]))
  edited = file.read_text()
  assert of_file().code == 2
  assert f"use it with --config.review={file}" in capsys.readouterr().err
  assert of_file(review=file).code == 0 and file.read_text() == edited
  after = handbook(tmp_path)
  assert len(after) == len(before)
  assert after["behavior_renamed"].provenance == before.behaviors[0].provenance
  assert after["behavior_mine"].provenance == ("by-hand:behaviors.yaml",)
  assert before.behaviors[1].name not in {b.name for b in after.behaviors}


def test_recalls_count_once_and_long_instructions_are_refused_in_a_review(
  of_file, refused_file, tmp_path
):
  """The figures of the reviewed file count; the recalls that are in them are not added again."""
  assert of_file().code == 0
  name = handbook(tmp_path).behaviors[0].name
  results = tmp_path / "results.json"
  results.write_text(json.dumps({"recalls": recalls_json({name: RecallCount(4, 3, 50.0)})}))
  assert of_file(recalls=results).code == 0
  counted = handbook(tmp_path)[name]
  assert (counted.recalls, counted.utility) == (4, 150)
  file = tmp_path / "run" / "behaviors.yaml"
  assert of_file(recalls=results, review=file).code == 0
  assert handbook(tmp_path)[name] == counted
  (tmp_path / "run" / "config.json").unlink()
  assert "more than max_instruction_tokens=3; shorten" in refused_file(
    review=file, max_instruction_tokens=3
  )


def test_no_behavior_comes_from_evaluation_items(refused_file, of_file, tmp_path, chains):
  message = refused_file(**{"data.split": "dev"})
  assert "data.split is 'dev'" in message
  test = tmp_path / "test.jsonl"
  test.write_bytes(chains.read_bytes())
  assert "chains is 'test', a split to measure on" in refused_file(chains=test)
  record = {
    **{"image": "5.png", "image_link": "", "label": 1, "relation": "x", "annotator_id": 0},
    "caption": SceneSource("train", seed=3, count=60, image_size=8)[5].record.caption,
    **{"vote_true_validator_id": "[]", "vote_false_validator_id": "[]"},
  }
  (tmp_path / "held_out.jsonl").write_text(json.dumps(record) + "\n")
  message = refused_file(evaluation=tmp_path / "held_out.jsonl")
  assert "1 of the 1 evaluation pairs" in message and "training records only" in message
  review = tmp_path / "review.yaml"
  review.write_text("- {name: behavior_a, instruction: do, relation: near, sources: ['val:3']}\n")
  assert "behavior_a was extracted from 1 evaluation records" in refused_file(review=review)


def test_wrong_missing_and_empty_files_are_refused_on_one_line(refused_file, tmp_path):
  files = {name: tmp_path / f"{name}.jsonl" for name in ("wrong", "empty", "absent")}
  files["wrong"].write_text('{"image": "a", "question": "Why?", "answer": "So."}\n' * 3)
  files["empty"].write_text("")
  messages = {name: refused_file(chains=path) for name, path in files.items()}
  assert "3 of 3 records (100.0%) cannot be used" in messages["wrong"]
  assert "no question for a full chain" in messages["wrong"]
  assert "empty.jsonl holds no record" in messages["empty"]
  assert "absent.jsonl" in messages["absent"]


def test_limits_that_drop_all_behaviors_are_named(of_file, capsys):
  assert of_file(max_handbook_tokens=5).code == 2
  message = capsys.readouterr().err
  assert "max_handbook_tokens=5" in message and "no procedure is shared" not in message


def test_limits_drop_the_least_useful(of_file, tmp_path):
  assert of_file(max_entries=2).code == 0
  assert len(handbook(tmp_path)) == 2
  assert of_file(max_handbook_tokens=20).code == 0
  assert 0 < sum(b.tokens for b in handbook(tmp_path).behaviors) <= 20


def reflect(image, system, text, seed):
  """A teacher that names the relation of the statement."""
  if "Reflection:" not in text:
    return "The order of the objects decides."
  caption = text.splitlines()[0].removeprefix("Statement: ")
  words = caption.partition(" is ")[2].rsplit(" the ", 1)[0]
  verdict = "yes" if "Conclusion: Yes" in text else "no"
  behavior = {"name": "behavior_order", "relation": words, "verdict": verdict}
  return json.dumps({"behaviors": [behavior | {"instruction": f"{verdict}{INSTRUCTION[3:]}"}]})


@pytest.fixture
def asked(monkeypatch):
  """Leaves for a server on this machine in Gemini's place."""
  with LocalServer(reflect, model="gemini-2.5-local") as server:
    monkeypatch.setenv("GEMINI_API_KEY", server.key)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    prices = {f"ask.prices.{name}_usd": 0.0 for name in ("input", "cached", "output")}
    others = {"ask.base_url": server.url, "ask.model": "gemini-2.5-local", "extractor": "teacher"}
    limits = {"ask.thinking_level": "none", "ask.requests_per_minute": 60_000.0}
    yield server, others | prices | limits | {"ask.chains_per_relation": 4}


def test_a_teacher_writes_them_and_is_paid_once(of_file, tmp_path, asked):
  server, leaves = asked
  done = of_file(**leaves)
  assert done.code == 0
  found = handbook(tmp_path).behaviors
  assert len(found) >= 3 and {b.name.rstrip("_0123456789") for b in found} == {"behavior_order"}
  assert len({b.relation for b in found}) == len(found)
  answers = sum(server.stats().answers.values())
  before = (tmp_path / "run" / "behaviors.yaml").read_bytes()
  assert of_file(**leaves, max_handbook_tokens=60_000).code == 0
  assert sum(server.stats().answers.values()) == answers > 6
  assert (tmp_path / "run" / "behaviors.yaml").read_bytes() == before


def test_a_question_beyond_the_reserved_tokens_is_not_sent_and_counted(of_file, asked, capsys):
  server, leaves = asked
  assert of_file(**leaves, **{"ask.estimate.max_prompt_tokens": 900}).code == 2
  assert not server.stats().answers
  found = capsys.readouterr()
  assert "the question may be longer than ask.estimate.max_prompt_tokens=900" in found.out


def test_a_missing_key_and_a_wrong_encoder_are_refused_before_chains_are_read(
  refused_file, asked, monkeypatch
):
  assert "no/such/encoder" in refused_file(text_embedder="no/such/encoder")
  missing = {"ask.teacher": "policy", "ask.model": "no/such/policy", "ask.temperature": 1.0}
  assert "no/such/policy" in refused_file(**asked[1] | missing)
  monkeypatch.delenv("GEMINI_API_KEY")
  assert "GEMINI_API_KEY" in refused_file(**asked[1])


def test_every_setting_of_ask_is_read_for_some_teacher(of_file, asked, chains, nano):
  unread = set(config.unread(of_file(**asked[1]).configs[0]))
  for teacher in ("gemini", "openai", "policy"):
    others = {"ask.teacher": teacher, "ask.model": nano, "ask.temperature": 1.0, "chains": chains}
    settings = [f"{name}={value}" for name, value in {**asked[1], **others}.items()]
    loaded = config.load(PRESET, [f"--config.{setting}" for setting in settings])
    behaviors.check(loaded)
    unread &= set(config.unread(loaded))
  assert not {name for name in unread if name.startswith("ask.")}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"ask.teacher": "local"}, "ask.teacher is 'local'"),
    ({"ask.teacher": "gemeni"}, "teacher is 'gemeni'; choose one of"),
    ({"ask.chains_per_relation": 0}, "chains_per_relation is 0"),
    ({"ask.prices.input_usd": "none"}, "lists no prices of 'gemini-2.5-local'"),
    ({"ask.concurrency": 0}, "concurrency is 0"),
  ],
)
def test_wrong_settings_of_a_teacher_are_refused(refused_file, asked, changes, message):
  assert message in refused_file(**asked[1] | changes)
