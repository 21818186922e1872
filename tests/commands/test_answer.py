"""`answer`: one question about one photograph."""

import dataclasses
import json
from types import SimpleNamespace

import PIL.Image
import pytest
import skimage

from spatial_vlm import config
from spatial_vlm.commands import answer as command
from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.handbook.handbook import Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.reuse.index.index_folder import load_index, save_index
from spatial_vlm.reuse.statements.masking import mask_objects
from spatial_vlm.tasks.statements import behavior_prompt, question

ASTRONAUT = f"{skimage.__path__[0]}/data/astronaut.png"


STATEMENT = "The cat is left of the mug."


def ask(run, tmp_path, photo, checkpoint, *others, statement=STATEMENT, **changes):
  """Runs `answer`; its exit status, if the answer has no verdict, is that of a SystemExit."""
  question = (photo, statement, "--checkpoint", checkpoint)
  try:
    return run("answer", tmp_path / "run", changes, *question, *others)
  except SystemExit as ended:
    return SimpleNamespace(code=ended.code)


def test_a_photograph_is_answered_and_drawn_upon(
  run, taught, scenes_folder, tmp_path, capsys, caplog
):
  """It looks like the training images: nothing is warned of."""
  drawn = tmp_path / "boxes.png"
  record = json.loads((scenes_folder / "train.jsonl").read_text().splitlines()[0])
  photo, statement = scenes_folder / "images" / record["image"], record["caption"]
  done = ask(run, tmp_path, photo, taught, "--draw", drawn, statement=statement)
  assert done.code == 0
  assert config.unread(done.configs[0]) == ["behavior_tokens"]  # read with --behaviors
  out = capsys.readouterr().out
  assert "\nverdict: " in out and "\ntokens: " in out and f"boxes drawn in {drawn}" in out
  assert out.endswith(f"\nresult: {drawn}\n")
  assert PIL.Image.open(drawn).size == (512, 512)
  assert not [record for record in caplog.records if record.levelname == "WARNING"]
  for preset in ("tiny", "8b"):
    config.read_preset(f"configs/answer.py:{preset}")


def test_unparsed_and_too_long_answers_are_reported(
  run, nano, taught, scenes_folder, tmp_path, capsys
):
  photo = scenes_folder / "images" / "train_000000.png"
  assert ask(run, tmp_path, photo, taught, max_new_tokens=5).code == 1
  out = capsys.readouterr().out
  assert (
    "verdict: none: the answer does not parse" in out
    and "5 generated, cut off at max_new_tokens 5" in out
  )


def test_direct_and_recalled_questions(
  run, taught, extracted, scenes_folder, tmp_path, caplog, monkeypatch
):
  asked = []
  original = command.encode_question
  monkeypatch.setattr(
    command, "encode_question", lambda p, i, *text: asked.append(text) or original(p, i, *text)
  )
  photo = scenes_folder / "images" / "train_000000.png"
  index = load_index(extracted / "index")
  behavior = index.handbook.behaviors[0]
  statement = behavior.questions[0].replace("X", "cat").replace("Y", "mug")
  recalled = ("--behaviors", extracted / "index")
  for others in (("--direct",), recalled):
    assert (
      ask(run, tmp_path, photo, taught, *others, statement=statement, max_new_tokens=8).code == 1
    )
    form = "short" if others == recalled else "direct"
    assert f"was not trained to answer in the form '{form}' (it learnt chain)" in caplog.text
    caplog.clear()
  assert (
    ask(run, tmp_path, photo, taught, *recalled, statement="Cats purr.", max_new_tokens=8).code == 1
  )
  assert "in the form" not in caplog.text
  assert asked == [
    (question(statement, "direct"), ""),
    (question(statement, "short"), behavior_prompt(behavior.line)),
    (question("Cats purr.", "chain"), ""),
  ]


@pytest.mark.parametrize("tokens", [48, 49])
def test_answer_and_evaluate_recall_the_same(
  run, taught, extracted, scenes_folder, evaluate_changes, tmp_path, monkeypatch, tokens
):
  """Both presets recall behaviors of up to 48 tokens, independently of the limit on the sum of a handbook's lines."""
  stored = load_index(extracted / "index").handbook
  behaviors = tuple(dataclasses.replace(b, tokens=tokens) for b in stored.behaviors)
  handbook = Handbook(stored.max_entries, stored.max_tokens, behaviors)
  folder = tmp_path / "index"
  save_index(BehaviorIndex(handbook, LexicalEmbedder(), 0.8), folder, "lexical")

  changes = {**evaluate_changes, "method": "reuse", "behaviors": folder, "timed_questions": 0}
  assert run("evaluate", tmp_path / "evaluate", changes).code == 0
  lines = (tmp_path / "evaluate" / "predictions.jsonl").read_text().splitlines()
  recalled = {p["caption"]: p["retrieved"] for p in map(json.loads, lines)}
  assert any(recalled.values()) == (tokens == 48)

  asked = []
  original = command.encode_question
  monkeypatch.setattr(
    command, "encode_question", lambda p, i, *text: asked.append(text) or original(p, i, *text)
  )
  known = {b.questions[0] for b in behaviors}
  captions = [caption for caption in recalled if mask_objects(caption) in known][:2]
  assert captions
  photo = scenes_folder / "images" / "train_000000.png"
  for caption in captions:
    recall = ("--behaviors", folder)
    assert ask(run, tmp_path, photo, taught, *recall, statement=caption, max_new_tokens=8).code == 1
    name = recalled[caption]
    recalls = question(caption, "short"), behavior_prompt(handbook[name].line) if name else ""
    assert asked[-1] == (recalls if name else (question(caption, "chain"), ""))


@pytest.mark.parametrize(
  ("photo", "others", "message"),
  [
    ("absent.png", (), "cannot read image absent.png"),
    (__file__, (), "cannot read image"),
    (ASTRONAUT, ("--behaviors", "no/such/index"), "no/such/index"),
    (ASTRONAUT, ("--draw", "boxes.nonsense"), "unknown file extension '.nonsense'; give FILE.png"),
    (ASTRONAUT, ("--draw", "no/folder/a.png"), "lies in no folder, as no/folder does not exist"),
    (ASTRONAUT, ("--draw", "/tmp.png", "--direct"), "an answer in the form 'direct' has none"),
    (
      ASTRONAUT,
      ("--direct", "--behaviors", "x"),
      "--behaviors: not allowed with argument --direct",
    ),
  ],
)
def test_unreadable_input_is_named_on_one_line(run, nano, tmp_path, capsys, photo, others, message):
  assert ask(run, tmp_path, photo, nano, *others, max_new_tokens=2).code == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_a_missing_checkpoint_is_named(run, tmp_path, capsys):
  assert ask(run, tmp_path, ASTRONAUT, "no/such/folder").code == 2
  assert "no/such/folder does not exist" in capsys.readouterr().err
