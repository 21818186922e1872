"""Supervised fine-tuning.

tiny       the four-step chains of rendered scenes, on top of the shipped base; minutes on two cores
direct     the same scenes, answered by Yes or No alone
reuse      verified short and full answers, on top of an aligned policy
bc         behavior-conditioned SFT: the same answers, asked for without the behaviors that they were written with
pretrain   makes the tiny base: captioning and grounding, no true/false question; about an hour on two cores
8b         Qwen3-VL-8B on chains written by a teacher (3 epochs, as published)
"""

from ml_collections import ConfigDict, config_dict

from .common import choose, fully_sharded_mesh, training


def get_config(preset: str) -> ConfigDict:
  return choose(
    preset,
    {
      "tiny": tiny,
      "direct": direct,
      "reuse": reuse,
      "bc": behavior_conditioned,
      "pretrain": pretrain,
      "8b": qwen3_vl_8b,
    },
  )


def tiny() -> ConfigDict:
  config = on_scenes()
  # In as many epochs AdamW (2e-3, 8 rows) reached 82.6 % of validation scenes and Muon 89.2 %, for a third more
  # processor time; after DAPO, 83.2 and 86.1 % with reuse.
  config.batch_size = 16
  config.optimizer.method = "muon"
  config.optimizer.learning_rate = 2.8e-3
  return config


def on_scenes() -> ConfigDict:
  """Returns every leaf; presets change some."""
  return ConfigDict(
    training()
    | dict(
      algorithm="sft",  # the command that this config is for: `spatial-vlm sft`
      checkpoint="spatial_vlm/assets/tiny_base",  # Hugging Face folder: weights, tokenizer, processor
      # What the questions of the conversations are about, for the model card and the chat template of the export:
      # scenes | vsr. Forms whose words no question has are not taken for learnt.
      task="scenes",
      from_scratch=False,  # keep only the architecture of `checkpoint` and draw the weights
      data=dict(
        conversations="runs/scenes/chains.jsonl",  # lines of {image, question, answer}
        images="runs/scenes/images",  # folder, archive or store of the images
        # JSON lines in VSR's format whose statements must not be trained on (docs/tasks.md); scenes share none.
        evaluation="",
        system_turns=True,  # False: leave out system turns, such as the behavior that an answer was written with
        mix=(),  # further (conversations, images, weight): `weight` of them for one of `conversations`
        max_bad_share=0.01,  # stop when more than this share of the records is broken
        batching="shuffled",  # "shuffled"; "bucketed": rows of similar size; "packed": several records a row
        # Padded row shapes (tokens, patches). Each compiles separately; larger conversations are skipped and counted.
        shapes=((88, 64), (176, 64), (192, 64)),
        pretrain=dict(  # images to caption and ground, drawn during training instead of read from files
          scenes=(),  # images of each stage, in order: few objects first, or seeing is learnt late
          objects=(),  # most objects of an image in each stage
          requests=3,  # questions per image that locate or name an object
          list_share=0.6,  # share of the images whose objects are listed
          same_shape=0.0,  # share of the images whose objects differ in colour alone
        ),
        workers=0,  # threads that read and encode; give several for large photographs
      ),
      epochs=3,  # passes over the conversations
      batch_size=8,  # rows of one batch
      log_steps=10,  # updates between two records of metrics
      checkpoint_steps=100,  # 0: only by time
    )
  )


def direct() -> ConfigDict:
  config = on_scenes()
  config.data.conversations = "runs/scenes/direct.jsonl"
  config.data.shapes = token_shapes(16, 192)
  # At the rate of chains, 2e-3, the loss stays that of guessing and the model says one word to everything.
  config.optimizer.learning_rate = 3e-4
  return config


def reuse() -> ConfigDict:
  config = tiny()
  config.checkpoint = "runs/dapo/export"
  config.data.conversations = "runs/behaviors/conversations.jsonl"
  config.data.batching = "bucketed"  # short answers, those of several inequalities, and full ones
  config.data.shapes = ((88, 64), (112, 64), (176, 64), (192, 64))
  config.epochs = 1
  return config


def behavior_conditioned() -> ConfigDict:
  """Behavior-conditioned SFT of Metacognitive Reuse (arXiv 2509.13237): no behavior is retrieved at test time."""
  config = reuse()
  config.data.system_turns = False
  config.data.shapes = ((80, 64), (96, 64), (176, 64), (192, 64))
  return config


def pretrain() -> ConfigDict:
  config = on_scenes()
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
  config = on_scenes()
  config.task = "vsr"
  config.checkpoint = config_dict.required_placeholder(str)
  config.data.conversations = config_dict.required_placeholder(str)
  config.data.images = config_dict.required_placeholder(str)
  config.data.evaluation = config_dict.required_placeholder(str)
  config.data.batching = "packed"
  # Three images of 640×480 with their chains, in a multiple of 128 patches. The ratio of patches to tokens is that of
  # the data: the scarcer of the two fills the rows, and what remains of the other is padding.
  config.data.shapes = ((2048, 3712),)
  config.data.workers = 4
  config.batch_size = 32  # a row for each of 32 chips
  config.chunk_tokens = 1024
  config.remat = "full"
  config.dtype = "bfloat16"
  config.mesh = fully_sharded_mesh()
  config.optimizer.learning_rate = 1e-5
  config.optimizer.warmup_steps = 30
  config.optimizer.final_fraction = 0.1
  config.optimizer.beta2 = 0.95
  config.optimizer.weight_decay = 0.1
  config.checkpoint_steps = 0  # a checkpoint of all weights and moments is 98 GB
  config.checkpoint_minutes = 30.0
  config.max_to_keep = 3
  return config


def token_shapes(step: int, most: int) -> tuple[tuple[int, int], ...]:
  """Returns row shapes of multiples of `step` tokens, each with the 64 patches of a rendered scene."""
  return tuple((tokens, 64) for tokens in range(step, most + 1, step))
