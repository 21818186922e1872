"""Text of an answer while its tokens arrive."""

import codecs
from collections.abc import Sequence


class TextStream:
  """Turns tokens into text that never changes again.

  Bytes of an unfinished character wait for the rest of it. A text that may be the beginning of a stop string waits too;
  the stop string itself is never returned.

  Args:
    table: bytes of each token id (see `processor.tokenizer.token_bytes`).
    stop: strings that end the answer.
  """

  def __init__(self, table: Sequence[bytes], stop: Sequence[str] = ()):
    self.table, self.stop = table, stop
    self.stopped = False
    """Whether a stop string was written; later tokens have no text."""
    self.decoded = 0
    """Characters of the pushed tokens; an unfinished character does not count."""
    self.released = 0
    """Characters that were returned."""
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
    self._held = ""

  def push(self, token: int) -> str:
    """Returns the text that a further token adds.

    >>> stream = TextStream([b"a", b"b", b"c"], stop=["bc"])
    >>> [stream.push(0), stream.push(1), stream.push(0), stream.push(1), stream.push(2), stream.stopped]
    ['a', '', 'ba', '', '', True]
    """
    return "" if self.stopped else self._released(self._decoder.decode(self.table[token]))

  def end(self) -> str:
    """Returns the text that still waits, after the last token."""
    if self.stopped:
      return ""
    text = self._released(self._decoder.decode(b"", final=True)) + self._held
    self.released += len(self._held)
    self._held = ""
    return text

  def _released(self, text: str) -> str:
    self.decoded += len(text)
    text = self._held + text
    places = [place for stop in self.stop if (place := text.find(stop)) >= 0]
    if places:
      self.stopped, self._held = True, ""
      end = min(places)
    else:
      end = len(text) - max((_overlap(text, stop) for stop in self.stop), default=0)
      self._held = text[end:]
    self.released += end
    return text[:end]


def _overlap(text: str, stop: str) -> int:
  """Returns the length of the longest end of `text` that begins `stop`."""
  longest = min(len(text), len(stop) - 1)
  return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
