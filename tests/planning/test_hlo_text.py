"""Parsing of HLO text."""

import pytest

from spatial_vlm.planning.hlo_text import entry_computation, shape_bytes


def test_bytes_of_shapes():
  assert shape_bytes("(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)})") == 68
  assert shape_bytes("(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, f32[])", hbm=True) == 4
  assert shape_bytes("f8e4m3fn[10]") == 10
  assert shape_bytes("s4[3]") == 2
  assert shape_bytes("token[]") == 0


def test_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    entry_computation("HloModule x")
