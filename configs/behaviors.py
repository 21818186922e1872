"""Extraction of behaviors from correct chains.

tiny     the policy's own chains about 8,000 training scenes
8b       the policy's own chains about VSR's training split
chains   chains about VSR that `synthesize` wrote: no policy and no images are needed
"""

from ml_collections import ConfigDict, config_dict

from .common import choose, data_parallel_mesh, photograph_shapes, tensor_parallel_mesh


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": qwen3_vl_8b, "chains": written_chains})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="behaviors",  # the command that this config is for
      task="scenes",  # how records are read and asked about: scenes | vsr
      # chains.jsonl or accepted.jsonl of `synthesize`, used in place of a policy's answers; empty: the policy answers.
      chains="",
      # Hugging Face folder of the aligned policy. With `chains`, only its tokenizer is read; empty: tokens are counted
      # as words and punctuation marks.
      checkpoint="runs/dapo/export",
      data=dict(
        records="runs/scenes/train.jsonl",  # not read with `chains`
        images="runs/scenes/images",  # not read with `chains`
        split="",  # name of the split in the provenance; empty: that of the file `records`
        max_bad_share=0.01,  # stop when more than this share of the records is broken
      ),
      evaluation="",  # records that no behavior may come from, a file; empty: none
      limit=8000,  # number of records, from the first; 0: all
      batch_size=128,  # questions of one batch
      in_flight=2,  # batches answered at a time; 1 on several devices
      mesh=data_parallel_mesh(),
      # Padded (tokens, patches) of prompts: a batch takes the smallest that holds its prompts.
      prompt_shapes=((64, 64),),
      max_new_tokens=128,  # longest answer, in tokens
      # How behaviors are made of chains: pattern (the comparison that numeric chains end in) | clusters (the typical
      # one of similar reasonings) | teacher (a model reflects on each chain, see `ask`).
      extractor="pattern",
      min_support=5,  # correct chains that must agree on a procedure
      cluster_similarity=0.6,  # clusters: least mean similarity of two reasonings of one cluster
      duplicate_similarity=0.9,  # behaviors of one relation with more similar instructions are merged
      max_entries=64,  # most behaviors of the handbook
      max_handbook_tokens=4096,  # limit on the sum of all lines of the handbook, in tokens
      max_instruction_tokens=48,  # most tokens of one behavior; longer ones are dropped
      behavior_tokens=48,  # most tokens of a behavior in a question; longer ones are not trained on
      # What finds behaviors by similarity, for captions whose relation is not read: the folder of an XLM-R encoder with
      # BGE-M3's heads, or lexical (common words; nothing to load).
      embedder="spatial_vlm/assets/tiny_encoder",
      # What compares reasonings (clusters) and instructions (duplicates). The tiny encoder has learnt questions only.
      text_embedder="lexical",
      # Below it no behavior is recalled; none: as calibrated for the embedder.
      min_similarity=config_dict.placeholder(float),
      # An edited WORKDIR/behaviors.yaml, from which the index is made in place of extracting; empty: extract.
      review="",
      # results.json of `evaluate` runs on training records, e.g. ("runs/evaluate_train/results.json",); those of
      # held-out splits are refused. When the handbook is full, behaviors whose recalls in these runs saved more tokens
      # are kept. With `review`, the file's figures count.
      recalls=(),
      full_share=0.1,  # share of the verified answers that stay full chains in the fine-tuning set
      ask=teacher(),
    )
  )


def teacher() -> dict:
  """Returns the settings of the extractor `teacher`; their names and meanings are those of `synthesize`."""
  return dict(
    seed=0,  # the seeds of all requests are derived from it
    teacher="gemini",  # gemini | openai | policy
    model="gemini-3.8-flash",  # its name on the server, or the checkpoint folder of a policy
    chains_per_relation=20,  # most chains of one relation that it reflects on, in two requests each
    base_url="",  # address of the server; empty: the default of the teacher
    api_version="v1beta",  # of Gemini's API
    temperature=config_dict.placeholder(float),  # none: leave it out
    max_output_tokens=4096,  # includes thinking tokens
    thinking_budget=config_dict.placeholder(int),  # thinking tokens, for Gemini 2.5
    thinking_level=config_dict.FieldReference("low", field_type=str),  # for Gemini 3 and later
    timeout_s=120.0,  # of one whole request
    concurrency=config_dict.placeholder(
      int
    ),  # requests in flight; none: derived from the time of an answer
    max_concurrency=64,  # upper limit of a derived concurrency
    requests_per_minute=120.0,  # rate limit
    retry=dict(
      max_tries=6,  # of one question within one start
      initial_delay_s=1.0,  # before the second try; doubles before each further try
      max_delay_s=60.0,  # longest delay between two tries
    ),
    prices=dict(
      # Per million tokens; none: as listed for Gemini models in spatial_vlm/assets/gemini_models.json.
      input_usd=config_dict.placeholder(float),
      cached_usd=config_dict.placeholder(float),  # of cached input tokens
      output_usd=config_dict.placeholder(float),  # includes thinking tokens
      batch_share=1.0,  # no request is sent in a batch
    ),
    estimate=dict(
      # Prompt tokens that the budget reserves for each question; longer questions are not sent. Each UTF-8 byte counts
      # as a token: a chain of 1,024 tokens and a reflection of 4,096 are about 24,000 bytes.
      max_prompt_tokens=32_768,
    ),
    # No question is sent that could exceed the budget; none: no limit.
    budget_usd=config_dict.FieldReference(20.0, field_type=float),
    policy=dict(
      batch_size=16,  # questions of one batch
      prompt_shape=(1024, 4),  # padded tokens and patches of a question
      mesh=tensor_parallel_mesh(),
    ),
  )


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.task = "vsr"
  for leaf in ("records", "images"):
    config.data[leaf] = config_dict.required_placeholder(str)
  config.checkpoint = config_dict.required_placeholder(str)
  config.limit = 0
  config.batch_size = 64
  config.in_flight = 1
  config.mesh = tensor_parallel_mesh()
  config.prompt_shapes = photograph_shapes()
  config.max_new_tokens = 1024
  config.max_entries = 1000
  config.max_handbook_tokens = 65_536
  config.max_instruction_tokens = config.behavior_tokens = 64
  return config


def written_chains() -> ConfigDict:
  config = qwen3_vl_8b()
  config.chains = config_dict.required_placeholder(str)
  config.checkpoint = config.data.records = config.data.images = ""
  config.data.split = "train"
  return config
