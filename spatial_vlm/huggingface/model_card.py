"""The model card of an exported policy: README.md with the metadata that the Hugging Face Hub reads, and a small json.

The json, `spatial_vlm.json`, says the same to programs: what the policy was trained to be asked.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from spatial_vlm.jsonl import read_object
from spatial_vlm.text import escaped, short_line

log = logging.getLogger(__name__)

KNOWLEDGE_FILE = "spatial_vlm.json"
CARD_FILE = "README.md"


class Knowledge(NamedTuple):
  """What a policy was trained to be asked; what is not known is None or empty."""

  tasks: Sequence[str]
  """Names of TASKS."""
  forms: Sequence[str]
  """Forms of answers that it was trained to give."""
  image_height: tuple[int, int] | None
  """Least and most pixels of the training images, before resizing."""
  image_width: tuple[int, int] | None
  vocabulary_size: int
  """Rows of the embedding."""
  stages: Sequence[Mapping[str, Any]]
  """Trainings, the first one first: algorithm, name of the checkpoint that it started from, names of its data."""

  def to_json(self) -> str:
    return json.dumps(self._asdict(), indent=2) + "\n"


def read_knowledge(folder: epath.Path) -> Knowledge | None:
  """Returns what the policy of a folder knows; None where the folder does not say, as a base from elsewhere.

  A file that cannot be read counts as none, with a warning.
  """
  try:
    fields = read_object(folder / KNOWLEDGE_FILE)
    known = Knowledge(**{name: fields[name] for name in Knowledge._fields})
    if not _is_whole(known):
      raise ValueError("its values are not those that a training writes")
    return known
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError) as error:
    log.warning("%s is ignored (%s)", folder / KNOWLEDGE_FILE, short_line(str(error)))
    return None


def _is_whole(known: Knowledge) -> bool:
  """Returns whether the values have the types of their fields."""
  names = (known.tasks, known.forms)
  spans = (known.image_height, known.image_width)
  return (
    all(isinstance(each, list) and all(isinstance(n, str) for n in each) for each in names)
    and all(
      span is None
      or (isinstance(span, list) and len(span) == 2 and all(type(pixels) is int for pixels in span))
      for span in spans
    )
    and type(known.vocabulary_size) is int
    and isinstance(known.stages, list)
    and all(map(_is_stage, known.stages))
  )


def _is_stage(stage: Any) -> bool:
  return (
    isinstance(stage, dict)
    and isinstance(algorithm := stage.get("algorithm"), str)
    and algorithm in _METHODS
    and isinstance(stage.get("checkpoint"), str)
    and isinstance(stage.get("data"), str)
  )


class Card(NamedTuple):
  """What a model card says besides the knowledge."""

  base: str
  """Name of the folder that the first training started from."""
  base_model: str
  """Its name on the Hub, such as Qwen/Qwen3-VL-8B-Instruct; empty: not known."""
  license: str
  """Identifier of the Hub, such as apache-2.0; empty: not known."""
  results: str
  """What was measured and a table, in Markdown; empty: none is given."""


_METHODS = {
  "sft": "Supervised fine-tuning on written answers, loss on the assistant's tokens only.",
  "dapo": "DAPO (arXiv 2503.14476): answers are sampled, and rewarded where their verdict is the label.",
}


def model_card(knowledge: Knowledge, card: Card) -> str:
  """Returns README.md."""
  fields = ["pipeline_tag: image-text-to-text", "library_name: transformers"]
  fields += [f"license: {card.license}"] if card.license else []
  fields += [f"base_model: {card.base_model}"] if card.base_model else []
  tags = ["spatial-reasoning", "qwen3_vl", *(stage["algorithm"] for stage in knowledge.stages)]
  fields += ["tags:", *(f"- {tag}" for tag in dict.fromkeys(tags))]
  stages = [
    f"{number}. {_METHODS[stage['algorithm']]} Data: {escaped(str(stage['data']))}."
    for number, stage in enumerate(knowledge.stages, 1)
  ]
  sections = [
    "---\n" + "\n".join(fields) + "\n---\n",
    "# Spatial reasoning with Qwen3-VL\n",
    f"Answers whether a statement about an image is true. Base model: {escaped(card.base)}.\n",
    "## What it was trained to be asked\n",
    _asked(knowledge),
    "## Training\n",
    *stages,
    "",
    "## Results\n",
    card.results
    or "No results were given at the export (`--config.results=WORKDIR` of `evaluate`).",
    "",
    _SERVING,
    "## License\n",
    f"{card.license or 'Not known: look at the base model.'} The licenses of the training images apply besides.\n",
  ]
  return "\n".join(sections)


def _asked(knowledge: Knowledge) -> str:
  """Returns the list of what the policy knows."""
  sides = (("height", knowledge.image_height), ("width", knowledge.image_width))
  sizes = [f"{side} {span[0]} to {span[1]}" for side, span in sides if span]
  lines = [
    f"tasks: {', '.join(knowledge.tasks) or 'not known'}",
    f"forms of answers: {', '.join(knowledge.forms) or 'not known'}",
    f"images: {' pixels, '.join(sizes) + ' pixels' if sizes else 'sizes not known'}",
    f"vocabulary: {knowledge.vocabulary_size} tokens",
  ]
  return "".join(f"- {escaped(line)}\n" for line in lines)


_SERVING = """\
## Serving

With [vLLM](https://docs.vllm.ai), on a GPU or a TPU:

    vllm serve FOLDER

With spatial_vlm (`pip install 'spatial-vlm[serve]'`), which also recalls behaviors:

    spatial-vlm serve --checkpoint FOLDER

Both answer `POST /v1/chat/completions`. The text of a request goes to the model as it is. vLLM puts a statement as the
model was trained to be asked with `"chat_template_kwargs": {"form": "chain"}`; `spatial-vlm serve` does so with
`"spatial_vlm": {"form": "chain"}`. Other images, statements and words than those above may get confident wrong answers.
"""
