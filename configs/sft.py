"""Supervised fine-tuning.

tiny       the four-step chains of rendered scenes, on top of the shipped base; minutes on two cores
direct     the same scenes, answered by Yes or No alone
reuse      verified short and full answers, on top of an aligned policy
pretrain   makes the tiny base: captioning and grounding, no true/false question; about an hour on two cores
8b         Qwen3-VL-8B on chains written by a teacher (3 epochs, as published)
"""

from ml_collections import ConfigDict, config_dict


def get_config(preset: str) -> ConfigDict:
  presets = {
    "tiny": tiny,
    "direct": direct,
    "reuse": reuse,
    "pretrain": pretrain,
    "8b": qwen3_vl_8b,
  }
  if preset not in presets:
    raise ValueError(f"no preset {preset!r}; there are {', '.join(presets)}")
  return presets[preset]()


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="sft",  # the command that this config belongs to: `spatial-vlm sft`
      seed=0,
      checkpoint="spatial_vlm/assets/tiny_base",  # Hugging Face folder: weights, tokenizer, processor
      from_scratch=False,  # keep only the architecture of `checkpoint`, draw the weights
      data=dict(
        conversations="runs/scenes/chains.jsonl",  # lines of {image, question, answer}
        images="runs/scenes/images",
        evaluation="",  # file of records that may not be asked about; scenes have none in common
        mix=(),  # further (conversations, images, weight): so many of them for one of `conversations`
        max_bad_share=0.01,  # stop when more than this share of the records is broken
        batching="shuffled",  # or "bucketed": batches of similar size; "packed": several records a row
        # Tokens and patches that rows are padded to. Each is a program to compile; what fits in none is left out.
        shapes=((88, 64), (176, 64), (192, 64)),
        pretrain=dict(  # pictures to caption and ground, drawn on the way, instead of files
          scenes=(),  # pictures of each stage, in their order: few objects first, or seeing is learnt late
          objects=(),  # most objects of a picture in each stage
          requests=3,  # to locate or name an object, on each picture
          list_share=0.6,  # of the pictures whose objects are listed
        ),
        workers=0,  # threads that read and encode; several for large photographs
      ),
      epochs=3,
      batch_size=8,
      micro_batches=1,
      chunk_tokens=8192,  # positions whose logits are held at once
      # What the backward pass finds of each layer: "offload" (its input, in the host's memory), "full" (its input),
      # "context" (and what attention makes), "attention" (and queries, keys, values), "dots" (and all products with
      # weights), "none" (everything); the rest is computed again.
      remat="dots",
      dtype="float32",  # of the computation; weights and updates are float32
      # Patterns of the paths of parameters that train; ("(text|head)/.*",) freezes the vision tower.
      trainable=(".*",),
      frozen_int8=False,  # hold the kernels that do not train in 8 bits, half of bfloat16
      lora=dict(
        rank=0,  # of pairs beside frozen kernels, with trainable=(".*/lora_[ab]",); 0: no pairs
        alpha=32.0,  # their product counts alpha / rank times
        # Patterns of the kernels that get a pair.
        targets=("text/layers/(attention|mlp)/.*_proj/kernel",),
      ),
      mesh=dict(slice=1, data=-1, fsdp=1, tensor=1),
      optimizer=dict(
        # or "muon", which learns faster from scratch; "adafactor", which has next to no state, and no use for beta1,
        # beta2 and eps
        method="adamw",
        moments="float32",  # as they are stored between updates; or "bfloat16", "float8"
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=20,
        final_fraction=0.05,
        beta1=0.9,
        beta2=0.98,
        eps=1e-8,
        weight_decay=0.01,
        clip_norm=1.0,
      ),
      log_steps=10,
      checkpoint_steps=100,
      max_to_keep=1,
    )
  )


def direct() -> ConfigDict:
  config = tiny()
  config.data.conversations = "runs/scenes/direct.jsonl"
  config.data.shapes = token_shapes(16, 192)
  return config


def reuse() -> ConfigDict:
  config = tiny()
  config.checkpoint = "runs/dapo/export"
  config.data.conversations = "runs/behaviors/conversations.jsonl"
  config.data.batching = "bucketed"  # short answers beside full ones
  config.epochs = 1
  config.optimizer.learning_rate = 1e-3
  return config


def pretrain() -> ConfigDict:
  config = tiny()
  config.from_scratch = True
  config.data.shapes = token_shapes(16, 256)
  config.data.pretrain.scenes = (20_000, 24_000, 150_000)
  config.data.pretrain.objects = (1, 2, 3)
  config.epochs = 1
  config.batch_size = 32
  config.optimizer.method = "muon"
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 60
  config.optimizer.final_fraction = 0.01
  config.log_steps = 20
  config.checkpoint_steps = 200
  return config


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.checkpoint = config_dict.required_placeholder(str)
  config.data.conversations = config_dict.required_placeholder(str)
  config.data.images = config_dict.required_placeholder(str)
  config.data.evaluation = config_dict.required_placeholder(str)
  config.data.batching = "packed"
  # Three pictures of 640×480 with their chains, in a multiple of 128 patches. As many patches for each token as there
  # are in the data: the scarcer of the two fills the rows, and all that is left of the other is padding.
  config.data.shapes = ((2048, 3712),)
  config.data.workers = 4
  config.batch_size = 32  # a row for each of 32 chips
  config.chunk_tokens = 1024
  config.remat = "full"
  config.dtype = "bfloat16"
  config.mesh = dict(slice=1, data=1, fsdp=-1, tensor=1)
  config.optimizer.learning_rate = 1e-5
  config.optimizer.warmup_steps = 30
  config.optimizer.final_fraction = 0.1
  config.optimizer.beta2 = 0.95
  config.optimizer.weight_decay = 0.1
  config.checkpoint_steps = 50
  config.max_to_keep = 3
  return config


def token_shapes(step: int, most: int) -> tuple[tuple[int, int], ...]:
  """Multiples of `step` tokens, each with the 64 patches of a rendered scene."""
  return tuple((tokens, 64) for tokens in range(step, most + 1, step))
