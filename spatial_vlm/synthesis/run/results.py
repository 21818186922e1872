"""Writes the results of a run: the training set, all checked answers, the figures and the report."""

import collections
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data import conversations
from spatial_vlm.data.conversations import Conversation
from spatial_vlm.data.image_files import ImageFiles
from spatial_vlm.data.records import Record
from spatial_vlm.processor.image import png
from spatial_vlm.synthesis.draft import chain
from spatial_vlm.synthesis.formats import CHAIN_QUESTION
from spatial_vlm.synthesis.run.requests import SynthesisRun
from spatial_vlm.synthesis.verify import selection, synthesis_report
from spatial_vlm.synthesis.verify.checks import CheckedAnswer
from spatial_vlm.synthesis.verify.selection import SelectionSettings


class Written(NamedTuple):
  """Counts of what `write_results` wrote."""

  chains: int
  unsettled: int
  records: int


def write_results(
  run: SynthesisRun,
  selected: SelectionSettings,
  images: ImageFiles,
  workdir: epath.Path,
  *,
  examples: int,
  settings: Mapping[str, Any],
) -> Written:
  """Writes chains.jsonl, accepted.jsonl, rejected.jsonl, results.json, report.md and examples.png.

  Args:
    run: whose journal is read.
    selected: limits of the training set.
    images: of the records, for the examples.
    workdir: folder of the files.
    examples: accepted examples in the report; half as many rejected ones are added.
    settings: all leaves of the config, for results.json.

  Raises:
    UsageError: the set would contain several model versions, which the run does not allow.
  """
  progress = [run.progress(index) for index in run.questions.indices]
  answers = [answer for record in progress for answer in record.answers]
  kept, dropped = selection.select(answers, selected)
  if not run.mixed_versions:
    check_one_version(kept)
  rejected = [answer for answer in answers if not answer.accepted] + dropped
  keys = {
    (answer.record, answer.attempt): run.questions.key(record.index, answer.attempt)
    for record in progress
    for answer in record.answers
  }
  conversations.write(workdir / "chains.jsonl", map(_conversation, kept))
  _write_lines(workdir / "accepted.jsonl", (_line(answer, keys) for answer in kept))
  _write_lines(workdir / "rejected.jsonl", (_line(answer, keys) for answer in rejected))
  unsettled = sum(record.next_attempt is not None for record in progress)
  summary = synthesis_report.summarize([*kept, *rejected], run.ledger.spent_usd)
  details = {
    "ledger": run.ledger.summary(),
    "unsettled": unsettled,
    "skipped": [str(bad) for bad in run.questions.bad],
    "settings": dict(settings),
  }
  (workdir / "results.json").write_text(json.dumps(summary | details, indent=2) + "\n")
  shown = synthesis_report.choose_examples([*kept, *rejected], examples, examples // 2)
  (workdir / "report.md").write_text(synthesis_report.markdown(summary, shown, "examples.png"))
  if shown:
    sheet = synthesis_report.example_sheet(shown, images.open)
    (workdir / "examples.png").write_bytes(png(sheet))
  return Written(len(kept), unsettled, len(progress))


def check_one_version(kept: Sequence[CheckedAnswer]) -> None:
  """Raises UsageError if several model versions wrote the chains."""
  versions = collections.Counter(answer.model_version for answer in kept)
  if len(versions) > 1:
    listed = ", ".join(f"{version} ({count:,} chains)" for version, count in versions.most_common())
    raise UsageError(
      f"several model versions have answered: {listed}; set model_version to the one to keep, or allow_mixed_versions"
    )


def _conversation(answer: CheckedAnswer) -> Conversation:
  """Returns the training example of an accepted answer."""
  assert answer.draft is not None
  question = CHAIN_QUESTION(answer.record.caption)
  return Conversation(answer.record.image, question.text, chain(answer.draft))


def _line(answer: CheckedAnswer, keys: Mapping[tuple[Record, int], str]) -> dict[str, Any]:
  """Returns an answer as a line of accepted.jsonl or rejected.jsonl."""
  return {
    **answer.record.to_json(),
    "key": keys[answer.record, answer.attempt],
    "attempt": answer.attempt,
    "hinted": answer.hinted,
    "model_version": answer.model_version,
    "rejections": [rejection._asdict() for rejection in answer.rejections],
    "text": answer.text,
  }


def _write_lines(path: epath.Path, lines: Iterable[Mapping[str, Any]]) -> None:
  path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
