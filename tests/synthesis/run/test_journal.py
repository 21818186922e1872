"""What a journal keeps, including after a kill in the middle of a line."""

import dataclasses
import json

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.teacher import Refusal, Reply, Usage

REPLY = Reply("Yes.", "STOP", "teacher-001", Usage(9, 2, 3, 4), raw={"from": "server"})


def begun(folder):
  with Journal(folder) as journal:
    journal.add_sent("a")
    journal.add_reply("a", REPLY)
    journal.add_sent("b")
    journal.add_refusal("b", "too large")
    for key in ("c", "d", "d", "e"):
      journal.add_sent(key)
    journal.add_lost("c", "cut")
    journal.add_busy("d", "429")
    journal.add_job("job-1", ["x", "y"])
    journal.add_job("job-2", ["z"])
    journal.end_job("job-1", "SUCCEEDED")
  return folder


def test_the_next_start_reads_all_records(tmp_path):
  with Journal(begun(tmp_path)) as journal:
    assert journal.answers["a"] == Reply("Yes.", "STOP", "teacher-001", Usage(9, 2, 3, 4), raw={})
    assert isinstance(journal.answers["b"], Refusal) and str(journal.answers["b"]) == "too large"
    assert set(journal.answers) == {"a", "b"} and journal.versions == {"teacher-001"}
    assert journal.lost == ["c"] and sorted(journal.interrupted) == ["d", "e"]
    assert journal.open_jobs() == {"job-2": ("z",)} and journal.questions_in_batches() == ["z"]
    assert dict(journal.raw()) == {"a": {"from": "server"}}
    assert [(spent.usage.thoughts, spent.batch) for spent in journal.billed] == [(4, False)]


def test_every_start_appends_to_a_new_part(tmp_path):
  before = (begun(tmp_path) / "part-00000.jsonl").read_bytes()
  with Journal(tmp_path) as journal:
    assert not (tmp_path / "part-00001.jsonl").exists(), (
      "a start that writes nothing leaves nothing"
    )
    journal.add_reply("e", REPLY, batch=True)
    assert set(journal.answers) == {"a", "b", "e"}
  assert (tmp_path / "part-00000.jsonl").read_bytes() == before
  with Journal(tmp_path) as journal:
    assert set(journal.answers) == {"a", "b", "e"}
    assert [spent.batch for spent in journal.billed] == [False, True]


def test_what_was_in_flight_stays_listed_after_it_was_answered(tmp_path):
  """It may have been billed twice."""
  with Journal(begun(tmp_path)) as journal:
    journal.add_sent("e")
    journal.add_reply("e", REPLY)
  with Journal(tmp_path) as journal:
    assert sorted(journal.interrupted) == ["d", "e"]


def test_a_truncated_last_line_is_ignored(tmp_path):
  part = begun(tmp_path) / "part-00000.jsonl"
  lines = part.read_text().splitlines(keepends=True)
  part.write_text("".join(lines[:1]) + lines[1][:-5])
  with Journal(tmp_path) as journal:
    assert not journal.answers and journal.interrupted == ["a"]
    journal.add_reply("a", REPLY)
  with Journal(tmp_path) as journal:
    assert set(journal.answers) == {"a"}


def test_reopened_refusals_are_asked_again(tmp_path):
  with Journal(tmp_path) as journal:
    for key in "ab":
      journal.add_refusal(key, "no images today")
    journal.reopen(["a"])
  with Journal(tmp_path) as journal:
    assert set(journal.answers) == {"b"}


def test_half_a_surrogate_pair_of_an_earlier_start_spoils_nothing(tmp_path):
  with Journal(tmp_path) as journal:
    journal.add_reply("a", dataclasses.replace(REPLY, text="a \ud83d"))
  with Journal(tmp_path) as journal:
    assert journal.answers["a"].text == "a \ufffd"


@pytest.mark.parametrize(
  "line",
  [
    *("{", "[]", '"reply"', '{"key": "a"}', '{"kind": "sneezed"}', "[" * 100_000, "\xff"),
    '{"kind": "reply", "key": "a", "usage": {"prompt": "1"}, "batch": false}',
    '{"kind": "reply", "key": "a", "usage": [], "batch": false}',
  ],
)
def test_any_other_broken_line_is_named_with_its_place(tmp_path, line):
  part = begun(tmp_path) / "part-00000.jsonl"
  after = json.dumps({"kind": "sent", "key": "f"})
  part.write_bytes(f"{part.read_text()}{line}\n{after}\n".encode("latin-1"))
  count = part.read_bytes().count(b"\n")
  with pytest.raises(UsageError, match=rf"part-00000\.jsonl:{count - 1} .*remove the line"):
    with Journal(tmp_path):
      pass
  part.write_bytes(part.read_bytes().replace(f"{line}\n".encode("latin-1"), b""))
  with Journal(tmp_path) as journal:
    assert "f" in journal.interrupted, "the folder is free again"


def test_one_process_at_a_time(tmp_path):
  with Journal(tmp_path):
    with pytest.raises(UsageError, match="another process writes to"):
      with Journal(tmp_path):
        pass
  with Journal(tmp_path):
    pass


def test_a_folder_elsewhere_is_refused():
  with pytest.raises(UsageError, match="give a local --workdir"):
    Journal("gs://bucket/run/journal")
