"""Behaviors that a teacher writes, by the three calls of Metacognitive Reuse: solve, reflect, extract.

Source: Didolkar, Ballas, Arora and Goyal, arXiv 2509.13237; the prompts are this project's own. Verified chains are the
solutions, so the first call is already answered. The teacher reflects on each, then states the behaviors of its
reflection as JSON. Every behavior is checked against the chain that it comes from.
"""

import collections
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spatial_vlm.answers import Answer, Box
from spatial_vlm.reuse.chains.chain_check import sound_chain
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.extraction.abstraction import object_pattern
from spatial_vlm.reuse.extraction.extractor import (
  Ask,
  ExtractionSettings,
  TextQuestion,
  relation_of,
)
from spatial_vlm.reuse.extraction.merging import merge_similar
from spatial_vlm.reuse.extraction.stated_comparisons import false_comparison
from spatial_vlm.reuse.handbook.behavior import NAME, Behavior
from spatial_vlm.reuse.statements.captions import relation_in_words

_BEHAVIOR = """\
A behavior is a short, named rule of reasoning (a strategy, a trick, a test) that helps with many other questions of \
the same kind. It is not the solution of this question.\
"""
_REFLECT = f"""\
You read a statement about an image that you do not see, and the steps by which it was judged. {_BEHAVIOR} For \
example: behavior_above: yes when the centre of X has the smaller y.

Reflect on the steps:
1. Is each step right, and which of them decides?
2. Which behaviors would have led to the conclusion in fewer words?
3. Write these behaviors, at most three, each with a name that begins with behavior_ and with one line of instruction. \
Call the first object of the statement X and the second one Y.\
"""
_EXTRACT = f"""\
You read a statement, the steps by which it was judged, and a reflection on them. {_BEHAVIOR} State the behaviors of \
the reflection in JSON: {{"behaviors": [{{"name": …, "instruction": …, "relation": …, "verdict": …}}]}}.

"name": behavior_ and lower-case letters and underscores. "instruction": one line of at most {{words}} words without \
numbers, that calls the first object X and the second one Y and names no object. "relation": the relation of the \
statement that the behavior decides, in the statement's own words. "verdict": "yes" if the statement holds when the \
instruction applies, "no" if it does not hold then.\
"""
_TEXT = {"type": "string"}
_FIELDS = {
  "name": _TEXT,
  "instruction": _TEXT,
  "relation": _TEXT,
  "verdict": {"type": "string", "enum": ["yes", "no"]},
}
_SCHEMA = {
  "type": "object",
  "properties": {
    "behaviors": {
      "type": "array",
      "items": {
        "type": "object",
        "properties": _FIELDS,
        "required": list(_FIELDS),
        "additionalProperties": False,
      },
    }
  },
  "required": ["behaviors"],
  "additionalProperties": False,
}
_ATTEMPTS = 2
"""Answers that are drawn until one is readable JSON."""
_WORDS_PER_TOKEN = 0.7
_FENCE = re.compile(r"\s*```(?:json)?[ \t\r]*\n(.*)\n```\s*", re.DOTALL)


class _Source(NamedTuple):
  solution: Solution
  answer: Answer


def extract_by_teacher(
  solutions: Sequence[Solution], settings: ExtractionSettings
) -> list[Behavior]:
  """Extracts what a teacher writes about verified chains and what passes the checks, with enough support.

  Behaviors with similar instructions are merged, and need `min_support` chains together. Two that share a name but not
  an instruction are both returned; the handbook keeps the better supported one. Raises ValueError if `settings.ask` is
  None.
  """
  if settings.ask is None:
    raise ValueError("the extractor `teacher` asks a teacher; settings.ask is None")
  sources = _sources(solutions, settings)
  reflections = settings.ask([TextQuestion(_REFLECT, _steps(s.solution)) for s in sources])
  reflected = [(s, text) for s, text in zip(sources, reflections, strict=True) if text]
  settings.refused["the teacher wrote no reflection"] += len(sources) - len(reflected)
  system = _EXTRACT.replace("{words}", str(int(_WORDS_PER_TOKEN * settings.max_tokens)))
  questions = [
    TextQuestion(system, f"{_steps(s.solution)}\n\nReflection:\n{text}", _SCHEMA)
    for s, text in reflected
  ]
  candidates = []
  for (source, _), found in zip(reflected, _ask_for_json(questions, settings.ask), strict=True):
    if found is None:
      settings.refused["the teacher wrote no readable list of behaviors"] += 1
      continue
    for fields in found:
      if reason := refusal(fields, source.solution, source.answer, settings):
        settings.refused[reason] += 1
      else:
        candidates.append(_behavior(fields, source.solution, settings))
  merged = merge_similar(candidates, settings.embedder, settings.duplicate_similarity)
  supported = [b for b in merged if len(b.provenance) >= settings.min_support]
  settings.refused["fewer chains than min_support"] += len(merged) - len(supported)
  return supported


