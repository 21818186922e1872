"""A policy as its own teacher: transparent batching, independent samples, and what is refused."""

import asyncio
import dataclasses
import io
import re

import jax
import numpy as np
import PIL.Image
import pytest

from spatial_vlm import sharding
from spatial_vlm.config import UsageError
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import encode_question
from spatial_vlm.processor.chat import encode
from spatial_vlm.processor.image import open_image
from spatial_vlm.rollout import engine
from spatial_vlm.synthesis.errors import RefusedError
from spatial_vlm.synthesis.formats import CHAIN
from spatial_vlm.synthesis.teacher import Question, Reply
from spatial_vlm.synthesis.teachers import policy_teacher
from spatial_vlm.synthesis.teachers.policy_teacher import (
  PolicySettings,
  PolicyTeacher,
  weights_version,
)
from spatial_vlm.synthesis.verify.check_settings import CheckSettings
from spatial_vlm.synthesis.verify.checks import examine

SETTINGS = PolicySettings(batch_size=4, prompt_shape=(64, 64), max_output_tokens=6, temperature=1.0)


def one_device():
  return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def policy(nano):
  """Draws from four letters and the end of the turn alone, so that some answers end in time and some do not."""
  policy = load_policy(str(nano))
  letters = [policy.processor.encode_text(letter)[0] for letter in "abcd"]
  drawn = {policy.special.eos, *letters}
  never = tuple(sorted({*range(policy.model.text.vocab_size)} - drawn))
  return policy._replace(special=dataclasses.replace(policy.special, never_sampled=never))


def png(shade):
  file = io.BytesIO()
  PIL.Image.fromarray(np.full((32, 32, 3), shade, np.uint8)).save(file, "png")
  return file.getvalue()


def question(number, **changes):
  fields = {"system": "", "text": f"{'?' * (1 + number % 3)}", "image": png(40 * (number % 4))}
  return Question(**{**fields, "mime_type": "image/png", "seed": number, "schema": None, **changes})


QUESTIONS = [question(number) for number in range(7)]


def ask(policy, *questions, settings=SETTINGS, at_once=True):
  async def main():
    async with PolicyTeacher(policy, one_device(), "v-1", settings) as teacher:
      if at_once:
        return await asyncio.gather(*map(teacher.ask, questions), return_exceptions=True)
      return [await teacher.ask(question) for question in questions]

  return asyncio.run(main())


@pytest.fixture(scope="module")
def replies(policy):
  return ask(policy, *QUESTIONS)


def test_an_answer_does_not_depend_on_what_else_is_asked(policy, replies):
  assert ask(policy, *QUESTIONS[::-1])[::-1] == replies
  assert ask(policy, *QUESTIONS[4:6], at_once=False) == replies[4:6]


def test_questions_are_answered_together_by_one_program(policy, replies, monkeypatch):
  batches = []
  generate = engine.generate

  def count(params, prompts, *rest, **settings):
    batches.append(prompts.tokens.shape)
    return generate(params, prompts, *rest, **settings)

  monkeypatch.setattr(engine, "generate", count)
  programs = generate._cache_size()
  assert ask(policy, *QUESTIONS) == replies
  assert batches == [(4, 64), (4, 64)] and generate._cache_size() == programs


def test_every_seed_and_question_has_its_own_sample_id(policy, replies):
  by_seed = ask(policy, *(question(0, seed=seed) for seed in range(12)))
  assert len({reply.text for reply in by_seed}) > 6
  by_image = [policy_teacher.sample_id(question(0, image=png(n))) for n in range(3)]
  by_text = [policy_teacher.sample_id(question(0, text=text)) for text in "abc"]
  assert len({*by_image, *by_text}) == 6 and 0 <= min(by_text) <= max(by_text) < 2**31


def test_replies_state_version_tokens_and_finish(policy, replies):
  assert {reply.finish for reply in replies} == {"STOP", "MAX_TOKENS"}
  for asked, reply in zip(QUESTIONS, replies, strict=True):
    row = encode_question(policy.processor, open_image(asked.image), asked.text)
    letters = len(reply.text or "")
    assert reply.usage.prompt == len(row.tokens)
    assert reply.usage.answer == letters + (reply.finish == "STOP")
    assert (reply.finish == "MAX_TOKENS") == (letters == 6)
    assert reply.model_version == reply.raw["model_version"] == "v-1"
    assert reply.raw["text"] == (reply.text or "") and reply.raw["finish"] == reply.finish


def test_a_question_that_cannot_be_asked_is_refused_alone(policy, replies):
  bad = [question(0, image=b"none"), question(0, text="?" * 99)]
  outcomes = ask(policy, *bad, *QUESTIONS)
  assert [type(outcome) for outcome in outcomes[:2]] == [RefusedError, RefusedError]
  assert "cannot read" in str(outcomes[0]) and "holds 64 and 64" in str(outcomes[1])
  assert outcomes[2:] == replies


