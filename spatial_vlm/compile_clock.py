"""The time that JAX has spent on compiling in each thread."""

import functools
import threading

from jax import monitoring

COMPILATION = "/jax/core/compile/"
"""Prefix of JAX's events: tracing, lowering and compiling, which may lie within each other."""

_seconds: dict[int, float] = {}
_spans: dict[int, list[tuple[float, float]]] = {}
"""Thread → spans of which none lies within another."""


def compile_seconds() -> float:
  """Returns how long this thread has compiled since the first call."""
  _listen()
  return _seconds.get(threading.get_ident(), 0.0)


@functools.cache
def _listen() -> None:
  monitoring.register_event_time_span_listener(_count)


def _count(event: str, start_time: float, end_time: float, **_: object) -> None:
  """Counts a span; spans within it ended before it and are counted already."""
  if not event.startswith(COMPILATION):
    return
  thread = threading.get_ident()
  spans = _spans.setdefault(thread, [])
  while spans and spans[-1][0] >= start_time:
    inner = spans.pop()
    _seconds[thread] -= inner[1] - inner[0]
  spans.append((start_time, end_time))
  _seconds[thread] = _seconds.get(thread, 0.0) + end_time - start_time
