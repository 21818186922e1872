"""The files of an exported policy besides its weights, which other programs need to serve it."""

import json
import logging
import re
from typing import Any

import jax
from etils import epath

from spatial_vlm.huggingface.folder import (
  GENERATION_CONFIG_FILE,
  copy_processor,
  read_model_config,
)
from spatial_vlm.huggingface.model_card import (
  CARD_FILE,
  KNOWLEDGE_FILE,
  Card,
  Knowledge,
  model_card,
)
from spatial_vlm.huggingface.question_template import with_questions
from spatial_vlm.inference.questions import question_words
from spatial_vlm.jsonl import read_object
from spatial_vlm.processor.tokenizer import SpecialIds, load_tokenizer
from spatial_vlm.tasks import TASKS
from spatial_vlm.train.policy_knowledge import Settings, training_knowledge

TEMPLATE_FILE, OLDER_TEMPLATE_FILE = "chat_template.jinja", "chat_template.json"

log = logging.getLogger(__name__)


def write_policy_files(
  folder: epath.Path,
  source: epath.Path,
  settings: Settings,
  license: str = "",
  results: str = "",
  base_model: str = "",
) -> None:
  """Copies the processor files of `source` into `folder` and writes what vLLM and transformers expect next to them.

  These are generation_config.json with the ids that end and pad an answer, the chat template with the questions of
  the run's tasks, README.md and spatial_vlm.json. Process 0 writes.

  Args:
    folder: of the exported policy.
    source: folder that the run started from.
    settings: of the run.
    license: identifier of the Hub; empty: that of the source's README.md.
    results: what was measured and the table of results, in Markdown.
    base_model: name of the base on the Hub; empty: that of the source's README.md.
  """
  copy_processor(folder, source)
  if jax.process_index() > 0:
    return
  knowledge = training_knowledge(settings, source)
  tokenizer = load_tokenizer(source)
  _write_generation_config(folder, SpecialIds.of(tokenizer, read_model_config(source)))
  if isinstance(template := tokenizer.chat_template, str):
    _write_template(folder, template, knowledge)
  else:
    log.warning("%s has no single chat template; a server needs one with --chat-template", source)
  card = Card(
    base=knowledge.stages[0]["checkpoint"],
    base_model=base_model or card_field(source, "base_model"),
    license=license or card_field(source, "license"),
    results=results,
  )
  (folder / KNOWLEDGE_FILE).write_text(knowledge.to_json())
  (folder / CARD_FILE).write_text(model_card(knowledge, card))


def _write_generation_config(folder: epath.Path, special: SpecialIds) -> None:
  """Adds the end of a turn and the padding to generation_config.json; without them `generate` writes past the end."""
  file = folder / GENERATION_CONFIG_FILE
  fields: dict[str, Any] = {"do_sample": False}
  try:
    fields = read_object(file)
  except FileNotFoundError:
    pass
  except (OSError, ValueError) as error:  # of the base; the weights are worth more
    log.warning("%s is replaced: %s", GENERATION_CONFIG_FILE, error)
  ends = fields.get("eos_token_id", [])
  ends = ends if isinstance(ends, list) else [ends]
  fields["eos_token_id"] = ends if special.eos in ends else [special.eos, *ends]
  fields.setdefault("pad_token_id", special.pad)
  file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _write_template(folder: epath.Path, template: str, knowledge: Knowledge) -> None:
  """Writes the chat template of the source with the questions of the first task, in the forms that were learnt."""
  words = question_words(TASKS[knowledge.tasks[0]]) if knowledge.tasks else {}
  questions = {form: words[form] for form in knowledge.forms if form in words}
  (folder / TEMPLATE_FILE).write_text(with_questions(template, questions))
  (folder / OLDER_TEMPLATE_FILE).unlink(missing_ok=True)  # it would stand against the new one


def card_field(folder: epath.Path, name: str) -> str:
  """Returns a one-word field, such as the license, of the metadata of a folder's README.md; empty if there is none."""
  card = folder / CARD_FILE
  text = card.read_bytes().decode(errors="replace") if card.is_file() else ""
  metadata = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
  found = re.search(rf"^{name}: *([\w./-]+)$", metadata[1], re.MULTILINE) if metadata else None
  return found[1] if found else ""
