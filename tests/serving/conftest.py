"""A service over the smallest model, and clients of its application in this process."""

import base64
import io
import json

import jax
import numpy as np
import PIL.Image
import pytest
from scripted_engine import with_scripted_engine
from starlette.testclient import TestClient

from spatial_vlm import config as config_lib
from spatial_vlm import sharding
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.serving.app import make_app
from spatial_vlm.serving.setup import make_service

MODEL = "nano"


@pytest.fixture(scope="session")
def serving_mesh():
  return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="session")
def serving_policy(nano, serving_mesh):
  return load_policy(str(nano), serving_mesh)


@pytest.fixture
def service_of(serving_policy, serving_mesh):
  """(overrides) -> a service, not started."""

  def make(*overrides, recall=None, policy=serving_policy):
    sizes = ("slots=4", "limits.samples=4", "max_new_tokens=24", "limits.queued_answers=8")
    settings = [f"--config.{setting}" for setting in (*sizes, *overrides)]
    config = config_lib.load("configs/serve.py:tiny", settings)
    return make_service(policy, serving_mesh, config, MODEL, recall)[0]

  return make


@pytest.fixture
def client_of():
  """(service, guard) -> a client; the service runs until the test ends."""
  open_clients = []

  def make(service, guard=None):
    client = TestClient(
      make_app(service, guard), base_url="http://127.0.0.1", raise_server_exceptions=False
    )
    open_clients.append(client.__enter__())
    return client

  yield make
  for client in open_clients:
    client.__exit__(None, None, None)


@pytest.fixture
def client(service_of, client_of):
  return client_of(service_of())


def picture(seed=0, size=(32, 32)):
  """Noise, so that no two pictures are alike."""
  pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
  return PIL.Image.fromarray(pixels)


def data_url(image, format="PNG"):
  buffer = io.BytesIO()
  image.save(buffer, format)
  return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def question(text="Is the cat left of the mug?", *images, **fields):
  """The body of a request."""
  parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
  content = [*parts, {"type": "text", "text": text}]
  return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def events(response):
  """The JSON objects of a stream, without its end."""
  assert response.headers["content-type"].startswith("text/event-stream")
  lines = [line for line in response.text.split("\n\n") if line]
  assert all(line.startswith("data: ") for line in lines)
  if lines[-1] == "data: [DONE]":
    del lines[-1]
  return [json.loads(line[6:]) for line in lines]


@pytest.fixture(scope="session")
def body():
  return question


@pytest.fixture(scope="session")
def read_events():
  return events


@pytest.fixture(scope="session")
def noise():
  return picture


@pytest.fixture(scope="session")
def as_data_url():
  return data_url


@pytest.fixture
def scripted(service_of, serving_policy):
  """(overrides) -> a service over a `ScriptedEngine`, and the engine."""

  def make(*overrides, text="The cat is left of the mug."):
    service = service_of("slots=2", *overrides)
    policy, settings = serving_policy, {"step_tokens": 1, "slots": 2}
    return service, with_scripted_engine(service, policy, lambda prompt: text, **settings)

  return make
