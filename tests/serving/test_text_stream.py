"""Text of an answer while its tokens arrive."""

import random

import pytest

from spatial_vlm.processor.chat import Processor
from spatial_vlm.processor.tokenizer import token_bytes
from spatial_vlm.serving.text_stream import TextStream

BYTES = [bytes([n]) for n in range(256)]


def written(stream, ids):
  return [*map(stream.push, ids), stream.end()]


def test_any_tokens_give_the_text_of_the_tokenizer(nano):
  processor = Processor.from_folder(nano)
  table, draw = token_bytes(processor.tokenizer), random.Random(0)
  usable = [id for id, piece in enumerate(table) if piece]
  for _ in range(300):
    ids = draw.choices(usable, k=draw.randint(0, 12))
    assert "".join(written(TextStream(table), ids)) == processor.decode(ids)


def test_a_character_is_returned_when_it_is_complete():
  assert written(TextStream(BYTES), "é!".encode()) == ["", "é", "!", ""]
  assert written(TextStream(BYTES), "é".encode()[:1]) == ["", "\ufffd"]


@pytest.mark.parametrize("text", ["xab", "aab", "abab", "xa", "yyaaa", "ba", "baab…ab"])
@pytest.mark.parametrize("stop", [("ab",), ("aab", "ba"), ("b", "aa"), ("…a",), ("zz",)])
def test_a_stop_string_is_never_returned(text, stop):
  stream = TextStream(BYTES, stop)
  parts, shown = [], text
  for byte in text.encode():
    parts.append(stream.push(byte))
  parts.append(stream.end())
  # The reference: the shortest text so far that has a stop string, cut before the first of them.
  for length in range(len(text) + 1):
    places = [text[:length].find(s) for s in stop if s in text[:length]]
    if places:
      shown = text[: min(places)]
      break
  assert "".join(parts) == shown
  assert stream.stopped == any(s in text for s in stop)
