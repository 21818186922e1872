"""Answer over HTTP in OpenAI's format.

A page for people is at http://HOST:PORT/. OpenAI's clients reach the server at http://HOST:PORT/v1: text, images as
data URLs, several turns, streams. With --behaviors, plain statements are answered with a recalled behavior in the short
form. At SIGTERM, running requests end before the server does. Other machines reach it only with --host, which needs a
bearer token: the environment variable SPATIAL_VLM_API_KEY, or --token-file.

  spatial-vlm serve --checkpoint runs/dapo/export --behaviors runs/behaviors/index --port 8000
"""

import argparse
import logging
import os
import re
from pathlib import Path

from etils import epath

from spatial_vlm import extras, sharding
from spatial_vlm.commands.arguments import TOKEN_VARIABLE
from spatial_vlm.config import Config, UsageError
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.questions import load_recall
from spatial_vlm.inference.unfamiliar import warn_of_forms
from spatial_vlm.serving.address import bind, is_loopback
from spatial_vlm.tasks import find_task

log = logging.getLogger(__name__)


MIN_TOKEN_CHARACTERS = 16


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  extras.require("serve", "`serve`")
  from spatial_vlm.serving import app, http_guard, sample_scenes, server, setup

  with user_errors():
    check(config)
    token = read_token(args.token_file)
    check_address(args.host, token)
    bound = bind(args.host, args.port)
  with bound:
    with user_errors():
      name = served_name(config, args.checkpoint)
      mesh = sharding.make_mesh(config.mesh)
      policy = load_policy(args.checkpoint, mesh)
      behaviors, tokens = args.behaviors, config.behavior_tokens
      if behaviors:
        warn_of_forms(args.checkpoint, find_task(config.task), ["short"])
      recall = load_recall(behaviors, tokens) if behaviors else None
      service, engines = setup.make_service(policy, mesh, config, name, recall)
    engines.compile()
    guard = http_guard.HttpGuard(token, args.host)
    samples = sample_scenes.sample_scenes(config.sample_image_size)
    log.info("serving %s at http://%s:%d/", name, args.host, args.port)
    server.serve(app.make_app(service, guard, samples), bound, service, config.limits.drain_s)


def check(config: Config) -> None:
  """Raises UsageError for limits that cannot work together, and for hosts that are none."""
  limits, slots = config.limits, config.slots
  if limits.samples > slots + limits.queued_answers:
    raise UsageError(
      f"limits.samples is {limits.samples}, more than the {slots} slots and {limits.queued_answers} queued_answers "
      "together; lower it, or raise one of these"
    )
  if isinstance(limits.image_hosts, str):
    raise UsageError(f"limits.image_hosts is a string; give a tuple: ({limits.image_hosts!r},)")
  for host in limits.image_hosts:
    if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", str(host)):
      raise UsageError(
        f"limits.image_hosts has {host!r}; give names of hosts without https:// and path, e.g. "
        "('images.cocodataset.org',)"
      )


def served_name(config: Config, checkpoint: str) -> str:
  """Returns the name that clients give as `model`; UsageError if the checkpoint's folder has none."""
  name = config.model_name or epath.Path(checkpoint).resolve().name
  if not name:
    raise UsageError(f"--checkpoint {checkpoint} has no name; give one with --config.model_name")
  return name


def read_token(file: str | None) -> str | None:
  """Returns the bearer token of the file or of the environment; None if there is none.

  Raises UsageError for a file that cannot be read and for a token that is too short or has spaces.
  """
  where = file or f"${TOKEN_VARIABLE}"
  if file:
    try:
      token = Path(file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
      raise UsageError(f"--token-file {file} cannot be read; give a text file") from error
  elif TOKEN_VARIABLE in os.environ:
    token = os.environ[TOKEN_VARIABLE].strip()
  else:
    return None
  if (
    len(token) < MIN_TOKEN_CHARACTERS
    or not token.isascii()
    or not token.isprintable()
    or " " in token
  ):
    raise UsageError(
      f"the token in {where} has {len(token)} characters; give at least {MIN_TOKEN_CHARACTERS} of ASCII without "
      "spaces: openssl rand -hex 32"
    )
  return token


def check_address(host: str, token: str | None) -> None:
  """Raises UsageError for an address that other machines reach without a token."""
  if not is_loopback(host) and token is None:
    raise UsageError(
      f"--host {host} can be reached by other machines and there is no token: export "
      f"{TOKEN_VARIABLE}=$(openssl rand -hex 32), or leave --host out to serve this machine only"
    )


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  return ""  # it serves until it is stopped
