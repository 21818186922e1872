"""Ask a model whether a statement about a photograph is true.

Prints the answer as it was written (four steps, or the short form with --behaviors), the verdict and the number
of tokens. Works with any photograph and any Hugging Face folder of a Qwen3-VL model.

  spatial-vlm answer PHOTO.png "The cat is left of the mug." --checkpoint runs/dapo/export --draw boxes.png
"""

import argparse

import jax
from etils import epath

from spatial_vlm import answers, sharding
from spatial_vlm.config import Config
from spatial_vlm.data.benchmark_record import BenchmarkRecord
from spatial_vlm.evaluation.box_drawing import draw_boxes
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.generation import inference_engine, parsed_verdict
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import (
  AskedQuestion,
  decode_completions,
  encode_question,
  make_requests,
  prompt_format,
)
from spatial_vlm.inference.questions import QuestionBuilder, load_recall
from spatial_vlm.processor.image import open_image, padded_length
from spatial_vlm.tasks import find_task

TOKEN_BUCKET, PATCH_BUCKET = 64, 64


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  with user_errors():
    image = open_image(args.photo)
    task = find_task(config.task)
    mesh = sharding.make_mesh(config.mesh)
    policy = load_policy(args.checkpoint, mesh)
    processor = policy.processor.limited_to(config.max_patches)
    recall = load_recall(args.behaviors, config.behavior_tokens) if args.behaviors else None
    question = QuestionBuilder(task, "direct" if args.direct else "chain", recall)(args.statement)
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
