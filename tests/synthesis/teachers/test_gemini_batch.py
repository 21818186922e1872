"""Batches through google-genai and a local server: created once, found again, with an outcome for every key."""

import asyncio
import json
import logging

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.errors import BusyError, LostError
from spatial_vlm.synthesis.local.faults import Faults
from spatial_vlm.synthesis.local.local_gemini import _snake
from spatial_vlm.synthesis.teacher import Refusal, Reply
from spatial_vlm.synthesis.teachers.gemini_batch import GeminiBatches


def run(teacher, work, **settings):
  """What `work(batches)` returns."""

  async def main():
    async with teacher:
      return await work(GeminiBatches(teacher, **settings))

  return asyncio.run(main())


async def settled(batches, job):
  while not (state := await batches.poll(job)).ended:
    pass
  return state


async def outcomes(batches, job, keys):
  state = await settled(batches, job)
  return [pair async for pair in batches.results(state, keys)]


@pytest.fixture
def questions(question):
  """Twenty of them, by key."""
  return {f"k{seed}": question(seed=seed) for seed in range(20)}


def finished(questions):
  async def work(batches):
    job = await batches.create("set-1", questions.items())
    return await outcomes(batches, job, questions)

  return work


def test_every_question_gets_its_own_answer_in_any_order(serve, gemini, questions):
  server = serve(faults=Faults(rows_shuffled=True))
  pairs = run(gemini(server), finished(questions))
  assert [key for key, _ in pairs] != sorted(questions) and len(pairs) == 20
  for key, reply in pairs:
    assert json.loads(reply.text)["reasoning"].split("|")[2] == key.removeprefix("k")
    assert reply.model_version == "gemini-2.5-local-001" and reply.usage.prompt > 0


def test_a_line_of_a_batch_is_the_same_request_as_a_question_asked_by_itself(
  serve, gemini, question
):
  server = serve()

  async def main():
    async with gemini(server) as teacher:
      await teacher.ask(question())
      return teacher.request(question())

  line = asyncio.run(main())
  alone = json.loads(server.last_body)
  for body in (line, alone):
    for content in (*body["contents"], body["systemInstruction"]):
      content.pop("role", None)  # "user" in both; the library adds it to the system instruction
  assert _snake(line) == _snake(alone)


def test_rows_that_fail_or_are_missing_leave_no_key_without_an_outcome(serve, gemini, questions):
  """The job itself has succeeded."""
  server = serve(faults=Faults(row_failed=0.3, row_missing=0.3, rows_shuffled=True))
  pairs = run(gemini(server), finished(questions))
  kinds = [type(outcome) for _, outcome in pairs]
  assert sorted(key for key, _ in pairs) == sorted(questions)
  assert (
    set(kinds) == {Reply, BusyError, LostError}
    and kinds.count(Reply) == server.stats().answers.total()
  )


def test_a_job_may_succeed_with_every_row_failed(serve, gemini, questions):
  pairs = run(gemini(serve(faults=Faults(row_failed=1.0))), finished(questions))
  assert {type(outcome) for _, outcome in pairs} == {BusyError} and len(pairs) == 20


def test_a_row_that_the_server_does_not_take_is_refused(serve, gemini, questions):
  def fail(image, system, text, seed):
    raise ValueError("too large")

  pairs = run(gemini(serve(fail)), finished(questions))
  assert {type(outcome) for _, outcome in pairs} == {Refusal}


@pytest.mark.parametrize(
  ("faults", "state"), [(Faults(job_failed=1.0), "FAILED"), (Faults(job_expired=1.0), "EXPIRED")]
)
def test_of_a_job_without_results_every_key_is_lost(serve, gemini, questions, faults, state):
  pairs = run(gemini(serve(faults=faults)), finished(questions))
  assert sorted(key for key, _ in pairs) == sorted(questions)
  assert all(type(outcome) is LostError and state in str(outcome) for _, outcome in pairs)


def test_a_cancelled_job_has_ended(serve, gemini, questions):
  async def work(batches):
    job = await batches.create("set-1", questions.items())
    await batches.cancel(job)
    return await batches.poll(job)

  server = serve(batch_polls=9)
  assert run(gemini(server), work).state == "CANCELLED"
  assert not server.stats().requests


def test_results_wait_for_the_end(serve, gemini, questions):
  async def work(batches):
    job = await batches.create("set-1", questions.items())
    state = await batches.poll(job)
    assert (state.state, state.ended) == ("PENDING", False)
    with pytest.raises(ValueError, match="PENDING"):
      await anext(batches.results(state, questions))
    return await settled(batches, job)

  assert run(gemini(serve(batch_polls=3)), work).ended


