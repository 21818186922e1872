"""Parts that several config files share: the look-up of a preset and the groups of a training command.

The loader imports every config file as a member of the package of its folder, then of this folder: `from .common import
choose` works in a config file of this folder and in a copy of one elsewhere.
"""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict


def choose(preset: str, presets: Mapping[str, Callable[[], ConfigDict]]) -> ConfigDict:
  """Returns the config of a preset.

  Raises:
    ValueError: there is no preset of that name; the message lists the presets.
  """
  if preset not in presets:
    raise ValueError(f"no preset {preset!r}; there are {', '.join(presets)}")
  return presets[preset]()


def mesh(**sizes: int) -> dict[str, int]:
  """Returns a mesh with these sizes of its axes; −1 takes all devices that the other axes leave."""
  return (
    dict(
      slice=1,  # slices of a multi-slice pod: rows of a batch are sharded over them
      data=1,  # replicas of the weights, each with its own rows; -1: all devices that the other axes leave
      fsdp=1,  # shards rows, weights and optimizer state; -1: all devices that the other axes leave
      tensor=1,  # shards heads and hidden units; -1: all devices that the other axes leave
    )
    | sizes
  )


def data_parallel_mesh() -> dict[str, int]:
  """Returns a mesh whose devices share the rows of a batch; each of them holds all weights."""
  return mesh(data=-1)


def fully_sharded_mesh() -> dict[str, int]:
  """Returns a mesh whose devices share the rows of a batch and the weights."""
  return mesh(fsdp=-1)


def tensor_parallel_mesh() -> dict[str, int]:
  """Returns a mesh whose devices share heads and hidden units of every row.

  It suits decoding, which reads all weights for every token.
  """
  return mesh(tensor=-1)


def photograph_shapes() -> tuple[tuple[int, int], ...]:
  """Returns padded (tokens, patches) of a question about a photograph: one of COCO's sizes, or one of a megapixel.

  A COCO photograph and its question take 340 to 440 tokens and 1,200 to 1,600 patches.
  """
  return ((512, 1664), (1280, 4096))


def training() -> dict:
  """Returns the leaves that `sft` and `dapo` share; each command's config sets its own optimizer values."""
  return dict(
    seed=0,  # seed of every random draw
    # Parts in which a batch is computed, one after the other; their gradients are added up.
    micro_batches=1,
    # Positions of a sequence (sft) or of an answer (dapo) whose logits are in memory at a time.
    chunk_tokens=8192,
    # What each layer keeps for the backward pass: "offload" (its input, in host memory), "full" (its input), "context"
    # (and the output of attention), "attention" (and queries, keys, values), "dots" (and all products with weights),
    # "none" (everything). The rest is computed again.
    remat="dots",
    dtype="float32",  # type of the computation; weights and updates are float32
    # Patterns of the paths of parameters that train; ("(text|head)/.*",) freezes the vision tower.
    trainable=(".*",),
    frozen_int8=False,  # store the kernels that do not train in 8 bits, half of bfloat16
    lora=dict(
      rank=0,  # rank of the LoRA factors of frozen kernels, with trainable=(".*/lora_[ab]",); 0: no LoRA
      alpha=32.0,  # the product of the factors is scaled by alpha / rank
      # Patterns of the kernels that get LoRA factors.
      targets=("text/layers/(attention|mlp)/.*_proj/kernel",),
    ),
    mesh=data_parallel_mesh(),
    optimizer=dict(
      # "adamw"; "muon", which learns faster from scratch; or "adafactor", which keeps almost no state and ignores
      # beta1, beta2 and eps
      method="adamw",
      moments="float32",  # type of the stored moments: "float32", "bfloat16" or "float8"
      learning_rate=2e-3,  # peak
      schedule="cosine",  # "cosine" or "constant", after the warm-up
      warmup_steps=20,  # updates over which the learning rate rises from 0
      # Updates after which "cosine" has fallen to final_fraction and stays there; 0: those of the run. A run can be
      # prolonged where it is not 0, and where the schedule is "constant".
      decay_steps=0,
      final_fraction=0.05,  # last learning rate, as a fraction of the peak
      beta1=0.9,  # decay of the first moment
      beta2=0.98,  # decay of the second moment
      eps=1e-8,  # added to the root of the second moment
      weight_decay=0.01,  # decoupled weight decay of matrices
      clip_norm=1.0,  # global norm to which gradients are clipped
    ),
    checkpoint_minutes=0.0,  # minutes between checkpoints, besides those of checkpoint_steps; 0: none
    max_to_keep=1,  # newest checkpoints that are kept
  )
