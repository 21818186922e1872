"""Chains of thought from a teacher, kept only when they are verified.

tiny    rendered scenes; a server on this machine replaces Gemini: no key, no network, no cost
8b      VSR with COCO's images, written by Gemini; the training data of the published model
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
        workers=0,  # threads that check the images before the start
      ),
      evaluation="runs/scenes/test.jsonl",  # file of records that must not be in the training set; empty: none
      teacher="local",  # or gemini, openai, policy
      model="local-teacher",  # name on the server, or the checkpoint folder of a policy
      model_version="",  # the only version whose answers count; empty: the first that answers
      allow_mixed_versions=False,  # allow chains of several versions in one set
      attempts=dict(
        blind=1,  # questions without the label, each with its own seed …
        hinted=1,  # … then with it, until an answer is accepted
      ),
      base_url="",  # of the server; empty: the teacher's default
      api_version="v1beta",  # of Gemini's API
      temperature=0.7,
      max_output_tokens=2048,  # including thoughts
      thinking_budget=config_dict.placeholder(int),  # tokens, for Gemini 2.5
      thinking_level=config_dict.placeholder(str),  # for Gemini 3 and later
      timeout_s=120.0,  # for one whole request
      concurrency=8,  # requests in flight
      requests_per_minute=6000.0,
      patience=dict(
        tries=6,  # of one question within one start
        first_delay_s=0.2,  # before the second try; doubled before each later one
        max_delay_s=60.0,
      ),
      batch=dict(
        questions=0,  # in one job of Gemini's Batch API; 0: one request per question
        poll_s=0.2,  # between two requests for a job's state
      ),
      prices=dict(
        input_usd=0.0,  # per million tokens
        cached_usd=0.0,  # for input tokens in the teacher's cache
        output_usd=0.0,  # including thoughts
        batch_share=0.5,  # of these prices, for batches
      ),
      estimate=dict(
        prompt_tokens=700,  # of one question, until answers are known
        output_tokens=150,  # of one answer, including thoughts
        most_prompt_tokens=2048,  # upper limit of a question; the budget relies on it
        second_share=0.3,  # share of the records that need another attempt
      ),
      confirm_usd=5.0,  # above this estimate, --yes is needed
      budget_usd=config_dict.placeholder(
        float
      ),  # no question is asked that could exceed it; none: no limit
      checks=dict(
        min_words=8,
        max_words=120,  # of the whole chain, without boxes
        min_box_share=0.0005,
        max_box_share=0.95,  # of the image, by area
        number_tolerance=0.0,  # between a number and its boxes, in units of 0–1000
        geometry_margin=60,  # weaker evidence does not contradict a statement, in units of 0–1000
        decisive=(  # relations that boxes prove and disprove
          *("left of", "right of", "above", "below", "near", "far from", "touching", "inside"),
          *("parallel to", "perpendicular to"),
        ),
        necessary=(),  # relations that boxes can only disprove
      ),
      selection=dict(
        max_similarity=1.0,  # of the words of two chains with one relation and label; 1: only duplicates are dropped
        max_label_ratio=3.0,  # of the more frequent label of a relation to the other one
      ),
      examples=12,  # accepted chains in the report; half as many rejected ones
      local=dict(
        scenes="runs/scenes",  # known to the teacher on this machine
        split="train",
        mistakes=0.3,  # share of blind answers with a mistake
        faults=0.1,  # share of requests that the server loses, delays, truncates or temporarily refuses
      ),
      policy=dict(
        batch_size=16,  # questions that the policy answers at once
        prompt_tokens=96,  # room for a question
        patches=64,  # room for its image
      ),
    )
  )


def gemini() -> ConfigDict:
  config = tiny()
  config.teacher = "gemini"
  config.model = "gemini-2.5-pro"  # as published; its shutdown is announced, any later model works
  config.thinking_budget = 2048  # later models: thinking_budget=none and thinking_level=low
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
