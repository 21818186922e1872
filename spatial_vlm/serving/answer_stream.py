"""One answer while its tokens arrive: text, log-probabilities and the reason of its end."""

import itertools
from collections.abc import Sequence

from spatial_vlm.rollout.slot_requests import Progress
from spatial_vlm.serving.chat_response import Piece, TokenLogprob
from spatial_vlm.serving.text_stream import TextStream


class AnswerStream:
  """Turns the engine's progress on one answer into pieces.

  A token is in the piece that has the beginning of its text, so that tokens of a stop string are never returned.

  Args:
    sample: number of the answer.
    table: bytes of each token id (see `processor.tokenizer.token_bytes`).
    stop: strings that end the answer.
  """

  def __init__(self, sample: int, table: Sequence[bytes], stop: Sequence[str]):
    self.sample, self._table = sample, table
    self._text = TextStream(table, stop)
    self._held: list[tuple[int, TokenLogprob]] = []  # with the character at which the token begins

  def piece(self, progress: Progress) -> Piece:
    """Returns the part of the answer that the progress adds."""
    text, tokens, count = "", [], 0
    likeliest = progress.likeliest or itertools.repeat([])
    for token, logp, others in zip(progress.tokens, progress.logp, likeliest, strict=False):
      count += 1
      if piece := self._table[token]:
        top = [TokenLogprob(self._table[other], value) for other, value in others]
        self._held.append((self._text.decoded, TokenLogprob(piece, logp, top)))
        text += self._text.push(token)
        tokens += self._released()
      if self._text.stopped:
        return Piece(self.sample, text, tokens, count, "stop")
    if progress.finished:
      text += self._text.end()
      tokens += self._released() if self._text.stopped else [token for _, token in self._held]
    finished = "stop" if self._text.stopped else progress.finished
    return Piece(self.sample, text, tokens, count, finished)

  def _released(self) -> list[TokenLogprob]:
    released = [token for begin, token in self._held if begin < self._text.released]
    del self._held[: len(released)]  # tokens begin one after another
    return released
