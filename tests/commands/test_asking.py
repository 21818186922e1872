"""Questions in, written answers out."""

import numpy as np
import pytest

from spatial_vlm.commands import asking
from spatial_vlm.commands.asking import Asker, PromptShape
from spatial_vlm.commands.behaviors import full_chain
from spatial_vlm.commands.setup import load_policy
from spatial_vlm.config import UsageError
from spatial_vlm.data.records import First, JsonlSource
from spatial_vlm.rollout import Completions


@pytest.fixture(scope="module")
def policy(taught):
  return load_policy(str(taught))


@pytest.fixture(scope="module")
def source(scenes_folder):
  return JsonlSource(scenes_folder / "validation.jsonl", scenes_folder / "images")


@pytest.fixture
def asker(policy):
  return Asker(policy, PromptShape(64, 64), 128, full_chain)


def test_a_prompt_that_does_not_fit_is_named_with_its_sizes(policy, source):
  row = asking.encode_question(policy.processor, source[0].image, "one two three")
  tokens = len(row.tokens)
  asking.collate(policy.processor, [row], [5], [1], PromptShape(tokens, 64))
  for shape in (PromptShape(tokens - 1, 64), PromptShape(tokens, 63)):
    with pytest.raises(
      UsageError,
      match=rf"prompt 5 has {tokens} tokens and 64 patches.*{shape.tokens}.*{shape.patches}",
    ):
      asking.collate(policy.processor, [row], [5], [1], shape)


def test_written_stops_at_the_end_of_the_turn_and_tells_truncation(policy):
  yes = policy.processor.encode_text("Yes.")
  eos, pad = policy.special.eos, policy.special.pad
  tokens = np.full((3, 6), pad)
  tokens[0, :3] = [*yes, eos]
  tokens[1] = [yes[0]] * 6
  tokens[2, 0] = eos
  mask = np.array([[1, 1, 1, 0, 0, 0], [1] * 6, [1, 0, 0, 0, 0, 0]], bool)
  found = asking.written(policy, Completions(tokens, mask, np.zeros((3, 6))))
  assert found == [
    asking.Written("Yes.", 3, False),
    asking.Written("Yes" * 6, 6, True),
    asking.Written("", 1, False),
  ]
  assert asking.written_verdicts(policy, None, found) == [1, -1, -1]


def test_a_truncated_verdict_does_not_count(policy):
  assert asking.written_verdicts(policy, None, [asking.Written("Yes.", 2, True)]) == [-1]


def test_rows_that_fill_the_batch_have_no_prediction(asker, source):
  rows = [asker.encode(source[i]) for i in (0, 1, 1, 2)]
  found = asker.answer(rows, [0, 1, -1, 2])
  assert [p.id for p in found] == [0, 1, 2]
  for p, i in zip(found, (0, 1, 2), strict=True):
    record = source[i].record
    assert (p.caption, p.relation, p.label) == (record.caption, record.relation, record.label)
    assert p.prompt_tokens == len(rows[i if i < 2 else 3][2].tokens)
    assert p.verdict in (0, 1) and p.text.startswith("Summary: ")


def test_an_answer_does_not_depend_on_the_size_of_the_batch(asker, source):
  rows = [asker.encode(source[i]) for i in range(4)]
  together = asker.answer(rows, range(4))
  apart = [asker.answer([row], [i])[0] for i, row in enumerate(rows)]
  assert apart == together


@pytest.mark.parametrize("torn", ["", "half a line", '{"id": 0}\n', None])
def test_a_part_without_its_last_line_is_no_part(tmp_path, torn):
  path = tmp_path / "part-00000.jsonl"
  if torn is not None:
    path.write_text(torn)
  assert asking.read_part(path) is None
  path.write_text(asking.END + "\n")
  assert asking.read_part(path) == []


def test_parts_hold_a_batch_each_and_are_read_back(asker, source, tmp_path, monkeypatch):
  first = asking.stored_answers(tmp_path, asker, First(source, 10), 4, 0.0, "test")
  assert [path.name for path in sorted(tmp_path.iterdir())] == [
    f"part-0000{i}.jsonl" for i in range(3)
  ]
  assert [p.id for p in first] == list(range(10))
  monkeypatch.setattr(asking, "greedy", lambda *_: pytest.fail("asked again"))
  again = asking.stored_answers(tmp_path, asker, First(source, 10), 4, 0.0, "test")
  assert again == first
