"""Waits until all processes of a command have started, and names those that have not.

JAX waits for missing processes too, but then aborts without naming them. Process 0 listens on the coordinator's port,
before JAX takes it, and every other process reports there. When all have reported, or the time is over, process 0
sends each of them the outcome.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from spatial_vlm.config import UsageError

TIMEOUT_S = 300
"""Processes that have not found each other after so long exit with the names of the missing ones."""
HEARTBEAT_TIMEOUT_S = 300
"""A process without a heartbeat for so long counts as dead, and the others exit; a loaded host may be late."""
_REPORT_TIMEOUT_S = 5
"""For the report of a process that has connected; it sends it at once."""
_OUTCOME_GRACE_S = 10
_RETRY_S = 0.5
_LINE_BYTES = 4096


def wait_for_all(coordinator: str, processes: int, process: int, timeout_s: float) -> None:
  """Returns when all processes have called this.

  Args:
    coordinator: address of process 0, HOST:PORT.
    processes: how many there are.
    process: which one this is, from 0.
    timeout_s: how long to wait.

  Raises:
    UsageError: processes are missing, or their numbers contradict each other.
  """
  wait = _collect_reports if process == 0 else _report
  if problem := wait(coordinator, processes, process, timeout_s):
    raise UsageError(problem)


def initialize_jax(**arguments: Any) -> None:
  """Calls jax.distributed.initialize, and exits with a message before JAX's own time-out, which aborts."""
  timer = threading.Timer(TIMEOUT_S, _exit_without_others)
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      initialization_timeout=TIMEOUT_S + 60,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
      **arguments,
    )
  finally:
    timer.cancel()


def _exit_without_others() -> NoReturn:
  """Ends this process from another thread, while the main one waits in JAX."""
  sys.stderr.write(
    f"spatial-vlm: not all processes of this command were there after {TIMEOUT_S} s; see in the launcher's output "
    "which did not start or have ended, and check that their hosts reach the host of process 0\n"
  )
  sys.stderr.flush()
  os._exit(2)


def _collect_reports(
  coordinator: str, processes: int, process: int, timeout_s: float
) -> str | None:
  """Process 0: returns why not all processes can start, or None, after telling the others."""
  deadline = time.monotonic() + timeout_s
  present: dict[int, socket.socket] = {}
  with contextlib.ExitStack() as opened:
    listener = opened.enter_context(_listen(coordinator))
    problem = None
    while not problem:
      present = {number: there for number, there in present.items() if not _has_ended(there)}
      missing = sorted({*range(1, processes)} - present.keys())
      if not missing:
        break
      left = deadline - time.monotonic()
      if left <= 0:
        problem = _missing(missing, coordinator, processes, timeout_s)
        break
      listener.settimeout(min(left, 1))
      try:
        connection = opened.enter_context(listener.accept()[0])
      except TimeoutError:
        continue
      connection.settimeout(_REPORT_TIMEOUT_S)
      match _read_line(connection):
        case {"process": int(number), "processes": int(count)}:
          problem = _contradiction(number, count, processes, number in present)
          # The second process of a number learns the outcome too.
          present[-len(present) - 1 if number in present else number] = connection
        case _:
          connection.close()  # another program
    for connection in present.values():
      _send_line(connection, {"problem": problem})
  return problem


def _report(coordinator: str, processes: int, process: int, timeout_s: float) -> str | None:
  """Any other process: reports to process 0, and returns why not all can start, or None."""
  host, _, port = coordinator.rpartition(":")
  deadline = time.monotonic() + timeout_s
  while True:
    reason = "another program answers there"
    try:
      with socket.create_connection((host.strip("[]"), int(port)), _REPORT_TIMEOUT_S) as connection:
        _send_line(connection, {"process": process, "processes": processes})
        # Process 0 has started, and sends the outcome before its own time is over.
        connection.settimeout(timeout_s + _OUTCOME_GRACE_S)
        match _read_line(connection):
          case {"problem": str() | None as problem}:
            return problem
    except OSError as error:
      reason = error.strerror or str(error)
    if time.monotonic() + _RETRY_S > deadline:
      return (
        f"process 0 of {processes} did not answer at --coordinator {coordinator} within {timeout_s:g} s ({reason}); "
        "start it on that host, see its output if it has ended, and check that this host reaches that port"
      )
    time.sleep(_RETRY_S)


def _listen(coordinator: str) -> socket.socket:
  """Returns the listening socket of process 0.

  Raises:
    UsageError: another program has the port; JAX would crash.
  """
  address = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or coordinator  # as JAX reads it
  port = int(address.rpartition(":")[2])
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=both)
  except OSError as error:
    raise UsageError(
      f"--coordinator {coordinator}: port {port} of this machine cannot be used ({error.strerror}); give a free one to "
      "all processes"
    ) from error


def _missing(missing: list[int], coordinator: str, processes: int, timeout_s: float) -> str:
  shown = [str(number) for number in missing[:8]]
  if len(missing) > len(shown):
    shown.append(f"{len(missing) - len(shown)} more")
  several = len(shown) > 1
  names = f"{', '.join(shown[:-1])} and {shown[-1]}" if several else shown[0]
  return (
    f"process{'es' if several else ''} {names} of {processes} did not start within {timeout_s:g} s of process 0; start "
    f"all together, see the output of those that have ended, and check that their hosts reach {coordinator}"
  )


def _contradiction(number: int, count: int, processes: int, is_taken: bool) -> str | None:
  if count != processes:
    return (
      f"process {number} was started with --processes {count} and process 0 with --processes {processes}; give all the "
      "same"
    )
  return (
    f"two processes were started with --process {number}; number them from 0" if is_taken else None
  )


def _has_ended(connection: socket.socket) -> bool:
  """Returns whether the process at the other end has closed the connection."""
  connection.setblocking(False)
  try:
    return connection.recv(1, socket.MSG_PEEK) == b""
  except BlockingIOError:
    return False
  except OSError:
    return True


def _send_line(connection: socket.socket, value: Any) -> None:
  connection.settimeout(_REPORT_TIMEOUT_S)
  with contextlib.suppress(OSError):  # the other end has gone
    connection.sendall(json.dumps(value).encode() + b"\n")


def _read_line(connection: socket.socket) -> Any:
  """Returns the JSON value of one line; None for anything else."""
  try:
    with connection.makefile("rb") as file:
      return json.loads(file.readline(_LINE_BYTES))
  except (OSError, ValueError, RecursionError):
    return None
