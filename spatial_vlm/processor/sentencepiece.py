"""XLM-RoBERTa's SentencePiece tokenizer, by TensorFlow Text.

References: SentencePiece, and transformers 5.23, `XLMRobertaTokenizer`. They differ in rare strings: transformers (and
`tokenizer.json`) normalises a full-width letter together with a combining mark after it. Here SentencePiece decides.

TensorFlow is imported on first use, without its GPUs: it would reserve the memory that JAX needs.
"""

import contextlib
import functools
import re
from collections.abc import Sequence
from typing import Any

from spatial_vlm import extras

SPECIAL_IDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
"""Ids of fairseq. SentencePiece has `<unk>` 0, `<s>` 1 and `</s>` 2, so its other ids move up by one."""
MASK = "<mask>"
"""Has the id after the last piece."""


class SentencePieces:
  """Turns texts into the ids of their pieces; a special token that is written out in a text keeps its id.

  Args:
    model: bytes of `sentencepiece.bpe.model`.

  Raises:
    ImportError: TensorFlow Text is not installed.
  """

  def __init__(self, model: bytes):
    tensorflow, text = _tensorflow_text()
    self._tensorflow = tensorflow
    self._model = text.SentencepieceTokenizer(
      model, out_type=tensorflow.int32, add_bos=False, add_eos=False
    )
    pieces = int(self._model.vocab_size())
    self._special = {**SPECIAL_IDS, MASK: pieces + 1}
    self.vocab_size = pieces + 2

  def __call__(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without the `<s>` and `</s>` around it."""
    pattern = "|".join(map(re.escape, self._special))
    parts = [re.split(f"({pattern})", text) for text in texts]
    plain = iter(self._pieces([part for split in parts for part in split[::2]]))
    return [
      [
        id
        for place, part in enumerate(split)
        for id in ([self._special[part]] if place % 2 else next(plain))
      ]
      for split in parts
    ]

  def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
      return []
    encoded = [text.encode("utf-8", "replace") for text in texts]
    with self._tensorflow.device("CPU"):
      rows = self._model.tokenize(encoded).to_list()
    return [[id + 1 if id else SPECIAL_IDS["<unk>"] for id in row] for row in rows]


@functools.cache
def _tensorflow_text() -> tuple[Any, Any]:
  try:
    import tensorflow
    import tensorflow_text
  except ImportError as error:
    raise ImportError(
      extras.need("bge-m3", "the tokenizer sentencepiece.bpe.model")
      + "; or give a folder that has tokenizer.json alone"
    ) from error
  # Once TensorFlow has been used, its devices are fixed; then its user has decided about the GPU.
  with contextlib.suppress(RuntimeError):
    tensorflow.config.set_visible_devices([], "GPU")
  return tensorflow, tensorflow_text
