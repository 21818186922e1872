"""The teachers that a config can name: `TEACHERS`, name → the functions that set one up."""

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from spatial_vlm import extras, sharding
from spatial_vlm.config import Config, UsageError, settings_from
from spatial_vlm.huggingface.folder import find_folder
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.synthesis.formats import CHAIN, GEMINI, QWEN, ResponseFormat
from spatial_vlm.synthesis.local.faults import TRANSIENT, Faults
from spatial_vlm.synthesis.local.local_server import LocalServer
from spatial_vlm.synthesis.local.scene_answers import SceneAnswers
from spatial_vlm.synthesis.teacher import Teacher
from spatial_vlm.synthesis.teachers import gemini, gemini_models, openai_chat, policy_teacher
from spatial_vlm.synthesis.teachers.gemini import GeminiSettings, GeminiTeacher
from spatial_vlm.synthesis.teachers.openai_chat import OpenAIChatSettings, OpenAIChatTeacher
from spatial_vlm.synthesis.teachers.policy_teacher import (
  PolicySettings,
  PolicyTeacher,
  weights_version,
)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TeacherSetup:
  """Functions that set up one kind of teacher from the config of `synthesize`."""

  response_format: ResponseFormat
  check: Callable[[Config], object]
  """Raises UsageError for settings that cannot work."""
  read_key: Callable[[Config], str]
  """Reads the API key from the environment, "" if none is needed; raises UsageError if it is missing or if the model
  has ended."""
  open: Callable[[Config, str], contextlib.AbstractAsyncContextManager[Teacher]]
  """Opens the teacher with the API key."""
  model_identity: Callable[[Config], Any] = lambda config: config.model
  """Identifies the model in the keys of questions."""
  libraries: Sequence[str] = ()
  """Libraries of the extra `synthesis` that it sends questions by."""
  has_batches: bool = False
  """Whether the teacher has Gemini's Batch API."""
  takes_hints: bool = True
  takes_instructions: bool = True
  """Whether it takes a system turn and a JSON schema."""
  listed_prices: Callable[[Config, datetime.date], dict[str, float]] = lambda config, day: {}
  """Returns the prices that a table lists for the model on a day; empty if it lists none."""


def find_teacher(name: str) -> TeacherSetup:
  """Returns the teacher of this name; raises UsageError for an unknown one."""
  if name not in TEACHERS:
    raise UsageError(f"teacher is {name!r}; choose one of {', '.join(TEACHERS)}")
  return TEACHERS[name]


def read_key(config: Config) -> str:
  """Returns the API key of the config's teacher, "" if it needs none.

  Raises UsageError if the key or a library is missing, or if the model has ended.
  """
  teacher = find_teacher(config.teacher)
  if teacher.libraries:
    extras.require("synthesis", f"the teacher {config.teacher}", teacher.libraries)
  return teacher.read_key(config)


def identity(config: Config) -> dict[str, Any]:
  """Returns the model and sampling settings, which are part of every question's key."""
  names = ("teacher", "temperature", "max_output_tokens", "thinking_budget", "thinking_level")
  model = find_teacher(config.teacher).model_identity(config)
  return {"model": model} | {name: config[name] for name in names}


def _gemini_settings(config: Config, **given: object) -> GeminiSettings:
  return settings_from(GeminiSettings, config, **given)


def _gemini_key(config: Config) -> str:
  """Reads the API key; refuses a model that has ended and logs announced ends and prices."""
  if model := gemini_models.find_model(config.model):
    today = datetime.date.today()
    notices = (
      gemini_models.check_end(model, today),
      gemini_models.describe_price_changes(model, today),
    )
    for notice in filter(None, notices):
      _log.warning("%s", notice)
  return gemini.key_from_environment()


def _gemini_prices(config: Config, day: datetime.date) -> dict[str, float]:
  """Returns the prices of the table of models; cached tokens without a confirmed price cost as much as others."""
  model = gemini_models.find_model(config.model)
  period = gemini_models.prices_on(model, day) if model else None
  if period is None:
    return {}
  cached_usd = period.input_usd if period.cached_usd is None else period.cached_usd
  return {
    "input_usd": period.input_usd,
    "cached_usd": cached_usd,
    "output_usd": period.output_usd,
  }


def _openai_settings(config: Config) -> OpenAIChatSettings:
  return settings_from(OpenAIChatSettings, config)


def _policy_settings(config: Config) -> PolicySettings:
  return settings_from(
    PolicySettings,
    config.policy,
    max_output_tokens=config.max_output_tokens,
    temperature=config.temperature,
  )


def _check_local(config: Config) -> None:
  gemini.check(_gemini_settings(config, base_url=""))
  _local_faults(config)


def _local_faults(config: Config) -> Faults:
  """Splits `local.fault_share` equally among all transient faults."""
  share = config.local.fault_share / len(TRANSIENT)
  return Faults(**{kind: share for kind in TRANSIENT}, retry_after_s=0.2, slow_s=0.5)


@contextlib.asynccontextmanager
async def _open_local(config: Config, key: str) -> AsyncIterator[Teacher]:
  """Opens Gemini's client for a server on this machine, where the scene teacher answers."""
  local = config.local
  answers = SceneAnswers(local.scenes, local.split, local.mistake_share)
  faults = _local_faults(config)
  with LocalServer(answers, model=config.model, faults=faults, seed=config.seed) as server:
    settings = _gemini_settings(config, base_url=server.url)
    async with GeminiTeacher(settings, server.key) as teacher:
      yield teacher


def _check_policy(config: Config) -> None:
  policy_teacher.check(_policy_settings(config))
  sharding.make_mesh(config.policy.mesh)


@contextlib.asynccontextmanager
async def _open_policy(config: Config, key: str) -> AsyncIterator[Teacher]:
  """Loads a checkpoint folder of this project."""
  mesh, settings = sharding.make_mesh(config.policy.mesh), _policy_settings(config)
  policy = load_policy(config.model, mesh)
  async with PolicyTeacher(policy, mesh, _policy_version(config), settings) as teacher:
    yield teacher


def _policy_version(config: Config) -> str:
  return weights_version(find_folder(config.model))


def _no_key(config: Config) -> str:
  return ""


TEACHERS = {
  "local": TeacherSetup(
    GEMINI, _check_local, _no_key, _open_local, libraries=["google.genai"], has_batches=True
  ),
  "gemini": TeacherSetup(
    GEMINI,
    lambda config: gemini.check(_gemini_settings(config)),
    _gemini_key,
    lambda config, key: GeminiTeacher(_gemini_settings(config), key),
    libraries=["google.genai"],
    has_batches=True,
    listed_prices=_gemini_prices,
  ),
  "openai": TeacherSetup(
    QWEN,
    lambda config: openai_chat.check(_openai_settings(config)),
    lambda config: openai_chat.key_from_environment(config.base_url),
    lambda config, key: OpenAIChatTeacher(_openai_settings(config), key),
    libraries=["openai"],
  ),
  "policy": TeacherSetup(
    CHAIN,
    _check_policy,
    _no_key,
    _open_policy,
    model_identity=_policy_version,
    takes_hints=False,
    takes_instructions=False,
  ),
}
"""Name → setup. To add a teacher, add an entry."""
