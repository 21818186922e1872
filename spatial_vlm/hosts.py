"""Several processes that run one command together, usually one on each host; they share a mesh of all their devices.

Every process runs the same program and reads its own rows of each batch; the first one writes. What each of them knows
alone (JSON) is gathered, errors too: one process that stops on its own would leave the others waiting for it.
"""

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from spatial_vlm.config import UsageError, UsageErrorOfAll

HEARTBEAT_TIMEOUT_S = 300
"""After so long without a sign of life a process counts as dead and the others end; a loaded host may be late."""

log = logging.getLogger(__name__)


class Preempted(SystemExit):
  """All processes have saved a checkpoint and end, since one of them was sent SIGTERM."""

  def __init__(self):
    super().__init__(143)  # as a shell says of SIGTERM


@contextlib.contextmanager
def together(coordinator: str | None, processes: int | None, process: int | None) -> Iterator[None]:
  """Around a command: joins the other processes, if there are any, and ends with them.

  Arguments: address of process 0, how many there are, and which one this is; on TPU hosts, under Slurm and under Open
  MPI they are found, and left out. Raises UsageError for arguments that do not fit together.
  """
  connect(coordinator, processes, process)
  try:
    yield
  except Preempted:
    if jax.process_index() == 0:
      sys.stderr.write("\nsaved at SIGTERM; run the same command again to go on\n")
    raise
  except UsageErrorOfAll as error:
    if not alone() and jax.process_index() > 0:
      raise SystemExit(2) from error  # the first process shows it
    raise
  except BaseException as error:
    if alone() or isinstance(error, SystemExit):
      raise
    _end_at_once(error)


def _end_at_once(error: BaseException) -> NoReturn:
  """An ordinary end would wait for the other processes, which wait for this one; so they miss it, and end too."""
  name = f"spatial-vlm: process {jax.process_index()} of {jax.process_count()}: "
  if isinstance(error, KeyboardInterrupt):
    status, text = 130, f"{name}stopped\n"
  elif isinstance(error, UsageError):
    status, text = 2, f"{name}{error}\n"
  else:
    status, text = 1, name + "".join(traceback.format_exception(error))
  sys.stderr.write(text)
  sys.stderr.flush()
  sys.stdout.flush()
  os._exit(status)


def connect(coordinator: str | None, processes: int | None, process: int | None) -> None:
  """Starts jax.distributed where this process is one of several; before anything touches a device."""
  given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
  missing = [name for name, value in given.items() if value is None]
  if (coordinator, processes, process) == (None, 1, None) or jax.distributed.is_initialized():
    return
  if len(missing) == len(given):
    _connect_cluster()
    return
  if missing:
    raise UsageError(
      f"{', '.join(missing)} missing: several processes need --coordinator HOST:PORT, --processes N and --process I"
      " (0 … N−1); leave out all three on TPU hosts, under Slurm and under Open MPI"
    )
  assert coordinator is not None and processes is not None and process is not None
  if not 0 <= process < processes:
    raise UsageError(
      f"--process is {process} and --processes {processes}; processes are numbered from 0 to {processes - 1}"
    )
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit():
    raise UsageError(
      f"--coordinator is {coordinator!r}; give host and port of process 0, e.g. 10.0.0.2:8476"
    )
  _initialize(
    coordinator_address=coordinator,
    num_processes=processes,
    process_id=process,
    cluster_detection_method="deactivate",
  )


def _connect_cluster() -> None:
  if launched_tasks() > 1:
    _initialize()
  elif "tpu" in (jax.config.jax_platforms or ""):  # set by jax on a TPU host
    try:
      jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S)
    except jax.errors.JaxRuntimeError as error:
      raise UsageError(f"the other TPU hosts do not answer: {error}") from error
    except (
      ValueError,
      OSError,
      RuntimeError,
    ) as reason:  # no metadata; or jax is in use, as in a notebook
      log.info("one process on one host (%s)", reason)


def launched_tasks() -> int:
  """How many processes Slurm or Open MPI has started with this one."""
  if {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_NTASKS"} <= os.environ.keys():
    return int(os.environ["SLURM_NTASKS"])
  return int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))


def _initialize(**arguments: Any) -> None:
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S, **arguments)
  except (ValueError, RuntimeError) as error:
    raise UsageError(
      f"the processes did not find each other: {error}; start all of them, and see that process 0 can be reached"
    ) from error


def alone() -> bool:
  """Whether there is no other process; before the first device is used, this makes the processes meet."""
  return not jax.distributed.is_initialized() or jax.process_count() == 1


def all_gather_json(value: Any) -> list[Any]:
  """The values (JSON) of all processes, in their order; all of them call this."""
  if alone():
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(text.size))
  room = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)  # each size is a program
  room[: text.size] = text
  rows = multihost_utils.process_allgather(room)
  return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def error_of_any(message: str | None) -> UsageErrorOfAll | None:
  """What to raise where one of the processes was refused something; all of them call this, with None if it was not."""
  messages = all_gather_json(message)
  refused = [(process, text) for process, text in enumerate(messages) if text is not None]
  if not refused:
    return None
  process, text = refused[0]
  if len({*messages}) == 1:
    return UsageErrorOfAll(text)
  return UsageErrorOfAll(f"process {process} of {len(messages)}: {text}")


def preempted(step: int) -> bool:
  """Whether the processes, one of which was sent SIGTERM, are to save and end; True at one step, the same on all.

  All of them ask at every step. A process that has not connected just ends at SIGTERM.
  """
  return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Around what a command does before its work begins: what is refused there, its user can mend.

  Of several processes, which all come here, what is refused to one ends all.
  """
  message, cause = None, None
  try:
    yield
  except (ValueError, OSError, ImportError) as error:
    message, cause = str(error), error
  if refused := error_of_any(message):
    raise refused from cause
