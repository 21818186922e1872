"""DAPO: reinforcement learning from the labels alone.

tiny   scenes, on top of the fine-tuned tiny model; minutes on two cores
reuse  the same, with recalled behaviors in the prompts and a preference for shorter answers, on top of `sft:reuse`
8b     Qwen3-VL-8B on VSR with the published settings: 512 prompts a batch, clip range 0.2 / 0.28
"""

from ml_collections import ConfigDict, config_dict

from .common import choose, data_parallel_mesh, fully_sharded_mesh, photograph_shapes, training


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "reuse": reuse, "8b": qwen3_vl_8b})


def tiny() -> ConfigDict:
  config = ConfigDict(
    training()
    | dict(
      algorithm="dapo",  # the command that this config is for: `spatial-vlm dapo`
      task="scenes",  # how records are read and asked about, and the grammar of answers: scenes | vsr
      checkpoint="runs/sft/export",  # Hugging Face folder of the policy to start from
      data=dict(
        records="runs/scenes/train.jsonl",  # file of labelled records
        images="runs/scenes/images",  # folder, archive or store of the images
        validation="runs/scenes/validation.jsonl",  # file of the records for validation
        # JSON lines in VSR's format whose statements must not be trained on (docs/tasks.md); scenes share none.
        evaluation="",
        max_bad_share=0.01,  # stop when more than this share of the records is broken
        # Padded (tokens, patches) of prompts: a round, or a mini-batch, takes the smallest that holds its prompts.
        # Larger prompts are skipped and counted.
        prompt_shapes=((64, 64),),
      ),
      steps=30,  # policy batches
      groups_per_batch=32,  # groups of a policy batch
      group_size=8,  # G, answers to each prompt
      rollout_batch_size=32,  # prompts drawn in a round of dynamic sampling
      max_rollout_rounds=4,  # rounds after which the batch takes the groups that it has
      minibatches=4,  # updates on each batch
      # Names of OBJECTIVES (dapo, gspo, kl_reference) and their weights: what updates maximise. ("kl_reference", 0.01)
      # is a penalty on the distance from the policy that the run started from.
      objectives=(("dapo", 1.0),),
      behaviors="",  # index of `behaviors`: prompts recall from it; empty: every prompt asks for a full chain
      behavior_tokens=48,  # most tokens of a recalled behavior
      # Names of REWARDS (accuracy, overlong, length) and their weights.
      rewards=(("accuracy", 1.0), ("overlong", 1.0)),
      # Clip range of the ratio of new to old probability: no gradient below 1 - eps_low where the advantage is
      # negative, and above 1 + eps_high where it is positive.
      eps_low=0.2,
      eps_high=0.28,  # see eps_low; larger than eps_low ("clip-higher"), so that rare tokens can gain
      max_new_tokens=128,  # longest answer, in tokens
      # Lengths, below max_new_tokens, that the answers of a mini-batch are cut to in an update: the smallest that holds
      # them. Each is a program of its own.
      answer_lengths=(),
      overlong_cache_tokens=8,  # length below the limit over which the overlong penalty grows from 0 to -1
      temperature=1.0,  # sampling temperature
      # Mesh of the same devices while answers are sampled: weights are cut by heads and hidden units (tensor). Cut by
      # width (fsdp), every token would gather the whole model.
      sampling_mesh=data_parallel_mesh(),
      engine=dict(
        # What samples the answers: "compiled" (in this process, all answers of a round start together), "slots" (in
        # this process, the next prompts of a round take slots as they become free: continuous batching) or "vllm" (a
        # vLLM server, see the RL guide).
        kind="compiled",
        # For "slots".
        prompt_slots=32,  # slots in which answers are decoded at a time
        samples_per_slot=4,  # answers that share a slot, and the keys and values of their prompt
        # The rest is for "vllm".
        url="http://127.0.0.1:8000",  # base address of the server
        folder="",  # absolute path that the server sees too; the weights of an update are written there
        transfer="disk",  # how the server reads them: "disk" (its weight-update calls) or "reload" (`/collective_rpc`)
        checksums=True,  # compare the server's weights with those sent; False where the server has no /weight_checker
        dtype="bfloat16",  # type that the server computes in: its --dtype
        in_flight=256,  # prompts that are with the server at a time
        timeout_s=600.0,  # longest silence of the server in one call
        # Of every kind: the largest rollout_logprob_gap (mean over a policy batch, in nats); above it the run ends.
        max_logprob_gap=0.1,
      ),
      validate_steps=10,  # batches between measurements on the validation split
      validate_prompts=256,  # prompts of one measurement on the validation split
      validate_batch=256,  # prompts that it answers at once
      checkpoint_steps=5,  # rounds and updates between checkpoints; 0: only by time
    )
  )
  config.micro_batches = 4  # the arrays of 16 answers stay in a core's cache
  config.optimizer.learning_rate = 3e-4
  config.optimizer.warmup_steps = 8
  config.optimizer.final_fraction = 0.1
  config.optimizer.weight_decay = 0.0
  return config


def reuse() -> ConfigDict:
  config = tiny()
  config.checkpoint = "runs/sft_reuse/export"
  config.behaviors = "runs/behaviors/index"
  config.data.prompt_shapes = ((112, 64),)  # with a behavior of 48 tokens
  config.rewards = (("accuracy", 1.0), ("overlong", 1.0), ("length", 0.5))
  return config


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.task = "vsr"
  config.checkpoint = config_dict.required_placeholder(str)
  for leaf in ("records", "images", "validation", "evaluation"):
    config.data[leaf] = config_dict.required_placeholder(str)
  config.data.prompt_shapes = photograph_shapes()
  config.behavior_tokens = 64
  config.steps = (
    60  # 8 passes over VSR's 7,680 training records if half of the groups have mixed outcomes
  )
  config.groups_per_batch = 512
  config.group_size = 16
  config.rollout_batch_size = 64  # as many as fit on 32 chips of v5e besides the training state
  config.max_rollout_rounds = 80
  config.minibatches = 16
  config.micro_batches = 8
  config.max_new_tokens = 1024
  config.answer_lengths = (256, 512)
  config.overlong_cache_tokens = 256
  config.chunk_tokens = 64
  config.remat = "full"
  config.dtype = "bfloat16"
  config.mesh = fully_sharded_mesh()
  config.sampling_mesh = dict(slice=1, data=-1, fsdp=1, tensor=8)
  config.optimizer.learning_rate = 1e-6
  config.optimizer.schedule = "constant"
  config.optimizer.warmup_steps = 128  # updates: 8 batches
  config.optimizer.final_fraction = 1.0
  config.optimizer.beta2 = 0.95
  config.optimizer.weight_decay = 0.1
  config.validate_prompts = 1024
  config.validate_batch = 128
  config.checkpoint_steps = 0  # a checkpoint of all weights and moments is 98 GB
  config.checkpoint_minutes = 60.0
  config.max_to_keep = 2
  return config
