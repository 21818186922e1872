"""Verified chains of thought from a teacher.

tiny    rendered scenes; a server on this machine replaces Gemini: no key, no network, no cost
8b      VSR with COCO images, written by Gemini, as for the published model
vllm    as 8b, written by an open model behind an OpenAI-compatible endpoint
self    as 8b, written by a fine-tuned policy of this project (rejection sampling)
"""

from ml_collections import ConfigDict, config_dict

from .common import choose, tensor_parallel_mesh


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": gemini, "vllm": vllm, "self": policy})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="synthesize",  # the command that this config is for
      seed=0,  # the seeds of all questions are derived from it
      data=dict(
        records="runs/scenes/train.jsonl",  # file of labelled records
        images="runs/scenes/images",  # folder, archive or store of the images
        limit=500,  # number of records, from the first; 0: all
        max_bad_share=0.01,  # stop if a larger share of the records is unusable
        workers=0,  # threads that check the images before the start
      ),
      evaluation="runs/scenes/test.jsonl",  # records that must not be in the training set; empty: none
      teacher="local",  # or gemini, openai, policy
      model="local-teacher",  # its name on the server, or the checkpoint folder of a policy
      model_version="",  # only answers of this version count; empty: the version that answers first
      allow_mixed_versions=False,  # allow chains of several model versions in one set
      attempts=dict(
        blind=1,  # questions without the label, each with its own seed
        hinted=1,  # then questions with the label, until an answer is accepted
      ),
      base_url="",  # address of the server; empty: the default of the teacher
      api_version="v1beta",  # of Gemini's API
      temperature=config_dict.FieldReference(0.7, field_type=float),  # none: leave it out
      max_output_tokens=2048,  # includes thinking tokens
      thinking_budget=config_dict.placeholder(int),  # thinking tokens, for Gemini 2.5
      thinking_level=config_dict.placeholder(str),  # for Gemini 3 and later
      timeout_s=120.0,  # of one whole request
      # Requests in flight; none: as many as reach the rate limit at the observed time of an answer.
      concurrency=config_dict.FieldReference(8, field_type=int),
      max_concurrency=128,  # upper limit of a derived concurrency
      requests_per_minute=6000.0,  # rate limit
      retry=dict(
        max_tries=6,  # of one question within one start
        initial_delay_s=0.2,  # before the second try; doubles before each further try
        max_delay_s=60.0,  # longest delay between two tries
      ),
      batch=dict(
        questions=0,  # maximum of one job of Gemini's Batch API; 0: send single questions
        poll_s=0.2,  # seconds between two polls of a job
      ),
      prices=dict(
        # Per million tokens; none: as listed for Gemini models in spatial_vlm/assets/gemini_models.json.
        input_usd=config_dict.FieldReference(0.0, field_type=float),
        cached_usd=config_dict.FieldReference(0.0, field_type=float),  # of cached input tokens
        output_usd=config_dict.FieldReference(0.0, field_type=float),  # includes thinking tokens
        batch_share=0.5,  # factor on these prices in a batch
      ),
      estimate=dict(
        prompt_tokens=700,  # of one question, until there are replies to measure
        output_tokens=150,  # of one answer, includes thinking tokens
        max_prompt_tokens=2048,  # of the longest question; the budget relies on it
        second_attempt_share=0.3,  # share of the records that need a second attempt
      ),
      confirm_usd=5.0,  # a higher estimate needs --yes
      # No question is sent that could exceed the budget; none: no limit.
      budget_usd=config_dict.placeholder(float),
      checks=dict(
        min_words=8,  # fewest words of the whole chain without boxes
        max_words=120,  # most words of it
        min_box_share=0.0005,  # smallest box, as a share of the image area
        max_box_share=0.95,  # largest box, as a share of the image area
        number_tolerance=0.0,  # of a number compared with its boxes, in units of 0–1000
        geometry_margin=60,  # weaker evidence contradicts no label, in units of 0–1000
        decisive=(  # relations that boxes prove and disprove
          *("left of", "right of", "above", "below", "near", "far from", "touching", "inside"),
          *("parallel to", "perpendicular to"),
        ),
        necessary=(),  # relations that boxes can only disprove
      ),
      selection=dict(
        max_similarity=1.0,  # of two chains of one relation and label; 1 drops only identical ones
        max_label_ratio=3.0,  # of the more frequent label of a relation to the less frequent one
      ),
      examples=12,  # accepted examples in the report; half as many rejected ones are added
      local=dict(
        scenes="runs/scenes",  # scenes that the local teacher knows
        split="train",  # split of them
        mistake_share=0.3,  # of blind answers
        fault_share=0.1,  # of requests that the server loses, delays, cuts off or rejects once
      ),
      policy=dict(
        batch_size=16,  # questions of one batch
        prompt_shape=(96, 64),  # padded tokens and patches of a question
        mesh=tensor_parallel_mesh(),
      ),
    )
  )


def gemini() -> ConfigDict:
  config = tiny()
  config.teacher = "gemini"
  # The published model, gemini-2.5-pro, ends on 2026-12-01; Google then answers its requests with this one.
  # Gemini 2.5 takes thinking_budget=2048, thinking_level=none and temperature=0.7 instead.
  config.model = "gemini-3.8-flash"
  config.thinking_level = "medium"
  config.temperature = None  # ignored by this model
  config.max_output_tokens = 8192
  config.data.records = config_dict.required_placeholder(str)
  config.data.images = config_dict.required_placeholder(str)
  config.data.limit = 0
  config.data.workers = 4
  config.evaluation = config_dict.required_placeholder(str)
  config.requests_per_minute = 120.0
  config.concurrency = None
  config.retry.initial_delay_s = 1.0
  config.batch.poll_s = 60.0
  config.prices.input_usd = config.prices.cached_usd = config.prices.output_usd = None
  config.estimate.prompt_tokens = 2200
  config.estimate.output_tokens = 1800
  config.estimate.max_prompt_tokens = 4096
  config.budget_usd = 400.0
  config.checks.min_words = 15
  config.checks.max_words = 240
  config.checks.number_tolerance = 2.0
  config.checks.geometry_margin = 80
  config.checks.decisive = ("left of", "right of", "at the left side of", "at the right side of")
  config.checks.necessary = ("above", "over", "below", "under", "beneath")
  config.selection.max_similarity = 0.9
  return config


def vllm() -> ConfigDict:
  config = gemini()
  config.teacher = "openai"
  config.model = config_dict.required_placeholder(str)
  config.base_url = "http://127.0.0.1:8000/v1"
  config.thinking_level = None
  config.temperature = 0.7
  config.max_output_tokens = 4096
  config.requests_per_minute = 6000.0
  config.max_concurrency = (
    64  # without a rate limit, the time of an answer grows with the requests in flight
  )
  config.prices.input_usd = config.prices.cached_usd = config.prices.output_usd = 0.0
  config.budget_usd = None
  return config


def policy() -> ConfigDict:
  config = vllm()
  config.teacher = "policy"
  config.base_url = ""
  config.concurrency = 64
  config.temperature = 1.0
  config.attempts.blind = 8
  config.attempts.hinted = 0
  config.max_output_tokens = 512
  config.policy.prompt_shape = (1280, 4096)
  return config