def refusal(
  fields: Mapping[str, Any], solution: Solution, answer: Answer, settings: ExtractionSettings
) -> str:
  """Returns why a behavior of a teacher cannot be used; "" if it can.

  It must state the relation and the verdict of the chain that it comes from, and its comparisons of coordinates must
  hold for the boxes of that chain.
  """
  if not isinstance(fields, dict) or not all(isinstance(fields.get(key), str) for key in _FIELDS):
    return "a field of the behavior is missing or no text"
  name, instruction = fields["name"], fields["instruction"].strip()
  if not NAME.fullmatch(name):
    return "the name is not behavior_ and lower-case letters"
  if not instruction or len(instruction.splitlines()) > 1:
    return "the instruction is not one line"
  if re.search(r"\d", instruction) or re.search(r"\d{2}", name):
    return "the instruction has numbers of one image"
  objects = object_pattern((*solution.names, *answer.boxes))
  if objects and (objects.search(instruction) or objects.search(name.replace("_", " "))):
    return "the behavior names an object of its image"
  if not re.search(r"\bX\b", instruction):
    return "the instruction does not mention X"
  if relation_in_words(fields["relation"]) != relation_of(solution):
    return "the relation is not that of the chain"
  stated = re.match(r"(yes|no)\b", instruction, re.IGNORECASE)
  verdict = "yes" if answer.verdict else "no"
  if fields["verdict"] != verdict or (stated and stated[1].lower() != verdict):
    return "the verdict is not that of the chain"
  if false_comparison(instruction, _boxes_of_both(solution, answer)):
    return "a comparison of the instruction does not hold in the chain"
  if settings.count_tokens(f"{name}: {_stating(instruction, verdict)}") > settings.max_tokens:
    return "the behavior has more tokens than the limit"
  return ""


def _boxes_of_both(solution: Solution, answer: Answer) -> dict[str, Box]:
  """Returns the boxes of X and Y, as far as the chain has them."""
  boxes = {name.casefold(): box for name, box in answer.boxes.items()}
  letters = zip("XY", map(str.casefold, solution.names), strict=True)
  return {letter: boxes[name] for letter, name in letters if name in boxes}


def _sources(solutions: Sequence[Solution], settings: ExtractionSettings) -> list[_Source]:
  """Returns the first verified chains of each relation, up to `teacher_chains`."""
  asked: collections.Counter[str] = collections.Counter()
  sources = []
  for solution in solutions:
    answer = sound_chain(solution)
    if answer is None:
      settings.refused["the chain is not verified"] += 1
    elif asked[relation_of(solution)] < settings.teacher_chains:
      asked[relation_of(solution)] += 1
      sources.append(_Source(solution, answer))
  return sources


def _steps(solution: Solution) -> str:
  return f"Statement: {solution.caption}\n\nSteps:\n{solution.text}"


def _ask_for_json(questions: Sequence[TextQuestion], ask: Ask) -> list[list[Any] | None]:
  """Returns the behaviors of each answer; None for a question without a readable answer."""
  found: list[list[Any] | None] = [None] * len(questions)
  for attempt in range(_ATTEMPTS):
    missing = [i for i, behaviors in enumerate(found) if behaviors is None]
    texts = ask([questions[i]._replace(attempt=attempt) for i in missing]) if missing else []
    for i, text in zip(missing, texts, strict=True):
      found[i] = _read(text)
  return found


def _read(text: str | None) -> list[Any] | None:
  """Returns the list of behaviors of an answer; None if it has none."""
  fence = _FENCE.fullmatch(text or "")
  try:
    behaviors = json.loads(fence[1] if fence else text or "")["behaviors"]
  except (ValueError, TypeError, KeyError, RecursionError):
    return None
  return behaviors if isinstance(behaviors, list) else None


def _behavior(
  fields: Mapping[str, str], solution: Solution, settings: ExtractionSettings
) -> Behavior:
  name, instruction = fields["name"], _stating(fields["instruction"].strip(), fields["verdict"])
  return Behavior(
    name,
    instruction,
    relation_of(solution),
    (solution.question,),
    (solution.record,),
    settings.count_tokens(f"{name}: {instruction}"),
  )


def _stating(instruction: str, verdict: str) -> str:
  """Returns an instruction that states its verdict.

  >>> _stating("Compare the centres: X has the smaller x.", "yes")
  'yes: Compare the centres: X has the smaller x.'
  >>> _stating("No when X touches Y", "no")
  'no when X touches Y'
  """
  if instruction[: len(verdict)].lower() == verdict:
    return verdict + instruction[len(verdict) :]
  return f"{verdict}: {instruction}"
