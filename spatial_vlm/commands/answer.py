"""Ask a model whether a statement about a photograph is true.

Prints the answer as it was written (four steps, or the short form with --behaviors), the verdict and the number
of tokens. Works with any photograph and any Hugging Face folder of a Qwen3-VL model. Warns if the model was not trained
on such images, words or forms of answers, as far as its folder says. The exit status is 1 if the answer has no verdict.

  spatial-vlm answer PHOTO.png "The cat is left of the mug." --checkpoint runs/dapo/export --draw boxes.png
"""

import argparse
import logging
import os
from pathlib import Path

import jax
import PIL.Image
from etils import epath
from PIL.Image import Image

from spatial_vlm import answers, sharding
from spatial_vlm.commands.ending import ending
from spatial_vlm.config import Config, UsageError
from spatial_vlm.data.benchmark_record import BenchmarkRecord
from spatial_vlm.evaluation.box_drawing import draw_boxes
from spatial_vlm.hosts import user_errors
from spatial_vlm.huggingface.folder import find_folder
from spatial_vlm.huggingface.model_card import read_knowledge
from spatial_vlm.inference.generation import inference_engine, parsed_verdict
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import (
  AskedQuestion,
  Policy,
  decode_completions,
  encode_question,
  make_requests,
  prompt_format,
)
from spatial_vlm.inference.questions import PreparedQuestion, QuestionBuilder, load_recall
from spatial_vlm.inference.unfamiliar import unfamiliar_image, unfamiliar_words, warn_of_forms
from spatial_vlm.processor.image import open_image, padded_length
from spatial_vlm.tasks import find_task

log = logging.getLogger(__name__)

NO_VERDICT = 1
"""Exit status of an answer without a verdict."""
TOKEN_BUCKET, PATCH_BUCKET = 64, 64


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  with user_errors():
    image = open_image(args.photo)
    task = find_task(config.task)
    recall = load_recall(args.behaviors, config.behavior_tokens) if args.behaviors else None
    question = QuestionBuilder(task, "direct" if args.direct else "chain", recall)(args.statement)
    if args.draw:
      check_drawing(args.draw, question)
    mesh = sharding.make_mesh(config.mesh)
    policy = load_policy(args.checkpoint, mesh)
    warn_of_forms(args.checkpoint, task, [question.form])
    warn_of_unfamiliar(args.checkpoint, policy, args.statement, image)
    processor = policy.processor.limited_to(config.max_patches)
    row = encode_question(processor, image, question.text, question.system)
  tokens = padded_length([len(row.tokens)], TOKEN_BUCKET)
  format = prompt_format([(tokens, padded_length([row.patches], PATCH_BUCKET))], policy.dtype)
  asked = AskedQuestion(question.text, image, row, question.system)
  requests = make_requests(policy, mesh, [asked], [0], [-1], format)
  engine, sampling = inference_engine(policy, mesh), policy.sampling(config.max_new_tokens)
  completions = engine.generate(requests, jax.random.key(0), sampling)  # greedy: draws nothing
  (answer,) = decode_completions(policy, completions)
  verdict = parsed_verdict(task, answer, BenchmarkRecord(args.photo, args.statement, -1, ""))
  stated = task.first_words[verdict].lower() if verdict >= 0 else "none: the answer does not parse"
  cut = f", cut off at max_new_tokens {config.max_new_tokens}" if answer.truncated else ""
  print(answer.text)
  print(f"\nverdict: {stated}")
  print(f"tokens: {answer.tokens} generated{cut}, {len(row.tokens)} read")
  if args.draw:
    boxes = answers.parse_boxes(answer.text)
    with user_errors():
      draw_boxes(image, boxes).save(args.draw)
    print(f"{len(boxes)} boxes drawn in {args.draw}")
  if verdict < 0:
    raise SystemExit(NO_VERDICT)


def warn_of_unfamiliar(checkpoint: str, policy: Policy, statement: str, image: Image) -> None:
  """Logs how an image and a statement differ from those that the policy was trained on."""
  folder = find_folder(checkpoint)
  if (known := read_knowledge(folder)) and (reason := unfamiliar_image(known, image.size)):
    log.warning("%s; the answer may be wrong", reason)
  if words := unfamiliar_words(policy.processor.tokenizer, statement):
    log.warning("the vocabulary of %s has no %s; the answer may be noise", folder, ", ".join(words))


def check_drawing(file: str, question: PreparedQuestion) -> None:
  """Raises UsageError if an answer to the question has no boxes, or if the file cannot be written."""
  if question.form != "chain":
    raise UsageError(
      f"--draw shows the boxes of a full chain, and an answer in the form {question.form!r} has none; leave out "
      f"--draw or {'--direct' if question.form == 'direct' else '--behaviors'}"
    )
  path = Path(file)
  extensions = PIL.Image.registered_extensions()
  if extensions.get(path.suffix.lower()) not in PIL.Image.SAVE:
    raise UsageError(f"--draw {file}: unknown file extension {path.suffix!r}; give FILE.png")
  if path.is_dir() or not path.parent.is_dir():
    kind = "is a folder" if path.is_dir() else f"lies in no folder, as {path.parent} does not exist"
    raise UsageError(f"--draw {file} {kind}; give a file in a folder that exists")
  if not os.access(path if path.exists() else path.parent, os.W_OK):
    raise UsageError(f"--draw {file} cannot be written; give a file in a folder of yours")


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  return ending(args.draw, args.config) if args.draw else ""
