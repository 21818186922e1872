"""Batched generation: from questions to written answers."""

import jax
import numpy as np
import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import UnusableRecord
from spatial_vlm.inference import generation
from spatial_vlm.inference.policy import (
  Generation,
  collate,
  decode_completions,
  encode_question,
  prompt_format,
)
from spatial_vlm.rollout.sampler import Completions, first_token_logits
from spatial_vlm.tasks import TASKS, statements

CAPTION = "The cat is left of the mug. True?"


def test_a_prompt_that_does_not_fit_is_named_with_its_sizes(policy, source):
  row = encode_question(policy.processor, source[0].image, "one two three")
  tokens = len(row.tokens)
  collate(policy.processor, [row], [5], [1], prompt_format([(tokens, 64)], "float32"))
  for shape in ((tokens - 1, 64), (tokens, 63)):
    with pytest.raises(
      UnusableRecord,
      match=rf"the prompt has {tokens} tokens and 64 patches.*holds {shape[0]} and {shape[1]}",
    ):
      collate(policy.processor, [row], [5], [1], prompt_format([shape], "float32"))


def test_a_batch_takes_the_smallest_size_that_holds_its_prompts(policy, source):
  short, long = (
    encode_question(policy.processor, source[0].image, text) for text in ("Yes?", "one two " * 4)
  )
  assert len(short.tokens) < 48 < len(long.tokens) < 96
  format = prompt_format([(48, 64), (96, 64)], "float32")
  shapes = [
    collate(policy.processor, rows, [0] * len(rows), [1] * len(rows), format).tokens.shape
    for rows in ([short], [short, long])
  ]
  assert shapes == [(1, 48), (2, 96)]


def test_a_recalled_behavior_stands_once_before_the_image(policy, source):
  line = "behavior_left_of: yes when X x < Y x"
  processor, image = policy.processor, source[0].image
  row = encode_question(processor, image, CAPTION, statements.behavior_prompt(line))
  plain = encode_question(processor, image, CAPTION)
  text = processor.tokenizer.decode(row.tokens)
  before, image_start, after = text.partition("<|vision_start|>")
  assert before == f"<|im_start|>system\nUse {line}<|im_end|>\n<|im_start|>user\n"
  assert text.count(line) == 1 and "behavior" not in after
  rest = row.tokens[len(row.tokens) - len(plain.tokens) :]
  np.testing.assert_array_equal(rest, plain.tokens)  # the turns after it are those of the question
  added = len(row.tokens) - len(plain.tokens)
  assert len(processor.encode_text("system")) == 1
  assert added == 5 + len(processor.encode_text(f"Use {line}"))
  shift = row.positions[added:] - plain.positions
  assert (shift == added).all()


def test_patches_travel_in_the_type_of_the_computation_with_equal_results(policy, source):
  row = encode_question(policy.processor, source[0].image, "Yes?")
  params = jax.tree.map(lambda x: x.astype("bfloat16"), policy.params)
  whole, cast = (
    collate(policy.processor, [row], [0], [1], prompt_format([(64, 64)], dtype))
    for dtype in ("float32", "bfloat16")
  )
  assert (whole.vision.patches.dtype, cast.vision.patches.dtype) == ("float32", "bfloat16")
  found = [first_token_logits(params, prompts, model=policy.model) for prompts in (whole, cast)]
  np.testing.assert_array_equal(*found)


def test_decoding_stops_at_the_end_of_the_turn_and_reports_truncation(policy):
  yes = policy.processor.encode_text("Yes.")
  eos, pad = policy.special.eos, policy.special.pad
  tokens = np.full((3, 6), pad)
  tokens[0, :3] = [*yes, eos]
  tokens[1] = [yes[0]] * 6
  tokens[2, 0] = eos
  mask = np.array([[1, 1, 1, 0, 0, 0], [1] * 6, [1, 0, 0, 0, 0, 0]], bool)
  found = decode_completions(policy, Completions(tokens, mask, np.zeros((3, 6))))
  assert found == [
    Generation("Yes.", 3, False),
    Generation("Yes" * 6, 6, True),
    Generation("", 1, False),
  ]
  assert [generation.parsed_verdict(TASKS["scenes"], text, None) for text in found] == [1, -1, -1]


def test_a_truncated_verdict_does_not_count():
  assert generation.parsed_verdict(TASKS["scenes"], Generation("Yes.", 2, True), None) == -1


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
