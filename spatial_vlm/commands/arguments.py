"""Arguments that commands have besides --config and --workdir. This module imports nothing of the work."""

import argparse
import re
from collections.abc import Callable

from spatial_vlm.settings.names import MODELS, TPU_VERSIONS

TOKEN_VARIABLE = "SPATIAL_VLM_API_KEY"
"""Environment variable of the bearer token of `serve`."""


def number(least: int, most: int | None = None) -> Callable[[str], int]:
  """Returns a reader of whole numbers from `least` to `most` for argparse."""
  allowed = f"at least {least}" if most is None else f"from {least} to {most}"

  def read(text: str) -> int:
    try:
      value = int(text)
    except ValueError as error:
      raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from error
    if value < least or (most is not None and value > most):
      raise argparse.ArgumentTypeError(f"{value}; it must be {allowed}")
    return value

  return read


def topology(text: str) -> str:
  """Reads a TPU version and the grid of chips of a slice for argparse."""
  if not re.fullmatch(rf"({'|'.join(TPU_VERSIONS)}):\d+(x\d+)*", text):
    raise argparse.ArgumentTypeError(
      f"{text!r}; give VERSION:GRID, e.g. v5e:8x8 or v5p:4x4x4; versions are {', '.join(TPU_VERSIONS)}"
    )
  return text


def answer_arguments(parser: argparse.ArgumentParser) -> None:
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
  form.add_argument("--direct", action="store_true", help="ask for the verdict alone")
  parser.add_argument(
    "--draw", metavar="FILE.png", help="write the photograph with the boxes of the answer"
  )


def bench_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--against",
    choices=("transformers",),
    help="also time the same model in transformers with torch: same weights, same inputs, alternating rounds",
  )


def plan_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--topology",
    type=topology,
    default="v5e:4x8",
    help="TPU version and grid of chips of one slice, e.g. v5e:4x8, v5p:4x4x4, v6e:1x1 (default: %(default)s)",
  )
  parser.add_argument(
    "--slices",
    type=number(1),
    default=1,
    metavar="N",
    help="number of slices of that grid (default: %(default)s)",
  )
  parser.add_argument(
    "--model",
    choices=sorted(MODELS),
    help="size of the model (default: that of --config.checkpoint if given, else 8b)",
  )
  parser.add_argument(
    "--search",
    action="store_true",
    help="try meshes, micro-batches and remat policies, rank them and plan the best",
  )


def serve_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--checkpoint", required=True, metavar="DIR", help="Hugging Face folder of a Qwen3-VL model"
  )
  parser.add_argument(
    "--behaviors", metavar="DIR", help="index written by `behaviors`: recalled for plain statements"
  )
  parser.add_argument(
    "--host", default="127.0.0.1", help="address to bind (default: %(default)s, this machine only)"
  )
  parser.add_argument(
    "--port", type=number(1, 65_535), default=8000, metavar="N", help="default: %(default)s"
  )
  parser.add_argument(
    "--token-file",
    metavar="FILE",
    help=f"file of the bearer token that clients must send (default: ${TOKEN_VARIABLE})",
  )


def synthesize_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--yes", action="store_true", help="agree to any estimated cost")
  parser.add_argument(
    "--offline", action="store_true", help="send nothing: check and report the stored answers"
  )
