"""The teachers that `synthesize` can ask, set up from its config."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from spatial_vlm.config import Config, settings_from
from spatial_vlm.huggingface.folder import find_folder
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.synthesis import draft as drafts
from spatial_vlm.synthesis.draft import Form
from spatial_vlm.synthesis.local.faults import TRANSIENT, Faults
from spatial_vlm.synthesis.local.local_server import LocalServer
from spatial_vlm.synthesis.local.scene_answers import SceneAnswers
from spatial_vlm.synthesis.teacher import Teacher
from spatial_vlm.synthesis.teachers import gemini, openai_chat, policy_teacher
from spatial_vlm.synthesis.teachers.gemini import GeminiSettings, GeminiTeacher
from spatial_vlm.synthesis.teachers.openai_chat import OpenAIChatSettings, OpenAIChatTeacher
from spatial_vlm.synthesis.teachers.policy_teacher import (
  PolicySettings,
  PolicyTeacher,
  weights_version,
)

_ASKED_WITH = ("teacher", "temperature", "max_output_tokens", "thinking_budget", "thinking_level")


def identity(config: Config) -> dict[str, Any]:
  """What makes another question of the same words: the model, and how it is asked."""
  is_policy = config.teacher == "policy"
  model = weights_version(find_folder(config.model)) if is_policy else config.model
  return {"model": model} | {name: config[name] for name in _ASKED_WITH}


class TeacherKind(NamedTuple):
  """How a teacher is set up from the config."""

  form: Form
  check: Callable[[Config], Any]
  """Raises UsageError."""
  key: Callable[[Config], str]
  """From the environment; raises UsageError where one is missing."""
  open: Callable[[Config, str], contextlib.AbstractAsyncContextManager[Teacher]]
  has_batches: bool = False


def gemini_settings(config: Config, **known: object) -> GeminiSettings:
  return settings_from(GeminiSettings, config, **known)


def openai_settings(config: Config) -> OpenAIChatSettings:
  return settings_from(OpenAIChatSettings, config)


def check_local(config: Config) -> None:
  gemini.check(gemini_settings(config, base_url=""))
  local_faults(config)


def local_faults(config: Config) -> Faults:
  """The share of `local.faults`, spread over all that may happen on the way to an answer."""
  share = config.local.faults / len(TRANSIENT)
  return Faults(**dict.fromkeys(TRANSIENT, share), retry_after_s=0.2, slow_s=0.5)


@contextlib.asynccontextmanager
async def open_local(config: Config, key: str) -> AsyncIterator[Teacher]:
  """Gemini's client, and a server for it on this machine behind which the scene teacher answers."""
  local = config.local
  answers = SceneAnswers(local.scenes, local.split, local.mistakes)
  faults = local_faults(config)
  with LocalServer(answers, model=config.model, faults=faults, seed=config.seed) as server:
    settings = gemini_settings(config, base_url=server.url)
    async with GeminiTeacher(settings, server.key) as teacher:
      yield teacher


def policy_settings(config: Config) -> PolicySettings:
  return settings_from(
    PolicySettings,
    config.policy,
    max_output_tokens=config.max_output_tokens,
    temperature=config.temperature,
  )


@contextlib.asynccontextmanager
async def open_policy(config: Config, key: str) -> AsyncIterator[Teacher]:
  """A checkpoint folder of this project."""
  version = weights_version(find_folder(config.model))
  async with PolicyTeacher(load_policy(config.model), version, policy_settings(config)) as teacher:
    yield teacher


TEACHERS = {
  "local": TeacherKind(drafts.GEMINI, check_local, lambda config: "", open_local, has_batches=True),
  "gemini": TeacherKind(
    drafts.GEMINI,
    lambda config: gemini.check(gemini_settings(config)),
    lambda config: gemini.key_from_environment(),
    lambda config, key: GeminiTeacher(gemini_settings(config), key),
    has_batches=True,
  ),
  "openai": TeacherKind(
    drafts.QWEN,
    lambda config: openai_chat.check(openai_settings(config)),
    lambda config: openai_chat.key_from_environment(config.base_url),
    lambda config, key: OpenAIChatTeacher(openai_settings(config), key),
  ),
  "policy": TeacherKind(
    drafts.CHAIN,
    lambda config: policy_teacher.check(policy_settings(config)),
    lambda config: "",
    open_policy,
  ),
}
