"""The table of teachers."""

import pytest

from spatial_vlm import config
from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.formats import CHAIN, GEMINI, QWEN
from spatial_vlm.synthesis.teacher_table import TEACHERS, find_teacher, identity


def test_each_teacher_has_the_format_of_its_model():
  formats = {name: teacher.response_format for name, teacher in TEACHERS.items()}
  assert formats == {"local": GEMINI, "gemini": GEMINI, "openai": QWEN, "policy": CHAIN}
  assert [name for name, teacher in TEACHERS.items() if not teacher.takes_hints] == ["policy"]


def test_an_unknown_teacher_is_refused_with_the_known_ones():
  with pytest.raises(UsageError, match="'gpt'; choose one of local, gemini, openai, policy"):
    find_teacher("gpt")


def test_the_identity_has_model_and_sampling_settings():
  loaded = config.load("configs/synthesize.py:tiny", ["model=m", "temperature=0.5"])
  assert identity(loaded) == {
    "model": "m",
    "teacher": "local",
    "temperature": 0.5,
    "max_output_tokens": 2048,
    "thinking_budget": None,
    "thinking_level": None,
  }
