"""A server that answers in OpenAI's format.

tiny   prompts of up to 128 tokens, as questions about rendered scenes are
8b     photographs of up to a megapixel, two of them in one prompt, and answers of up to 1,024 tokens
"""

from ml_collections import ConfigDict

from .common import choose, photograph_shapes, tensor_parallel_mesh


def get_config(preset: str) -> ConfigDict:
  return choose(preset, {"tiny": tiny, "8b": qwen3_vl_8b})


def tiny() -> ConfigDict:
  return ConfigDict(
    dict(
      algorithm="serve",  # the command that this config is for
      model_name="",  # name that clients give as `model`; empty: the name of the checkpoint's folder
      task="scenes",  # how plain statements are put and their answers parsed: scenes | vsr
      behavior_tokens=48,  # most tokens of a recalled behavior in the question, as in `evaluate`
      slots=16,  # answers that are generated at a time
      decode_tokens=8,  # tokens of each answer between two refills; they are streamed together
      # Padded (tokens, patches) of prompts: each is a program of its own. The largest limits what a request may hold.
      prompt_shapes=((64, 64), (128, 256)),
      max_patches=256,  # most patches of an image; larger ones are scaled down
      max_new_tokens=144,  # longest answer, in tokens
      temperature=0.0,  # sampling temperature of requests that give none; 0: the likeliest token
      sample_image_size=64,  # pixels a side of the rendered scenes that the page offers
      mesh=tensor_parallel_mesh(),
      limits=dict(
        body_bytes=20_000_000,  # largest request, its images included
        images=4,  # most images of a request
        image_pixels=25_000_000,  # most pixels of an image
        samples=8,  # most answers of a request (`n`)
        connections=512,  # connections at a time, idle ones included; a further one gets status 503
        queued_answers=128,  # answers that wait for a slot; a request for more gets status 429
        body_timeout_s=30.0,  # longest time in which the body of a request arrives
        timeout_s=300.0,  # longest time of an answer, waiting included
        # Hosts whose images are downloaded, e.g. ("images.cocodataset.org",): https only, at public addresses, without
        # redirects. Empty: images come as data URLs.
        image_hosts=(),
        image_bytes=20_000_000,  # largest downloaded image
        image_timeout_s=10.0,  # longest time of a download
        drain_s=60.0,  # longest time that running requests get after SIGTERM
      ),
    )
  )


def qwen3_vl_8b() -> ConfigDict:
  config = tiny()
  config.task = "vsr"
  config.behavior_tokens = 64
  config.slots = 32
  config.decode_tokens = 16
  config.prompt_shapes = (*photograph_shapes(), (2560, 8192))
  config.max_patches = 4096
  config.max_new_tokens = 1024
  config.sample_image_size = 448
  return config