def test_a_question_without_an_image_is_answered_next_to_others(policy, replies):
  texts = [question(i, image=b"", text=f"{i}?") for i in range(3)]
  alone = ask(policy, *texts)
  assert all(isinstance(reply, Reply) for reply in alone)
  assert alone[0].usage.prompt == len(
    encode(
      policy.processor,
      [{"role": "user", "content": [{"type": "text", "text": "0?"}]}],
      generation_prompt=True,
    ).tokens
  )
  mixed = ask(policy, *texts, QUESTIONS[0])
  assert mixed == [*alone, replies[0]]


def test_structured_output_and_system_turns_are_not_asked_for(policy):
  for changes in ({"schema": {}}, {"system": "Look."}):
    [error] = ask(policy, question(0, **changes))
    assert isinstance(error, UsageError) and "CHAIN" in str(error)


def test_an_error_of_the_program_reaches_all_waiting_callers(policy, replies, monkeypatch):
  async def main():
    async with PolicyTeacher(policy, one_device(), "v-1", SETTINGS) as teacher:
      with monkeypatch.context() as broken:
        broken.setattr(policy_teacher, "decode_completions", lambda *_: 1 / 0)
        outcomes = await asyncio.gather(*map(teacher.ask, QUESTIONS[:3]), return_exceptions=True)
      return outcomes, await teacher.ask(QUESTIONS[0])

  outcomes, afterwards = asyncio.run(main())
  assert [type(error) for error in outcomes] == 3 * [ZeroDivisionError] and afterwards == replies[0]


def test_a_cancelled_caller_does_not_cancel_others(policy, replies):
  async def main():
    async with PolicyTeacher(policy, one_device(), "v-1", SETTINGS) as teacher:
      tasks = [asyncio.create_task(teacher.ask(question)) for question in QUESTIONS]
      while teacher._waiting.qsize() == 0 and not any(task.done() for task in tasks):
        await asyncio.sleep(0)
      tasks[1].cancel()
      return await asyncio.gather(*tasks, return_exceptions=True)

  outcomes = asyncio.run(main())
  assert isinstance(outcomes.pop(1), asyncio.CancelledError)
  assert outcomes == [*replies[:1], *replies[2:]]


def test_weights_are_identified_by_their_content(nano, tmp_path):
  version = weights_version(nano)
  assert version == weights_version(str(nano)) and version.startswith(f"{nano.name}@")
  copy = tmp_path / nano.name
  copy.mkdir()
  [weights] = nano.glob("*.safetensors")
  content = bytearray(weights.read_bytes())
  (copy / weights.name).write_bytes(content)
  assert weights_version(copy) == version
  content[-1] ^= 1
  (copy / weights.name).write_bytes(content)
  assert weights_version(copy) != version
  with pytest.raises(UsageError, match="contains no"):
    weights_version(tmp_path)


def test_settings_that_cannot_work_are_refused(policy):
  for name, value in (("batch_size", 0), ("prompt_shape", (64, 0)), ("temperature", 0)):
    with pytest.raises(UsageError, match=re.escape(f"{name} is {value}")):
      PolicyTeacher(policy, one_device(), "v-1", dataclasses.replace(SETTINGS, **{name: value}))
  with pytest.raises(UsageError, match="temperature is none"):
    PolicyTeacher(policy, one_device(), "v-1", dataclasses.replace(SETTINGS, temperature=None))


@pytest.mark.slow
def test_of_several_draws_the_checks_keep_the_true_ones(taught, scenes_folder):
  """A policy that has memorised two chains, but not which belongs to which image."""
  draws = 64  # about every eighth is right
  source = JsonlSource(scenes_folder / "train.jsonl", scenes_folder / "images")
  limits = CheckSettings(8, 120, 0.0005, 0.95, 0, 60, tuple(RELATIONS), ())
  settings = dataclasses.replace(SETTINGS, batch_size=8, max_output_tokens=128)
  records = [source.describe(index)[0] for index in range(2)]
  questions = [
    CHAIN.question(record, source.image_files.read(record.image), "image/png", seed, None)
    for record in records
    for seed in range(draws)
  ]
  replies = ask(load_policy(str(taught)), *questions, settings=settings)
  assert all(isinstance(reply, Reply) for reply in replies)
  for number, record in enumerate(records):
    drawn = replies[draws * number : draws * (number + 1)]
    verdicts = [examine(reply, CHAIN, record, limits) for reply in drawn]
    kept = [draft for draft, rejections in verdicts if not rejections]
    assert 0 < len(kept) < draws and all(draft.verdict == record.label for draft in kept)
