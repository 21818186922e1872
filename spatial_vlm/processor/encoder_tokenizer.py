"""The tokenizer of an XLM-RoBERTa folder: `sentencepiece.bpe.model`, or else `tokenizer.json`."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import tokenizers
from etils import epath

from spatial_vlm.huggingface.folder import reading
from spatial_vlm.model.xlm_roberta import XlmRobertaConfig
from spatial_vlm.processor.sentencepiece import SPECIAL_IDS, SentencePieces

SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
TOKENIZER_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class EncoderTokenizer:
  """Turns texts into rows of ids: `<s>`, the pieces, `</s>`."""

  pieces: Callable[[Sequence[str]], list[list[int]]]
  """Returns the ids of each text, without the special tokens around it."""
  config: XlmRobertaConfig
  fingerprint: str
  """Hash of the tokenizer's file."""

  def encode(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Returns one row per text, cut to `max_tokens` special tokens included."""
    bos, eos = self.config.bos_token_id, self.config.eos_token_id
    return [[bos, *ids[: max_tokens - 2], eos] for ids in self.pieces(texts)]


def load_encoder_tokenizer(folder: epath.PathLike, config: XlmRobertaConfig) -> EncoderTokenizer:
  """Loads the tokenizer of a folder, local or remote (gs://); `tokenizer.json` alone needs no TensorFlow.

  Raises:
    FileNotFoundError: the folder has neither file.
    ImportError: it has `sentencepiece.bpe.model`, and TensorFlow Text is not installed.
    ValueError: special tokens or the size of the vocabulary are not those of `config`.
  """
  folder = epath.Path(folder)
  if (file := folder / SENTENCEPIECE_FILE).is_file():
    data = file.read_bytes()
    with reading(file):
      pieces = SentencePieces(data)
    ids, size = SPECIAL_IDS, pieces.vocab_size
  elif (file := folder / TOKENIZER_FILE).is_file():
    data = file.read_bytes()
    with reading(file, "the tokenizer"):
      tokenizer = tokenizers.Tokenizer.from_str(data.decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_IDS}
    pieces, size = _pieces_of(tokenizer), tokenizer.get_vocab_size()
  else:
    raise FileNotFoundError(
      f"{folder} has neither {SENTENCEPIECE_FILE} nor {TOKENIZER_FILE}; give the folder of an XLM-RoBERTa with its "
      "tokenizer"
    )
  expected = dict(
    zip(
      SPECIAL_IDS,
      (config.bos_token_id, config.pad_token_id, config.eos_token_id, config.unk_token_id),
      strict=True,
    )
  )
  if ids != expected or size > config.vocab_size:
    raise ValueError(
      f"{file} has {size} tokens and the special tokens {ids}; config.json has {config.vocab_size} and {expected}. Use "
      "files that belong together"
    )
  return EncoderTokenizer(pieces, config, hashlib.sha256(data).hexdigest())


def _pieces_of(tokenizer: tokenizers.Tokenizer) -> Callable[[Sequence[str]], list[list[int]]]:
  def pieces(texts: Sequence[str]) -> list[list[int]]:
    readable = [text.encode("utf-8", "replace").decode() for text in texts]
    return [row.ids for row in tokenizer.encode_batch(readable, add_special_tokens=False)]

  return pieces
