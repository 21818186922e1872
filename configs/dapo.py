"""DAPO: reinforcement learning from the labels alone.

tiny   scenes, on top of the fine-tuned tiny model; minutes on two cores
8b     Qwen3-VL-8B on VSR with the published settings: 512 prompts a batch, clip range 0.2 / 0.28
"""

from ml_collections import ConfigDict, config_dict


def get_config(preset: str) -> ConfigDict:
  presets = {"tiny": tiny, "8b": qwen3_vl_8b}
  if preset not in presets:
    raise ValueError(f"no preset {preset!r}; there are {', '.join(presets)}")
  return presets[preset]()


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="dapo",  # the command that this config belongs to: `spatial-vlm dapo`
      seed=0,
      checkpoint="runs/sft/export",  # Hugging Face folder of the policy to start from
      data=dict(
        records="runs/scenes/train.jsonl",
        images="runs/scenes/images",
        validation="runs/scenes/validation.jsonl",
        evaluation="",  # file of records that may not be among them; scenes have none in common
        max_bad_share=0.01,
        prompt_tokens=64,  # every prompt is padded to this; longer ones are left out, and counted
        patches=64,  # patches of a prompt are padded to this
      ),
      steps=30,  # policy batches
      groups_per_batch=32,  # groups of a policy batch
      group_size=8,  # G, answers to each prompt
      rollout_batch_size=32,  # prompts drawn in a round of dynamic sampling
      max_rollout_rounds=4,  # then the batch takes the groups that there are
      minibatches=4,  # updates on each batch
      micro_batches=1,
      eps_low=0.2,
      eps_high=0.28,
      max_new_tokens=128,
      overlong_cache_tokens=8,
      temperature=1.0,
      chunk_tokens=8192,  # of each answer, whose logits are held at once
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
      # The same devices while answers are sampled: weights are cut by heads and hidden units (tensor). Cut by width
      # (fsdp), every token would gather the whole model.
      sampling_mesh=dict(slice=1, data=-1, fsdp=1, tensor=1),
      optimizer=dict(
        # or "muon", which learns faster from scratch; "adafactor", which has next to no state, and no use for beta1,
        # beta2 and eps
        method="adamw",
        moments="float32",  # as they are stored between updates; or "bfloat16", "float8"
        learning_rate=3e-4,
        schedule="cosine",
        warmup_steps=8,
        final_fraction=0.1,
        beta1=0.9,
        beta2=0.98,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=1.0,
      ),
      validate_steps=10,  # batches between measurements on the validation split
      validate_prompts=256,
      validate_batch=256,
      checkpoint_steps=5,  # rounds and updates between checkpoints
      max_to_keep=1,
    )
  )


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.checkpoint = config_dict.required_placeholder(str)
  for leaf in ("records", "images", "validation", "evaluation"):
    config.data[leaf] = config_dict.required_placeholder(str)
  config.data.prompt_tokens = 1280
  config.data.patches = 4096
  config.steps = 150
  config.groups_per_batch = 512
  config.group_size = 16
  config.rollout_batch_size = 64  # as many as 32 chips of v5e have room for, beside what they train
  config.max_rollout_rounds = 80
  config.minibatches = 16
  config.micro_batches = 8
  config.max_new_tokens = 1024
  config.overlong_cache_tokens = 256
  config.chunk_tokens = 64
  config.remat = "full"
  config.dtype = "bfloat16"
  config.mesh = dict(slice=1, data=1, fsdp=-1, tensor=1)
  config.sampling_mesh = dict(slice=1, data=-1, fsdp=1, tensor=8)
  config.optimizer.learning_rate = 1e-6
  config.optimizer.schedule = "constant"
  config.optimizer.warmup_steps = 320  # updates: 20 batches
  config.optimizer.final_fraction = 1.0
  config.optimizer.beta2 = 0.95
  config.optimizer.weight_decay = 0.1
  config.validate_prompts = 1024
  config.validate_batch = 512
  config.max_to_keep = 3
  return config
