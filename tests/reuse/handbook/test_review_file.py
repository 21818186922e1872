"""A handbook as an editable file: what is written is read, edits count, mistakes are named with their line."""

import pytest
import yaml

from spatial_vlm.config import UsageError
from spatial_vlm.reuse.handbook.handbook import Behavior
from spatial_vlm.reuse.handbook.review_file import BY_HAND, is_edited, read, render

LEFT = Behavior(
  "behavior_left_of",
  "yes when X's centre: x < Y centre x # always",
  "left of",
  ("The X is left of the Y.",),
  tuple(sorted(f"train:{i}" for i in range(40))),
  tokens=12,
  recalls=4,
  successes=3,
  saved_tokens=61.5,
)
NOT = Behavior(
  "behavior_not_near", "no when 1 ≤ gap", "not near", ("The X is not near the Y.",), ("12:30",), 5
)


def words(text):
  return len(text.split())


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "behaviors.yaml"
  path.write_text(render([LEFT, NOT], {"train:3": "The dog's centre x=1 < x=9. " * 30}))
  return path


def test_what_is_written_is_read(file):
  left, near = read(file, words)
  assert left == LEFT.__class__(**vars(LEFT) | {"tokens": words(LEFT.line)})
  assert near.provenance == ("12:30",)  # YAML 1.1 reads it as a number where it is not quoted
  assert max(map(len, file.read_text().splitlines())) <= 120
  assert "train:3: The dog's centre x=1 < x=9." in file.read_text()


def test_only_a_changed_file_is_edited(file):
  text = file.read_text()
  assert not is_edited(text)
  for changed in (text.replace("left of", "right of"), text + "- name: a\n", text[:-40], ""):
    assert is_edited(changed)


def test_a_person_edits_removes_renames_and_adds(file):
  items = yaml.safe_load(file.read_text())
  assert [item["name"] for item in items] == [LEFT.name, NOT.name]
  start = file.read_text().index("# chains: 1,")
  edited = file.read_text()[:start].replace("behavior_left_of", "behavior_compare_centres")
  edited += (
    "- name: behavior_inside\n  instruction: yes when Y surrounds X\n  relation: is inside\n"
  )
  file.write_text(edited)
  renamed, added = read(file, words)
  assert (renamed.name, renamed.provenance) == ("behavior_compare_centres", LEFT.provenance)
  assert (added.relation, added.questions) == ("inside", ("The X is inside the Y.",))
  assert added.provenance == (f"{BY_HAND}:behaviors.yaml",)
  assert added.tokens == words("behavior_inside: yes when Y surrounds X")


@pytest.mark.parametrize(
  ("item", "line", "message"),
  [
    ("name: behavior_a", 1, "instruction missing; a behavior has name, instruction, relation"),
    ("name: behavior_a\n  instruction: do", 1, "neither relation nor questions"),
    ("name: behavior_a\n  instruction: do\n  relation: near\n  uses: 3", 1, "unknown field uses"),
    ("name: left\n  instruction: do\n  relation: near", 1, "name 'left' does not match"),
    ("name: behavior_a\n  instruction: yes\n  relation: near", 1, "instruction is True, expected"),
    ("name: behavior_a\n  instruction: do\n  questions: one", 1, "questions is 'one', expected a"),
    ("name: behavior_a\n  instruction: do\n  questions: [1]", 1, "questions holds 1, which is no"),
    (
      "name: behavior_a\n  instruction: a: b\n  relation: near",
      2,
      "mapping values are not allowed",
    ),
    ("name: behavior_a\n\tinstruction: do", 2, "found character"),
    ("name: behavior_a\n  name: behavior_b\n  instruction: do\n  relation: near", 1, "name stands"),
    ("just words", 1, "'just words' is no behavior"),
    ("name: behavior_a\n  instruction: do\n  relation: near\n  recalls: -1", 1, "0 ≤ successes"),
    ("name: !!python/object:os.system behavior_a", 1, "could not determine a constructor"),
  ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, item, line, message):
  path = tmp_path / "b.yaml"
  good = "- name: behavior_good\n  instruction: do\n  relation: far from\n"
  path.write_text(f"# A comment.\n{good}- {item}\n")
  with pytest.raises(UsageError, match=message) as error:
    read(path, words)
  assert str(error.value).startswith(f"{path}:{line + 4}: ")


@pytest.mark.parametrize(
  ("relation", "key", "question"),
  [
    ("contains", "contains", "The X contains the Y."),
    ("is to the left of", "left of", "The X is left of the Y."),
    ("not near", "not near", "The X is not near the Y."),
    ("reversed behind", "reversed behind", "The X has the Y behind it."),
    (
      "left of, from Y's viewpoint",
      "left of, from Y's viewpoint",
      "The X is left of the Y, from the Y's point of view.",
    ),
  ],
)
def test_a_relation_without_questions_gets_its_caption(tmp_path, relation, key, question):
  path = tmp_path / "b.yaml"
  path.write_text(f'- {{name: behavior_a, instruction: do, relation: "{relation}"}}\n')
  (behavior,) = read(path, words)
  assert (behavior.relation, behavior.questions) == (key, (question,))


@pytest.mark.parametrize("questions", ["", ", questions: [The X wobbles the Y.]"])
@pytest.mark.parametrize("relation", ["gibberish wobble", "is", "reversed", "not"])
def test_an_unknown_relation_is_refused_with_the_allowed_form(tmp_path, relation, questions):
  path = tmp_path / "b.yaml"
  path.write_text(f'- {{name: behavior_a, instruction: do, relation: "{relation}"{questions}}}\n')
  with pytest.raises(UsageError, match=f"relation '{relation}' is not known; write .*left of"):
    read(path, words)


def test_control_characters_of_a_chain_do_not_spoil_the_file(tmp_path):
  path = tmp_path / "behaviors.yaml"
  path.write_text(
    render([LEFT], {"train:3": "The\x07 dog\u2028- name:\x85 {cat}\ufffe is \ud800."})
  )
  assert [b.name for b in read(path, words)] == [LEFT.name]


def test_names_are_unique(tmp_path):
  path = tmp_path / "b.yaml"
  path.write_text("- {name: behavior_a, instruction: do, relation: near}\n" * 2)
  with pytest.raises(UsageError, match="b.yaml:2: there are two behaviors named behavior_a"):
    read(path, words)


@pytest.mark.parametrize("text", ["", "# nothing\n", "a: 3\n", "[]\n", "words\n"])
def test_a_file_without_behaviors_is_refused(tmp_path, text):
  (tmp_path / "b.yaml").write_text(text)
  with pytest.raises(UsageError, match="b.yaml holds no list of behaviors"):
    read(tmp_path / "b.yaml", words)


def test_a_missing_or_binary_file_is_refused(tmp_path):
  (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
  for name in ("b.yaml", "absent.yaml"):
    with pytest.raises(UsageError, match=f"{name} cannot be read"):
      read(tmp_path / name, words)
