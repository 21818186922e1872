"""What is asked about each record: blindly first, then with the label as a hint. Every question has its own key."""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import PIL.Image

from spatial_vlm.config import UsageError
from spatial_vlm.data.image_files import ImageFiles
from spatial_vlm.data.reading import scan
from spatial_vlm.data.records import BadRecord, BadRecordError, JsonlSource, Record
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.synthesis.draft import Form
from spatial_vlm.synthesis.teacher import Question

SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""Formats that every teacher reads, and their MIME types; other pictures are sent as JPEG."""
_JPEG_QUALITY = 95
_ORIENTATION = 0x0112
"""EXIF tag; teachers need not heed it, so that a turned picture is sent upright."""


@dataclasses.dataclass(frozen=True)
class Attempts:
  """How often a record is asked about, until an answer is accepted."""

  blind: int
  """Without the label, each with a seed of its own."""
  hinted: int
  """After those, with the label as a hint."""

  def __post_init__(self):
    if self.blind < 1 or self.hinted < 0:
      raise UsageError(
        f"attempts.blind is {self.blind} and attempts.hinted is {self.hinted}; ask blindly at least once"
      )

  def __len__(self) -> int:
    return self.blind + self.hinted


class Picture(NamedTuple):
  """As it is sent."""

  data: bytes
  mime_type: str


class Questions:
  """Questions on the records of a file, by number of the record and attempt; pictures are read when they are asked for.

  Records whose picture cannot be read are left out, as `bad` tells; too many of them raise TooManyBadRecords.
  """

  def __init__(
    self,
    source: JsonlSource,
    form: Form,
    attempts: Attempts,
    *,
    identity: Mapping[str, Any],
    seed: int,
    limit: int = 0,
    workers: int = 0,
  ):
    """
    Args:
      identity: of the teacher and its settings: what makes another question of the same words.
      seed: of the seeds of all questions.
      limit: records, from the first; 0: all.
      workers: threads that look at the pictures.
    """
    self.form, self.attempts = form, attempts
    self._source, self._seed = source, seed
    self._identity = dict(identity)
    sent = _Sent(source, min(limit, len(source)) if limit else len(source))
    self._digests, bad = scan(sent, _digest, workers=workers, max_bad_share=source.max_bad_share)
    self.bad: list[BadRecord] = [*source.bad, *bad.values()]
    self.numbers = sorted(self._digests)
    """Of the records that can be asked about."""

  def record(self, number: int) -> Record:
    return self._source.describe(number)[0]

  def is_hinted(self, attempt: int) -> bool:
    return attempt >= self.attempts.blind

  def question(self, number: int, attempt: int) -> Question:
    """Raises UnreadableImage for a picture that was readable before."""
    return self._asked(number, attempt, sent_picture(self._source.image_files, self._name(number)))

  def key(self, number: int, attempt: int) -> str:
    """Hash of all that is sent, and of the teacher to whom."""
    digest, mime_type = self._digests[number]
    question = self._asked(number, attempt, Picture(b"", mime_type))
    fields = dataclasses.asdict(question) | {"image": digest, "teacher": self._identity}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

  @functools.cached_property
  def places(self) -> dict[str, tuple[int, int]]:
    """Record and attempt of every key."""
    return {
      self.key(number, attempt): (number, attempt)
      for number in self.numbers
      for attempt in range(len(self.attempts))
    }

  def _asked(self, number: int, attempt: int, picture: Picture) -> Question:
    record = self.record(number)
    hint = record.label if self.is_hinted(attempt) else None
    identity = f"{self._seed}\0{record.image}\0{record.caption}\0{attempt}"
    seed = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big") >> 1
    return self.form.question(record, picture.data, picture.mime_type, seed, hint)

  def _name(self, number: int) -> str:
    return self._source.image_name(number)


def sent_picture(pictures: ImageFiles, name: str) -> Picture:
  """The file itself where every teacher reads it as we do, else the upright picture as JPEG.

  It is decoded as a whole, so that nobody pays for a question on half a picture. Raises UnreadableImage.
  """
  data = pictures.read(name)
  upright = pictures.decode(name, data)
  with PIL.Image.open(io.BytesIO(data)) as header:
    mime_type = SENT_AS_THEY_ARE.get(header.format or "")
    is_turned = header.getexif().get(_ORIENTATION, 1) != 1
  if mime_type and not is_turned:
    return Picture(data, mime_type)
  file = io.BytesIO()
  upright.save(file, "JPEG", quality=_JPEG_QUALITY)
  return Picture(file.getvalue(), "image/jpeg")


class _Sent:
  """The pictures of the first records, as a source for a survey."""

  def __init__(self, source: JsonlSource, count: int):
    self._source, self._count = source, count

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, number: int) -> Picture:
    try:
      return sent_picture(self._source.image_files, self._source.image_name(number))
    except UnreadableImage as error:
      raise BadRecordError(BadRecord(*self.place(number), str(error))) from error

  def place(self, number: int) -> tuple[str, int]:
    return self._source.place(number)


def _digest(picture: Picture) -> tuple[str, str]:
  return hashlib.sha256(picture.data).hexdigest(), picture.mime_type
