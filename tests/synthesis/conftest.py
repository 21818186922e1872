"""A local server with configurable answers, and teachers that ask it."""

import contextlib
import json

import pytest

from spatial_vlm.synthesis.local.local_server import LocalServer
from spatial_vlm.synthesis.teacher import Question
from spatial_vlm.synthesis.teachers.gemini import GeminiSettings, GeminiTeacher

SCHEMA = {
  "type": "object",
  "properties": {"reasoning": {"type": "string"}, "conclusion": {"type": "string"}},
  "required": ["reasoning", "conclusion"],
}


def write(image, system, text, seed):
  """An answer that repeats the whole request."""
  return json.dumps({"reasoning": f"{system}|{text}|{seed}|{image.hex()}", "conclusion": "Yes"})


@pytest.fixture
def question():
  """A question; fields can be changed."""

  def make(**changes):
    image = b"\xff\xd8\xff\xfe picture"  # /9j//… and _9j__… in the two alphabets of base64
    fields = {"system": "You look.", "text": "The cat is left of the mug.", "image": image}
    return Question(**{**fields, "mime_type": "image/jpeg", "seed": 7, "schema": SCHEMA, **changes})

  return make


@pytest.fixture
def serve():
  """Starts servers, as `serve(faults=…)`, which end with the test."""
  with contextlib.ExitStack() as stack:

    def start(answer=write, **settings):
      return stack.enter_context(LocalServer(answer, **{"model": "gemini-2.5-local", **settings}))

    yield start


@pytest.fixture
def gemini():
  """A Gemini teacher of a server; `key` and settings can be changed."""

  def make(server, key=None, **changes):
    settings = {
      "model": server.model.name,
      "api_version": "v1beta",
      "base_url": server.url,
      "timeout_s": 20.0,
      "temperature": 0.7,
      "max_output_tokens": 8192,
      "thinking_budget": 1024,
      "thinking_level": None,
    }
    return GeminiTeacher(GeminiSettings(**{**settings, **changes}), key or server.key)

  return make