def test_a_name_is_created_once(serve, gemini, questions):
  """Also by a later process, and among more jobs than fit on a page, the first page being empty."""
  server = serve(page_size=2)

  async def first(batches):
    job = await batches.create("set-1", questions.items())
    for number in range(4):
      await batches.create(f"other-{number}", questions.items())
    for number in (2, 3):
      other = await batches.find(f"other-{number}")
      await batches._teacher.aio.batches.delete(name=other)
    return job

  async def second(batches):
    assert await batches.find("set-2") is None
    unread = iter(questions.items())
    job = await batches.create("set-1", unread)
    assert len(list(unread)) == len(questions)
    return job

  assert run(gemini(server), first) == run(gemini(server), second)
  assert server.stats().jobs["set-1"] == 1


def test_an_unconfirmed_job_is_found_again(serve, gemini, questions):
  """The connection ends after the server has made the job."""
  faults = Faults(cut=1.0, clears_after=1)
  server = serve(faults=faults)

  async def work(batches):
    lost = 0
    while True:
      try:
        return lost, await batches.create("set-1", questions.items())
      except LostError:
        lost += 1

  lost, job = run(gemini(server), work)
  assert lost >= 2 and job is not None
  assert server.stats().jobs == {"set-1": 1}


def test_a_file_is_named_after_its_batch(serve, gemini, questions):
  server = serve()
  run(gemini(server), finished(questions))
  assert [upload.display_name for upload in server.gemini.uploads.values()] == ["set-1"]


def test_unrequested_rows_are_reported_and_skipped(serve, gemini, questions, caplog):
  async def work(batches):
    job = await batches.create("set-1", questions.items())
    return await outcomes(batches, job, ["k3"])

  pairs = run(gemini(serve()), work)
  assert [key for key, _ in pairs] == ["k3"]
  assert caplog.text.count("is unknown or a repetition") == 19


def test_broken_lines_of_results_lose_their_key_alone(serve, gemini, questions, caplog):
  server = serve()

  async def work(batches):
    job = await batches.create("set-1", questions.items())
    state = await settled(batches, job)
    lines = server.gemini.files[state.results_file].splitlines(keepends=True)
    lines[0], lines[1] = lines[0][:40] + b"\n", b'{"key": "k1"}\n'
    lines[2] = lines[3]
    server.gemini.files[state.results_file] = b"\xff\xff\n" + b"".join(lines)
    return {key: type(outcome) async for key, outcome in batches.results(state, questions)}

  kinds = run(gemini(server), work)
  assert {key for key, kind in kinds.items() if kind is LostError} == {"k0", "k1", "k2"}
  assert len(kinds) == 20 and "line 1:" in caplog.text and "line 2:" in caplog.text


def test_repeated_keys_and_oversized_files_are_not_sent(serve, gemini, questions):
  server = serve()

  async def twice(batches):
    await batches.create("set-1", [*questions.items(), *questions.items()])

  with pytest.raises(ValueError, match="'k0' occurs twice"):
    run(gemini(server), twice)
  with pytest.raises(UsageError, match="fewer"):
    run(gemini(server), finished(questions), max_file_bytes=2000)
  assert not server.gemini.uploads and not server.stats().jobs


def test_the_key_stays_out_of_results_and_logs(serve, gemini, questions, caplog):
  caplog.set_level(logging.DEBUG)
  key = "AIza-a-key-that-nobody-may-see"
  server = serve(lambda image, system, text, seed: f"Yes {key}", key=key)
  pairs = run(gemini(server), finished(questions))
  assert all("Yes [key]" in reply.text for _, reply in pairs)
  assert key not in repr(pairs) + caplog.text


def test_a_job_or_results_that_the_server_has_forgotten_are_lost_not_an_end(
  serve, gemini, questions
):
  server = serve()

  async def work(batches):
    job = await batches.create("set-1", questions.items())
    state = await settled(batches, job)
    server.gemini.files.clear()
    pairs = [pair async for pair in batches.results(state, questions)]
    return pairs, await batches.poll("batches/99")

  pairs, forgotten = run(gemini(server), work)
  assert len(pairs) == 20 and all(isinstance(outcome, LostError) for _, outcome in pairs)
  assert forgotten.ended and forgotten.results_file is None
