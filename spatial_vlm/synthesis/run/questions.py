"""Builds the questions about each record: blind first, then with the label as a hint. Each question has its own key."""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from spatial_vlm.config import UsageError
from spatial_vlm.data.image_files import ImageFiles
from spatial_vlm.data.reading import scan
from spatial_vlm.data.records import BadRecord, BadRecordError, JsonlSource, Record
from spatial_vlm.processor.image import UnreadableImage, open_header, orientation
from spatial_vlm.synthesis.formats import ResponseFormat
from spatial_vlm.synthesis.hashing import hash_seed
from spatial_vlm.synthesis.teacher import Question

SENT_UNCHANGED = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""Image formats that every teacher reads → MIME type; other images are sent as JPEG."""
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class Attempts:
  """Maximum number of questions about one record; they end with the first accepted answer."""

  blind: int
  """Questions without the label, each with its own seed."""
  hinted: int
  """Further questions, with the label as a hint."""

  def __post_init__(self):
    if self.blind < 1 or self.hinted < 0:
      raise UsageError(
        f"attempts.blind is {self.blind} and attempts.hinted is {self.hinted}; give at least 1 blind and 0 hinted"
      )

  def __len__(self) -> int:
    return self.blind + self.hinted


class SentImage(NamedTuple):
  """An encoded image as it is sent to a teacher."""

  data: bytes
  mime_type: str


class Questions:
  """Questions about the records of a file, by index of the record and attempt; images are read on demand.

  Records with unreadable images are skipped and listed in `bad`; too many of them raise TooManyBadRecords.
  """

  def __init__(
    self,
    source: JsonlSource,
    response_format: ResponseFormat,
    attempts: Attempts,
    *,
    identity: Mapping[str, Any],
    seed: int,
    limit: int = 0,
    workers: int = 0,
  ):
    """Checks all images.

    Args:
      source: the records.
      response_format: of the teacher.
      attempts: questions per record.
      identity: model and sampling settings of the teacher; part of every key.
      seed: from which the seeds of all questions are derived.
      limit: number of records, from the first; 0 for all.
      workers: threads that check the images.
    """
    self.response_format, self.attempts = response_format, attempts
    self._source, self._seed = source, seed
    self._identity = dict(identity)
    sent = _SentImages(source, min(limit, len(source)) if limit else len(source))
    self._digests, bad = scan(sent, _digest, workers=workers, max_bad_share=source.max_bad_share)
    self.bad: list[BadRecord] = [*source.bad, *bad.values()]
    self.indices = sorted(self._digests)
    """Indices of the usable records."""

  def record(self, index: int) -> Record:
    """Returns a record."""
    return self._source.describe(index)[0]

  def is_hinted(self, attempt: int) -> bool:
    """Tells whether an attempt's question contains the label."""
    return attempt >= self.attempts.blind

  def question(self, index: int, attempt: int) -> Question:
    """Builds a question; raises UnreadableImage if its image has become unreadable."""
    image = encode_image(self._source.image_files, self._source.image_name(index))
    return self._build(self.response_format, index, attempt, image)

  def key(self, index: int, attempt: int) -> str:
    """Returns the question's key: a hash of all that is sent, except the limits, and of the teacher's identity.

    Every start checks stored answers against its own limits, so answers stay known when these change.
    """
    digest, mime_type = self._digests[index]
    question = self._build(
      self.response_format.with_limits(""), index, attempt, SentImage(b"", mime_type)
    )
    return question_key(question, digest, self._identity)

  @functools.cached_property
  def attempts_by_key(self) -> dict[str, tuple[int, int]]:
    """Key → (index of the record, attempt) of every question."""
    return {
      self.key(index, attempt): (index, attempt)
      for index in self.indices
      for attempt in range(len(self.attempts))
    }

  def _build(
    self, response_format: ResponseFormat, index: int, attempt: int, image: SentImage
  ) -> Question:
    record = self.record(index)
    hint = record.label if self.is_hinted(attempt) else None
    seed = hash_seed(self._seed, record.image, record.caption, attempt)
    return response_format.question(record, image.data, image.mime_type, seed, hint)


def question_key(question: Question, image_digest: str, identity: Mapping[str, Any]) -> str:
  """Returns the key under which the answer to a question is stored.

  Args:
    question: its image counts by `image_digest` alone.
    image_digest: hash of the encoded image.
    identity: model and sampling settings of the teacher.
  """
  fields = dataclasses.asdict(question) | {"image": image_digest, "teacher": dict(identity)}
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def encode_image(images: ImageFiles, name: str) -> SentImage:
  """Returns the file unchanged if every teacher reads it as this project does, else the upright image as JPEG.

  Decodes the whole image first, so that no question is paid for with a truncated one; raises UnreadableImage.
  """
  data = images.read(name)
  upright = images.decode(name, data)
  with open_header(io.BytesIO(data)) as header:
    mime_type = SENT_UNCHANGED.get(header.format or "")
    is_rotated = orientation(header) != 1
  if mime_type and not is_rotated:  # a teacher may ignore EXIF, so a rotated image is sent upright
    return SentImage(data, mime_type)
  file = io.BytesIO()
  upright.save(file, "JPEG", quality=_JPEG_QUALITY)
  return SentImage(file.getvalue(), "image/jpeg")


class _SentImages:
  """The images of the first `count` records, as a source for `scan`."""

  def __init__(self, source: JsonlSource, count: int):
    self._source, self._count = source, count

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> SentImage:
    try:
      return encode_image(self._source.image_files, self._source.image_name(index))
    except UnreadableImage as error:
      raise BadRecordError(BadRecord(*self.origin(index), str(error))) from error

  def origin(self, index: int) -> tuple[str, int]:
    return self._source.origin(index)


def _digest(image: SentImage) -> tuple[str, str]:
  return hashlib.sha256(image.data).hexdigest(), image.mime_type
