"""Answers its own rows of eight questions in slots, as one of several processes, and writes the completions.

python slots_of_process.py PROCESSES PROCESS PORT CHECKPOINT FILE
"""

import dataclasses
import sys

import jax
import numpy as np

from spatial_vlm import hosts, sharding
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.generation import inference_engine, slot_settings
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import (
  AskedQuestion,
  encode_question,
  make_requests,
  prompt_format,
)
from spatial_vlm.process_rows import own_rows

QUESTIONS, TOKENS = 8, 24


def answers(count: int, process: int, checkpoint: str):
  """Returns the completions of this process's rows."""
  mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
  policy = load_policy(checkpoint, mesh)
  own = range(QUESTIONS // count * process, QUESTIONS // count * (process + 1))
  source = SceneSource("train", 0, QUESTIONS)
  asked = [
    AskedQuestion(
      "?", None, encode_question(policy.processor, source[i].image, source[i].record.caption)
    )
    for i in own
  ]
  format = prompt_format([(64, 64)], "float32")
  slots = slot_settings(format, mesh, 4, TOKENS, policy.special.eos)
  engine = inference_engine(policy, mesh, None, dataclasses.replace(slots, decode_tokens=4))
  requests = make_requests(policy, mesh, asked, own, [0] * len(own), format)
  sampling = policy.sampling(TOKENS, temperature=1.3, group_size=2)
  return jax.tree.map(own_rows, engine.generate(requests, jax.random.key(1), sampling))


if __name__ == "__main__":
  count, process = map(int, sys.argv[1:3])
  address = (f"localhost:{sys.argv[3]}", count, process) if count > 1 else (None, None, None)
  with hosts.together(*address):
    found = answers(count, process, sys.argv[4])
    np.savez(sys.argv[5], **found._asdict())
