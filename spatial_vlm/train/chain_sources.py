"""Where the chains come from of which behaviors are made: a policy that answers, or a file."""

import re
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from spatial_vlm import sharding
from spatial_vlm.config import Config
from spatial_vlm.data.records import Take
from spatial_vlm.data.split_guard import refuse_shared_records
from spatial_vlm.huggingface.folder import find_folder
from spatial_vlm.inference.generation import (
  BatchGenerator,
  QuestionEncoder,
  check_batch,
  inference_engine,
  parsed_verdicts,
)
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import prompt_format
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.inference.stored_answers import AnswerStore, stored_answers
from spatial_vlm.processor.chat import Processor
from spatial_vlm.reuse.chains.solutions import Solution, source_record
from spatial_vlm.synthesis.chain_file import read_chains
from spatial_vlm.tasks.task import Task

_WORD = re.compile(r"\w+|[^\w\s]")
_REMEDY = "extract behaviors from training records only, or evaluate on another set"


class Chains(NamedTuple):
  """Answers in full chains, right or wrong, and the images that they are about."""

  solutions: list[Solution]
  images: list[str]


class ChainSource(NamedTuple):
  """Where the chains come from."""

  count_tokens: Callable[[str], int]
  read: Callable[[], Chains]


def chains_of_policy(config: Config, task: Task, workdir: epath.Path) -> ChainSource:
  """Prepares the policy, whose answers to the training records are the chains."""
  data = config.data
  source = task.read(data.records, data.images, None, data.max_bad_share)
  examples = Take(source, config.limit or len(source))
  refuse_shared_records(source.pairs, [config.evaluation], _REMEDY)
  mesh = sharding.make_mesh(config.mesh)
  check_batch(config, mesh)
  policy = load_policy(config.checkpoint, mesh)

  def read() -> Chains:
    format = prompt_format(config.prompt_shapes, policy.dtype)
    encode = QuestionEncoder(policy.processor, format, QuestionBuilder(task, "chain"))
    engine = inference_engine(policy, mesh)
    generator = BatchGenerator(policy, engine, encode, config.max_new_tokens, parsed_verdicts)
    store = AnswerStore.from_config(workdir, config)
    predictions = stored_answers(store, generator, examples, "full chains")
    split, images = split_name(config), [source.image_name(p.id) for p in predictions]
    solutions = [
      Solution(record, p.caption, p.relation, None, None, p.text, p.label)
      for p, image in zip(predictions, images, strict=True)
      for record in [source_record(split, p.id, (image, p.caption))]
    ]
    return Chains(solutions, images)

  return ChainSource(lambda text: len(policy.processor.encode_text(text)), read)


def chains_of_file(config: Config, task: Task, workdir: epath.Path) -> ChainSource:
  """Reads the chains of a file; without a checkpoint, tokens are words and punctuation marks."""
  builder = QuestionBuilder(task, "chain")
  file = read_chains(config.chains, split_name(config), builder, config.data.max_bad_share)
  refuse_shared_records(file.pairs, [config.evaluation], _REMEDY)
  read = lambda: Chains(file.solutions, file.images)  # noqa: E731
  if not config.checkpoint:
    return ChainSource(lambda text: len(_WORD.findall(text)), read)
  processor = Processor.from_folder(find_folder(config.checkpoint))
  return ChainSource(lambda text: len(processor.encode_text(text)), read)


def split_name(config: Config) -> str:
  """Returns the name of the split in the provenance."""
  return config.data.split or epath.Path(config.data.records).stem
