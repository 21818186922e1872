"""Chains of thought from a teacher, kept only when they are verified.

tiny    rendered scenes; a server on this machine answers in Gemini's place: no key, no network, no cost
8b      VSR with COCO's pictures, written by Gemini; what the published model was taught by
vllm    the same, by an open model behind an OpenAI-compatible endpoint
self    the same, by a fine-tuned policy of this project: rejection sampling from its own chains
"""

from ml_collections import ConfigDict, config_dict

from .common import choose


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": gemini, "vllm": vllm, "self": policy})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      seed=0,  # of the seeds of all questions
      data=dict(
        records="runs/scenes/train.jsonl",
        images="runs/scenes/images",
        limit=500,  # records, from the first; 0: all
        max_bad_share=0.01,  # stop when more than this share of the records cannot be used
        workers=0,  # threads that look at the pictures before the start
      ),
      evaluation="runs/scenes/test.jsonl",  # file of records that must not be taught; empty: none
      teacher="local",  # or gemini, openai, policy
      model="local-teacher",  # as the server calls it, or the checkpoint folder of a policy
      model_version="",  # the only version whose answers count; empty: whichever answers first
      allow_mixed_versions=False,  # chains of several versions may stand in one set
      attempts=dict(
        blind=1,  # questions without the label, each with a seed of its own …
        hinted=1,  # … then with it, until an answer is accepted
      ),
      base_url="",  # of the server; empty: the teacher's own
      api_version="v1beta",  # of Gemini's
      temperature=0.7,
      max_output_tokens=2048,  # thoughts included
      thinking_budget=config_dict.placeholder(int),  # tokens, for Gemini 2.5
      thinking_level=config_dict.placeholder(str),  # for Gemini 3 and later
      timeout_s=120.0,  # for one whole request
      concurrency=8,  # requests in flight
      requests_per_minute=6000.0,
      patience=dict(
        tries=6,  # of one question within one start
        first_delay_s=0.2,  # before the second try; doubled before each further one
        max_delay_s=60.0,
      ),
      batch=dict(
        questions=0,  # of one job of Gemini's Batch API; 0: each question by itself
        poll_s=0.2,  # between two looks at a job
      ),
      prices=dict(
        input_usd=0.0,  # for a million tokens
        cached_usd=0.0,  # of the input, what the teacher had in its cache
        output_usd=0.0,  # thoughts included
        batch_share=0.5,  # of these prices, in a batch
      ),
      estimate=dict(
        prompt_tokens=700,  # of one question, before there are answers to go by
        output_tokens=150,  # of one answer, thoughts included
        most_prompt_tokens=2048,  # no question is longer: the budget counts on it
        second_share=0.3,  # of the records, those that need another attempt
      ),
      confirm_usd=5.0,  # above this estimate, --yes is needed
      budget_usd=config_dict.placeholder(
        float
      ),  # nothing is asked that could exceed it; none: no limit
      checks=dict(
        min_words=8,
        max_words=120,  # of the whole chain, boxes aside
        min_box_share=0.0005,
        max_box_share=0.95,  # of the image, by area
        number_tolerance=0.0,  # between a number and its boxes, in units of 0–1000
        geometry_margin=60,  # evidence below it contradicts nothing, in units of 0–1000
        decisive=(  # relations that boxes prove and disprove
          *("left of", "right of", "above", "below", "near", "far from", "touching", "inside"),
          *("parallel to", "perpendicular to"),
        ),
        necessary=(),  # relations that boxes can only disprove
      ),
      selection=dict(
        max_similarity=1.0,  # of the words of two chains on one relation with one label; 1: not the same twice
        max_label_ratio=3.0,  # of the more frequent label of a relation to the other one
      ),
      examples=12,  # accepted ones shown in the report; half as many refused ones
      local=dict(
        scenes="runs/scenes",  # what the teacher on this machine knows
        split="train",
        mistakes=0.3,  # share of blind answers with a slip in them
        faults=0.1,  # share of requests that the server loses, delays, cuts off or refuses for a moment
      ),
      policy=dict(
        batch_size=16,  # questions that the policy answers at once
        prompt_tokens=96,  # room for a question
        patches=64,  # room for its picture
      ),
    )
  )


def gemini() -> ConfigDict:
  config = tiny()
  config.teacher = "gemini"
  config.model = "gemini-2.5-pro"  # as published; its end is announced, any later model works
  config.thinking_budget = 2048  # later ones: thinking_budget=none and thinking_level=low
  config.max_output_tokens = 4096
  config.data.records = config_dict.required_placeholder(str)
  config.data.images = config_dict.required_placeholder(str)
  config.data.limit = 0
  config.data.workers = 4
  config.evaluation = config_dict.required_placeholder(str)
  config.requests_per_minute = 120.0
  config.patience.first_delay_s = 1.0
  config.batch.poll_s = 60.0
  config.prices.input_usd = 1.25  # gemini-2.5-pro, prompts up to 200,000 tokens
  config.prices.cached_usd = 1.25  # no discount is counted on
  config.prices.output_usd = 10.0
  config.estimate.prompt_tokens = 1300
  config.estimate.output_tokens = 1800
  config.estimate.most_prompt_tokens = 4096
  config.budget_usd = 400.0
  config.checks.min_words = 15
  config.checks.max_words = 160
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
  config.thinking_budget = None
  config.requests_per_minute = 6000.0
  config.concurrency = 64
  config.prices.input_usd = config.prices.cached_usd = config.prices.output_usd = 0.0
  config.budget_usd = None
  return config


def policy() -> ConfigDict:
  config = vllm()
  config.teacher = "policy"
  config.base_url = ""
  config.temperature = 1.0
  config.attempts.blind = 8
  config.attempts.hinted = 0
  config.max_output_tokens = 512
  config.policy.prompt_tokens = 1280
  config.policy.patches = 4096
  return config
