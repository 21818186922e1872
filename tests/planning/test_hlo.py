"""Scopes of loops in a compiled program."""

import pytest

from spatial_vlm.planning.hlo import Hlo, is_loop_of


def test_scopes_survive_differentiation():
  assert is_loop_of("chunks", "jit(f)/transpose(jvp(chunks))/while")
  assert not is_loop_of("chunks", "jit(f)/chunks/while/body/while")  # a loop inside it
  assert not is_loop_of("chunks", "jit(f)/my_chunks/while")


def test_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    Hlo("HloModule x")
