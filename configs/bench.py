"""Speed on this machine, with random weights.

tiny     the shape of the shipped base, float32; minutes on two cores
small    a model of 58 M parameters, float32; for CPUs
2b       Qwen3-VL-2B in bfloat16 on an accelerator: forward pass, decoding, a step on LoRA factors
2b_full  the same model: the full fine-tune on packed rows, a DAPO step on LoRA factors
8b       Qwen3-VL-8B in bfloat16 on an accelerator of 80 GB: decoding, a step on LoRA factors and packed rows
"""

from ml_collections import ConfigDict

from .common import choose, data_parallel_mesh, training


def get_config(preset: str) -> ConfigDict:
  return choose(
    preset,
    {
      "tiny": tiny,
      "small": small,
      "2b": qwen3_vl_2b,
      "2b_full": qwen3_vl_2b_full,
      "8b": qwen3_vl_8b,
    },
  )


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="bench",  # the command that this config is for
      seed=0,  # seed of every random draw
      model="tiny",  # tiny | small (58 M parameters) | 2b | 4b | 8b
      dtype="float32",  # type of the computation, in `forward` and `decode` of the weights too
      # What is measured, in this order: parity (a small model here and on the CPU), attention (the kernel and the
      # formula), forward, decode, prefix (prefill of whole prompts and after cached behaviors), sft, dapo.
      measurements=("parity", "attention", "forward", "decode", "prefix", "sft", "dapo"),
      rounds=7,  # turns of each program; dapo: steps
      round_s=0.3,  # least seconds of a turn: short programs run several times
      time_limit_s=1800,  # seconds after which no further measurement starts
      mesh=data_parallel_mesh(),
      decode=row(tokens=64)
      | dict(
        batch_sizes=(1, 8, 64),  # each has a row for prefill and one for decoding
        new_tokens=64,  # length of every answer
      ),
      prefix=row(tokens=64)
      | dict(
        prefix_tokens=32,  # padded length of a behavior's turn, whose keys and values are cached
        batch_size=128,  # prompts of a batch
      ),
      sft=step()
      | row(tokens=176)
      | dict(
        batch_size=8,  # rows of a batch
      ),
      dapo=step()
      | row(tokens=64)
      | dict(
        task="scenes",  # gives the grammar of verdicts
        rounds=2,  # steps
        groups_per_batch=32,  # groups of a policy batch
        group_size=8,  # G, answers to each prompt
        rollout_batch_size=32,  # prompts of a round of sampling
        max_rollout_rounds=1,  # rounds after which the update takes the groups that it has
        minibatches=4,  # updates of a step
        objectives=(("dapo", 1.0),),  # as in configs/dapo.py
        rewards=(("accuracy", 1.0), ("overlong", 1.0)),  # as in configs/dapo.py
        eps_low=0.2,  # as in configs/dapo.py
        eps_high=0.28,  # as in configs/dapo.py
        max_new_tokens=128,  # longest answer, in tokens
        answer_lengths=(),  # as in configs/dapo.py; here every answer has max_new_tokens
        overlong_cache_tokens=8,  # as in configs/dapo.py
        temperature=1.0,  # sampling temperature
      ),
    )
  )


def row(tokens: int) -> dict:
  """Returns the leaves of a row of conversations or of a prompt."""
  return dict(
    tokens=tokens,  # length of a row (sft) or of a prompt (decode, dapo), image tokens included
    images=1,  # images of a row, each in a conversation of its own
    grid=(8, 8),  # rows and columns of an image's patches
  )


def step() -> dict:
  """Returns the leaves of a training step; seed and mesh are those of the whole."""
  leaves = training()
  for name in ("seed", "mesh", "checkpoint_minutes", "max_to_keep"):
    del leaves[name]
  return leaves


def small() -> ConfigDict:
  config = tiny()
  config.model = "small"
  config.measurements = ("forward", "decode", "sft")
  config.rounds = 5
  config.decode.batch_sizes = (1, 8)
  config.sft.batch_size = 4
  return config


def on_accelerator() -> ConfigDict:
  """Returns what the presets for accelerators share: photographs of 640×480, and bfloat16."""
  config = tiny()
  config.dtype = "bfloat16"
  config.rounds = 3
  config.decode.tokens = 384
  config.prefix.tokens = 384
  config.prefix.prefix_tokens = 64
  config.prefix.batch_size = 32
  for group in (config.decode, config.prefix, config.sft, config.dapo):
    group.grid = (30, 40)
  for group in (config.sft, config.dapo):
    group.dtype = "bfloat16"
    group.remat = "full"
  config.sft.tokens = 512
  config.sft.chunk_tokens = 1024
  config.dapo.tokens = 384
  config.dapo.groups_per_batch = 16
  config.dapo.rollout_batch_size = 16
  config.dapo.chunk_tokens = 64
  return config


def with_lora(group: ConfigDict) -> None:
  group.trainable = (".*/lora_[ab]",)
  group.lora.rank = 16


def with_packed_rows(group: ConfigDict) -> None:
  group.batch_size = 4
  group.images = 3
  group.tokens = 2048


def qwen3_vl_2b() -> ConfigDict:
  config = on_accelerator()
  config.model = "2b"
  config.measurements = ("forward", "decode", "sft")
  config.decode.batch_sizes = (1, 64)
  config.decode.new_tokens = 32  # transformers takes about 32 ms for each
  with_lora(config.sft)
  return config


def qwen3_vl_2b_full() -> ConfigDict:
  config = on_accelerator()
  config.model = "2b"
  config.measurements = ("sft", "dapo")
  with_packed_rows(config.sft)
  with_lora(config.dapo)
  return config


def qwen3_vl_8b() -> ConfigDict:
  config = on_accelerator()
  config.model = "8b"
  config.measurements = ("parity", "attention", "decode", "sft")
  config.decode.batch_sizes = (1, 64, 8)  # the extremes first, in case time runs out
  with_lora(config.sft)
  with_packed_rows(config.sft)
  return config
