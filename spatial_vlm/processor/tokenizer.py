"""The tokenizer of a checkpoint folder, its special ids and the bytes of each token."""

import dataclasses
import os
import tempfile

from etils import epath
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from spatial_vlm.huggingface.folder import CONFIG_FILE, PROCESSOR_FILES, copy_files, reading
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.remote import is_remote

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
VISUAL_TOKENS = {
  "image": "<|image_pad|>",
  "video": "<|video_pad|>",
  "vision_start": "<|vision_start|>",
  "vision_end": "<|vision_end|>",
}


def load_tokenizer(folder: epath.PathLike) -> PreTrainedTokenizerFast:
  """Loads the tokenizer of a Hugging Face folder, local or remote (gs://), without the Hugging Face Hub.

  Raises:
    FileNotFoundError: the folder, `tokenizer.json` or `tokenizer_config.json` is missing.
    ValueError: its chat template renders conversations otherwise than `processor.chat`, as that of a Thinking model.
  """
  folder = epath.Path(folder)
  missing = [f for f in ("tokenizer.json", "tokenizer_config.json") if not (folder / f).is_file()]
  if missing:
    raise FileNotFoundError(
      f"no tokenizer in {folder}: {', '.join(missing)} missing; give the folder of a Hugging Face "
      "Qwen3-VL checkpoint with its tokenizer files"
    )
  with reading(folder, "its tokenizer"):
    tokenizer = _read_tokenizer(folder)
  _check_template(tokenizer, folder)
  return tokenizer


def _read_tokenizer(folder: epath.Path) -> PreTrainedTokenizerFast:
  if not is_remote(folder):
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
  with tempfile.TemporaryDirectory() as local:
    copy_files(epath.Path(local), folder, (*PROCESSOR_FILES, CONFIG_FILE))
    return AutoTokenizer.from_pretrained(local, local_files_only=True)


_SAMPLE = [
  {"role": "system", "content": [{"type": "text", "text": "Rules."}]},
  {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A question."}]},
  {"role": "assistant", "content": [{"type": "text", "text": "An answer."}]},
  {"role": "user", "content": [{"type": "text", "text": "Another."}]},
]
_SAMPLE_TEXT = (
  "<|im_start|>system\nRules.<|im_end|>\n"
  "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>A question.<|im_end|>\n"
  "<|im_start|>assistant\nAn answer.<|im_end|>\n"
  "<|im_start|>user\nAnother.<|im_end|>\n"
  "<|im_start|>assistant\n"
)
"""What `processor.chat` makes of the sample."""


def _check_template(tokenizer: PreTrainedTokenizerFast, folder: epath.Path) -> None:
  """Raises ValueError if the folder's chat template, where it has one, renders the sample otherwise than this port.

  So does that of a Thinking model, whose answers open with `<think>`, and one that adds a system turn of its own.
  """
  if not tokenizer.chat_template:
    return
  without_system = _SAMPLE_TEXT.partition("<|im_end|>\n")[2]
  for messages, ours in ((_SAMPLE, _SAMPLE_TEXT), (_SAMPLE[1:], without_system)):
    try:
      theirs = str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
      )
    except Exception as error:  # a template may raise anything
      raise ValueError(f"{folder}: its chat template cannot be rendered: {error}") from error
    if theirs != ours:
      same = len(os.path.commonprefix([ours, theirs]))
      raise ValueError(
        f"{folder}: after {ours[:same][-20:]!r} its chat template writes {theirs[same:][:40]!r}, where this port "
        f"writes {ours[same:][:40]!r}; give a folder with the template of Qwen3-VL-Instruct (that of a Thinking model "
        "opens every answer with <think>)"
      )


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """Ids of special tokens; `eos` ends a turn and is the only one that may be sampled."""

  pad: int
  eos: int
  im_start: int
  image: int
  video: int
  vision_start: int
  vision_end: int
  never_sampled: tuple[int, ...]
  """Special ids except `eos`, and rows of the embedding without a token."""

  @classmethod
  def of(cls, tokenizer: PreTrainedTokenizerFast, model_config: ModelConfig) -> "SpecialIds":
    """Reads the ids from `tokenizer`; ValueError if one is missing or the model's configuration differs."""
    ids = _ids(tokenizer, {"im_start": IM_START, "eos": IM_END} | VISUAL_TOKENS)
    for name in VISUAL_TOKENS:
      field = f"{name}_token_id"
      if getattr(model_config, field) != ids[name]:
        raise ValueError(
          f"{field} is {getattr(model_config, field)} in the model's configuration but {ids[name]} in the "
          "tokenizer; use files that belong together"
        )
    pad = tokenizer.pad_token_id
    if not isinstance(pad, int):
      raise ValueError("the tokenizer has no pad token; set pad_token in tokenizer_config.json")
    rows = model_config.text.vocab_size
    if len(tokenizer) > rows:
      raise ValueError(
        f"the tokenizer has {len(tokenizer)} tokens but the model embeds only {rows}"
      )
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    never = (special | {pad} | set(range(len(tokenizer), rows))) - {ids["eos"]}
    return cls(pad=pad, never_sampled=tuple(sorted(never)), **ids)


def fit_config(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> ModelConfig:
  """Returns the config of an untrained model with the vocabulary and the special token ids of `tokenizer`."""
  ids = {f"{name}_token_id": id for name, id in _ids(tokenizer, VISUAL_TOKENS).items()}
  ids |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
  text = dataclasses.replace(config.text, vocab_size=len(tokenizer))
  return dataclasses.replace(config, text=text, **ids)


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes]:
  """Returns the bytes of each id; empty for special tokens and unused ids.

  Concatenated over the ids of a text, they are its UTF-8 encoding, for any split into tokens.
  """
  byte_of = {char: byte for byte, char in byte_characters().items()}
  added = tokenizer.added_tokens_decoder
  table = [b""] * len(tokenizer)
  for token, id in tokenizer.get_vocab().items():
    if id not in added:
      table[id] = bytes(byte_of[char] for char in token)
    elif not added[id].special:
      table[id] = token.encode()
  return table


def byte_characters() -> dict[int, str]:
  """Returns the printable character of each byte in byte-level BPE (GPT-2, `bytes_to_unicode`)."""
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = (byte for byte in range(256) if byte not in printable)
  table = {byte: chr(byte) for byte in printable}
  return table | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _ids(tokenizer: PreTrainedTokenizerFast, tokens: dict[str, str]) -> dict[str, int]:
  vocabulary = tokenizer.get_vocab()
  missing = [token for token in tokens.values() if token not in vocabulary]
  if missing:
    raise ValueError(f"the tokenizer lacks {', '.join(missing)}; a Qwen3-VL tokenizer is needed")
  return {name: vocabulary[token] for name, token in tokens.items()}
