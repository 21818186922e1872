"""Ask a model whether a statement about a photograph is true.

Prints the answer as it was written (four steps, or the short form with --behaviors), the verdict and the number
of tokens. Works with any photograph and any Hugging Face folder of a Qwen3-VL model.

  spatial-vlm answer PHOTO.png "The cat is left of the mug." --checkpoint runs/dapo/export --draw boxes.png
"""

import argparse

from etils import epath
from PIL import Image, ImageDraw

from spatial_vlm import answers
from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config, check_positive
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.generation import greedy
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import PromptShape, collate, encode_question, written
from spatial_vlm.inference.questions import plan_answers
from spatial_vlm.processor.image import open_image, padded_length
from spatial_vlm.reuse.embedder import LexicalEmbedder
from spatial_vlm.reuse.index import BehaviorIndex
from spatial_vlm.tasks.statements import question

TOKEN_BUCKET, PATCH_BUCKET = 64, 64
COLORS = ("#0072b2", "#d55e00", "#cc79a7", "#009e73")


def arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("photo", metavar="PHOTO", help="an image file")
  parser.add_argument(
    "statement", metavar="STATEMENT", help='such as "The cat is left of the mug."'
  )
  parser.add_argument(
    "--checkpoint", required=True, metavar="DIR", help="Hugging Face folder of a Qwen3-VL model"
  )
  form = parser.add_mutually_exclusive_group()
  form.add_argument(
    "--behaviors", metavar="DIR", help="index written by `behaviors`: answer in the short form"
  )
  form.add_argument("--direct", action="store_true", help="ask for Yes or No alone")
  parser.add_argument(
    "--draw", metavar="FILE.png", help="write the photograph with the boxes of the answer"
  )


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  with user_errors():
    image = open_image(args.photo)
    check_positive(config, "max_new_tokens", "max_patches")
    policy = load_policy(args.checkpoint)
    processor = policy.processor.limited_to(config.max_patches)
    row = encode_question(processor, image, asked(args))
  patches = padded_length([row.patches], PATCH_BUCKET)
  shape = PromptShape(padded_length([len(row.tokens)], TOKEN_BUCKET), patches)
  prompts = collate(policy.processor, [row], [0], [-1], shape)
  (answer,) = written(policy, greedy(policy, policy.params, prompts, config.max_new_tokens))
  parsed = None if answer.truncated else answers.parse(answer.text)
  verdict = {None: "none: the answer does not parse", 1: "yes", 0: "no"}[
    parsed.verdict if parsed else None
  ]
  cut = f", cut off at max_new_tokens {config.max_new_tokens}" if answer.truncated else ""
  print(answer.text)
  print(f"\nverdict: {verdict}")
  print(f"tokens: {answer.tokens} generated{cut}, {len(row.tokens)} read")
  if args.draw:
    boxes = answers.parse_boxes(answer.text)
    with user_errors():
      draw(image, boxes).save(args.draw)
    print(f"{len(boxes)} boxes drawn in {args.draw}")


def asked(args: argparse.Namespace) -> str:
  if args.behaviors:
    index = BehaviorIndex.load(args.behaviors, LexicalEmbedder())
    return plan_answers(index, [args.statement], index.handbook.max_tokens)[0].question
  return question(args.statement, "direct" if args.direct else "chain")


def draw(image: Image.Image, boxes: dict[str, answers.Box]) -> Image.Image:
  """The photograph, enlarged when it is small, with named boxes."""
  scale = max(1, 512 // max(image.size))
  picture = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
  pen = ImageDraw.Draw(picture)
  for i, (name, (x1, y1, x2, y2)) in enumerate(boxes.items()):
    color = COLORS[i % len(COLORS)]
    left, top = x1 * picture.width / 1000, y1 * picture.height / 1000
    pen.rectangle(
      (left, top, x2 * picture.width / 1000, y2 * picture.height / 1000), outline=color, width=3
    )
    at = (left + 4, max(0, top - 14))
    pen.rectangle(pen.textbbox(at, name), fill=color)
    pen.text(at, name, fill="white")
  return picture


COMMAND = Command("answer", run, add_arguments=arguments)
