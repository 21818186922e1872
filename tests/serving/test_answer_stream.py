"""Pieces of an answer: texts and log-probabilities end at the same token."""

import pytest

from spatial_vlm.rollout.slot_requests import Progress
from spatial_vlm.serving.answer_stream import AnswerStream

TABLE = [b"", b"a", b"b", b"c", b"bc", b"\xc3", b"\xa4"]


@pytest.mark.parametrize(
  ("tokens", "stop", "text", "kept"),
  [
    ([1, 2, 3, 1], ("bc",), "a", [1]),
    ([1, 2, 1, 0], ("bc",), "aba", [1, 2, 1]),
    ([1, 4, 3, 0], ("cc",), "ab", [1, 4]),  # the stop string begins inside a token
    ([1, 2, 0], ("bc",), "ab", [1, 2]),
    ([5, 6, 2, 3, 0], ("bc",), "ä", [5, 6]),
    ([5, 6, 1, 0], ("ä",), "", []),
    ([1, 5, 0], (), "a\ufffd", [1, 5]),
  ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_tokens_of_a_stop_string_are_not_returned(tokens, stop, text, kept, size):
  stream, pieces = AnswerStream(7, TABLE, stop), []
  for at in range(0, len(tokens), size):
    part = tokens[at : at + size]
    finished = "stop" if at + size >= len(tokens) else None
    pieces.append(stream.piece(Progress(0, 0, part, [-float(token) for token in part], finished)))
    if pieces[-1].finished:
      break
  assert "".join(piece.text for piece in pieces) == text
  assert [-token.logp for piece in pieces for token in piece.tokens] == kept
  assert {piece.sample for piece in pieces} == {7} and pieces[-1].finished == "stop"
