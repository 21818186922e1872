"""Large arrays come from the heap, unless the user has settings of their own."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from spatial_vlm import allocator


@pytest.fixture
def calls(monkeypatch):
  """Calls of mallopt, which are recorded and not made: they would change the whole process."""
  seen = []

  class Libc:
    @staticmethod
    def mallopt(parameter, value):
      seen.append((parameter, value))

  monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc)
  for name in ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX"):
    monkeypatch.delenv(name, raising=False)
  return seen


IS_ON_HEAP = """
import ctypes
from pathlib import Path
from spatial_vlm import allocator

malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]

def is_on_heap():
  place = malloc(32 * 2**20)
  heap = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]"))
  first, last = (int(x, 16) for x in heap.split()[0].split("-"))
  return first <= place < last

print(is_on_heap(), allocator.keep_freed_memory(), is_on_heap())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets parameters of glibc's malloc")
def test_large_arrays_come_from_the_heap():
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("GLIBC_", "MALLOC_"))}
  shown = subprocess.run(
    [sys.executable, "-c", IS_ON_HEAP], env=environment, capture_output=True, text=True, check=True
  )
  assert shown.stdout.split() == ["False", "None", "True"]


def test_all_threads_share_the_heap_and_keep_it(calls):
  """Where threads have arenas of their own, a training step gives its memory back (17,344 page faults a step)."""
  allocator.keep_freed_memory()
  assert {(allocator.M_ARENA_MAX, 1), (allocator.M_TRIM_THRESHOLD, 2**31 - 1)} <= {*calls}


@pytest.mark.parametrize(
  ("name", "value"),
  [("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"), ("MALLOC_ARENA_MAX", "2")],
)
def test_a_users_settings_stay(calls, monkeypatch, name, value):
  monkeypatch.setenv(name, value)
  allocator.keep_freed_memory()
  assert calls == []


def test_another_c_library_is_left_alone(monkeypatch):
  monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
  allocator.keep_freed_memory()
