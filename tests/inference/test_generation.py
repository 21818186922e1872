"""Batched generation: from questions to written answers."""

import jax
import numpy as np
import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import UnusableRecord
from spatial_vlm.inference import generation
from spatial_vlm.inference.generation import PromptShape
from spatial_vlm.rollout.sampler import Completions
from spatial_vlm.tasks import TASKS


def test_a_prompt_that_does_not_fit_is_named_with_its_sizes(policy, source):
  row = generation.encode_question(policy.processor, source[0].image, "one two three")
  tokens = len(row.tokens)
  generation.collate(policy.processor, [row], [5], [1], PromptShape(tokens, 64))
  for shape in (PromptShape(tokens - 1, 64), PromptShape(tokens, 63)):
    with pytest.raises(
      UnusableRecord,
      match=rf"the prompt has {tokens} tokens and 64 patches.*{shape.tokens}.*{shape.patches}",
    ):
      generation.collate(policy.processor, [row], [5], [1], shape)


def test_decoding_stops_at_the_end_of_the_turn_and_reports_truncation(policy):
  yes = policy.processor.encode_text("Yes.")
  eos, pad = policy.special.eos, policy.special.pad
  tokens = np.full((3, 6), pad)
  tokens[0, :3] = [*yes, eos]
  tokens[1] = [yes[0]] * 6
  tokens[2, 0] = eos
  mask = np.array([[1, 1, 1, 0, 0, 0], [1] * 6, [1, 0, 0, 0, 0, 0]], bool)
  found = generation.decode_completions(policy, Completions(tokens, mask, np.zeros((3, 6))))
  assert found == [
    generation.Generation("Yes.", 3, False),
    generation.Generation("Yes" * 6, 6, True),
    generation.Generation("", 1, False),
  ]
  assert generation.parsed_verdicts(TASKS["scenes"], policy, None, found) == [1, -1, -1]


def test_a_truncated_verdict_does_not_count(policy):
  assert generation.parsed_verdicts(
    TASKS["scenes"], policy, None, [generation.Generation("Yes.", 2, True)]
  ) == [-1]


def test_rows_that_fill_the_batch_have_no_prediction(generator, source):
  rows = [generator.encode(source[i]) for i in (0, 1, 1, 2)]
  found = generator.answer(rows, [0, 1, -1, 2])
  assert [p.id for p in found] == [0, 1, 2]
  for p, i in zip(found, (0, 1, 2), strict=True):
    record = source[i].record
    assert (p.caption, p.relation, p.label) == (record.caption, record.relation, record.label)
    assert p.prompt_tokens == len(rows[i if i < 2 else 3][2].tokens)
    assert p.verdict in (0, 1) and p.text.startswith("Summary: ")


def test_an_answer_does_not_depend_on_the_size_of_the_batch(generator, source):
  rows = [generator.encode(source[i]) for i in range(4)]
  together = generator.answer(rows, range(4))
  apart = [generator.answer([row], [i])[0] for i, row in enumerate(rows)]
  assert apart == together


def test_several_processes_are_refused(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  with pytest.raises(UsageError, match="4 processes see each other's devices"):
    generation.check_batch(None, None)
