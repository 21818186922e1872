"""Chains whose procedure is in words, for the tests of extractors."""

from spatial_vlm import answers
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.extraction.extractor import ExtractionSettings

PAIRS = [("dog", "horse"), ("cat", "red mug"), ("person", "bench"), ("bird", "bus")]


def solution(number, reasoning, caption="The {X} is facing the {Y}.", label=1, verdict=None):
  """A solution about one of PAIRS; {X} and {Y} in the texts are its objects."""
  x, y = PAIRS[number % len(PAIRS)]
  boxes = answers.render_boxes([(x, (100, 300, 300, 500)), (y, (600, 300, 900, 500))])
  text = answers.render_chain(
    "s", boxes, reasoning.format(X=x, Y=y), label if verdict is None else verdict
  )
  return Solution(f"train:{number}", caption.format(X=x, Y=y), "facing", x, y, text, label)


def settings(**changes):
  fields = {
    "count_tokens": lambda text: len(text.split()),
    "min_support": 3,
    "max_tokens": 30,
    "embedder": LexicalEmbedder(),
    "cluster_similarity": 0.6,
    "duplicate_similarity": 0.9,
    "teacher_chains": 20,
  }
  return ExtractionSettings(**fields | changes)
