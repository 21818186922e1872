"""Trains the small vocabulary of the `tiny` preset and writes the processor files of its checkpoint folder.

Byte-level BPE over a strict split of the text: every word, sign and coordinate is one piece. Frequent pieces of the
training texts are whole tokens (`ignore_merges`), so that no row of the embedding is spent on fragments. Any other text
falls back to single bytes.
"""

import collections
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from spatial_vlm.huggingface.folder import GENERATION_CONFIG_FILE
from spatial_vlm.processor.image import ImageSettings
from spatial_vlm.processor.tokenizer import IM_END, IM_START, byte_characters

COORDINATES = tuple(str(number) for number in range(0, 1001, 20))
"""Numbers of the tiny preset, in thousandths of the image: one token each, in any surroundings."""

PAD = "<|endoftext|>"
SPECIAL_TOKENS = (
  PAD,
  IM_START,
  IM_END,
  "<|vision_start|>",
  "<|vision_end|>",
  "<|vision_pad|>",
  "<|image_pad|>",
  "<|video_pad|>",
)

CHAT_WORDS = ("system", "user", "assistant")
ANSWER_WORDS = (
  "Summary",
  "Caption",
  "Reasoning",
  "Conclusion",
  "Applying",
  "Yes",
  "No",
  "\u0120Yes",
  "\u0120No",
)
r"""Words of `answers`, so that the tokens of an answer do not depend on the training texts (\u0120 is a space)."""

SPLIT = r"\n|, (?=[0-9])|[0-9]+| ?[\p{L}_]+| ?[^\s\p{L}0-9_]|\s"
"""Line ends, the comma between numbers, digit runs, words and signs with the space before them."""

CHAT_TEMPLATE = """\
{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + parts(message.content) + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

TINY_IMAGES = ImageSettings(
  patch_size=8,
  temporal_patch_size=2,
  merge_size=2,
  min_pixels=64 * 64,
  max_pixels=256 * 256,
  mean=(0.5, 0.5, 0.5),
  std=(0.5, 0.5, 0.5),
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path) -> Tokenizer:
  """Builds a tokenizer from `texts` and writes all processor files of a tiny checkpoint into `folder`.

  The vocabulary holds the 256 bytes (id = byte), the coordinates, the words of the formats, the most frequent pieces
  of `texts` (ties in alphabetical order) and Qwen's special tokens. It has at most `vocab_size` tokens, and fewer if
  the texts have fewer pieces.

  Raises:
    ValueError: `vocab_size` leaves no room for the fixed part.
  """
  character = dict(sorted(byte_characters().items()))
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = _pre_tokenizer()
  single = set(character.values())
  fixed = [
    *character.values(),
    *(c for c in COORDINATES if c not in single),
    *CHAT_WORDS,
    *ANSWER_WORDS,
  ]
  room = vocab_size - len(fixed) - len(SPECIAL_TOKENS)
  if room < 0:
    raise ValueError(
      f"vocab_size is {vocab_size}; bytes, coordinates and special tokens need at least {vocab_size - room}"
    )
  counts = collections.Counter(
    piece for text in texts for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)
  )
  known = set(fixed)
  learnt = [
    piece
    for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if piece not in known and not piece.isdigit()
  ][:room]
  vocabulary = {token: id for id, token in enumerate([*fixed, *learnt])}
  tokenizer.model = models.BPE(vocab=vocabulary, merges=[], ignore_merges=True)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / "tokenizer.json"))
  _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
  (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
  ends = {"eos_token_id": tokenizer.token_to_id(IM_END), "pad_token_id": tokenizer.token_to_id(PAD)}
  _write_json(folder / GENERATION_CONFIG_FILE, ends | {"do_sample": False})
  _write_image_settings(folder, TINY_IMAGES)
  return tokenizer


def _write_image_settings(folder: Path, settings: ImageSettings):
  """Writes `preprocessor_config.json`, and the video processor's file, which Hugging Face's AutoProcessor requires."""
  common = {
    "processor_class": "Qwen3VLProcessor",
    "patch_size": settings.patch_size,
    "temporal_patch_size": settings.temporal_patch_size,
    "merge_size": settings.merge_size,
    "size": {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
    "image_mean": list(settings.mean),
    "image_std": list(settings.std),
  }
  _write_json(
    folder / "preprocessor_config.json", common | {"image_processor_type": "Qwen2VLImageProcessor"}
  )
  _write_json(
    folder / "video_preprocessor_config.json",
    common | {"video_processor_type": "Qwen3VLVideoProcessor"},
  )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
  split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
  return pre_tokenizers.Sequence(
    [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )


def _write_json(path: Path, value: dict):
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


# Not Qwen2Tokenizer: transformers rebuilds that class with Qwen's own split and ignores the one in tokenizer.json.
_TOKENIZER_CONFIG = {
  "tokenizer_class": "PreTrainedTokenizerFast",
  "processor_class": "Qwen3VLProcessor",
  "eos_token": IM_END,
  "pad_token": PAD,
  "clean_up_tokenization_spaces": False,
  "model_max_length": 4096,
}
