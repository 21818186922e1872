"""Runs one command in several processes, usually one per host, which share a mesh of all their devices.

Every process runs the same program and reads its own rows of each batch; process 0 writes. Processes exchange JSON
values, and errors too: a process that stops alone would leave the others waiting for it.
"""

import contextlib
import importlib.util
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from spatial_vlm import rendezvous, stop_signals
from spatial_vlm.config import UsageError, UsageErrorOfAll
from spatial_vlm.disk_errors import disk_error

log = logging.getLogger(__name__)


class Preempted(SystemExit):
  """Ends all processes after they saved a checkpoint, because one of them received SIGTERM or Ctrl-C."""

  def __init__(self):
    super().__init__(128 + (stop_signals.requested() or signal.SIGTERM))  # as a shell counts


@contextlib.contextmanager
def together(coordinator: str | None, processes: int | None, process: int | None) -> Iterator[None]:
  """Runs a command inside this context: connects the processes, if there are several, and ends them together.

  Args:
    coordinator: address of process 0, HOST:PORT; it and the others are None on TPU hosts, under Slurm and under Open
      MPI, where processes discover each other.
    processes: how many there are.
    process: which one this is, from 0.
  """
  connect(coordinator, processes, process)
  try:
    yield
  except Preempted:
    if jax.process_index() == 0:
      sys.stderr.write("\na checkpoint is saved; run the same command again to resume\n")
    raise
  except UsageErrorOfAll as error:
    if not alone() and jax.process_index() > 0:
      raise SystemExit(2) from error  # process 0 prints the message
    raise
  except BaseException as error:
    if alone() or isinstance(error, SystemExit):
      raise
    _exit_at_once(error)


def _exit_at_once(error: BaseException) -> NoReturn:
  """Prints the error and exits without waiting for the other processes.

  An ordinary exit would wait for them while they wait for this process. Without its heartbeat they exit too.
  """
  name = f"spatial-vlm: process {jax.process_index()} of {jax.process_count()}: "
  if isinstance(error, KeyboardInterrupt):
    status, text = 130, f"{name}stopped\n"
  elif isinstance(error, UsageError):
    status, text = 2, f"{name}{error}\n"
  elif message := disk_error(error):
    status, text = 1, f"{name}{message}\n"
  else:
    status, text = 1, name + "".join(traceback.format_exception(error))
  sys.stderr.write(text)
  sys.stderr.flush()
  sys.stdout.flush()
  os._exit(status)


def connect(coordinator: str | None, processes: int | None, process: int | None) -> None:
  """Starts jax.distributed if there are several processes; must be called before a device is used.

  The arguments are those of `together`.

  Raises:
    UsageError: the processes do not find each other.
  """
  if (coordinator, processes, process) == (None, 1, None) or jax.distributed.is_initialized():
    return
  if coordinator is None:
    _connect_cluster()
    return
  assert processes is not None and process is not None  # checked with the arguments
  rendezvous.wait_for_all(coordinator, processes, process, rendezvous.TIMEOUT_S)
  _initialize(
    coordinator_address=coordinator,
    num_processes=processes,
    process_id=process,
    cluster_detection_method="deactivate",
  )


def _connect_cluster() -> None:
  if launched_tasks() > 1:
    if "OMPI_COMM_WORLD_SIZE" in os.environ and _ORTE_URI not in os.environ:
      raise UsageError(
        "Open MPI 5 does not tell where process 0 runs; start the processes as mpirun … sh -c 'spatial-vlm … "
        "--coordinator HOST:PORT --processes $OMPI_COMM_WORLD_SIZE --process $OMPI_COMM_WORLD_RANK', with the host of "
        "rank 0 and a free port there"
      )
    _initialize()
  # Set by jax on a TPU host.
  elif "tpu" in (jax.config.jax_platforms or ""):  # pyright: ignore[reportAttributeAccessIssue]
    try:
      rendezvous.initialize_jax()
    except jax.errors.JaxRuntimeError as error:
      raise UsageError(f"the other TPU hosts do not answer: {error}") from error
    except (
      ValueError,
      OSError,
      RuntimeError,
    ) as reason:  # no TPU metadata, or a notebook has used JAX already
      log.info("one process on one host (%s)", reason)


def skip_absent_tpu() -> None:
  """Has JAX use the CPU where only libtpu is installed besides and there is no TPU.

  JAX would try libtpu, which then prints five lines of warnings. On a TPU host JAX has set `jax_platforms`, and a user
  may have set it; JAX finds a GPU by a plugin.
  """
  plugins = importlib.util.find_spec("jax_plugins") or entry_points(group="jax_plugins")
  if jax.config.jax_platforms is None and not plugins:  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_platforms", "cpu")


_ORTE_URI = "OMPI_MCA_orte_hnp_uri"
"""Where JAX reads the address of process 0; Open MPI 4 sets it."""


def launched_tasks() -> int:
  """Returns the number of processes that Slurm or Open MPI started, this one included."""
  if {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_NTASKS"} <= os.environ.keys():
    # SLURM_NTASKS may be that of the allocation, in which an interactive step runs one task.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ["SLURM_NTASKS"])
  return int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))


def _initialize(**arguments: Any) -> None:
  try:
    rendezvous.initialize_jax(**arguments)
  except (ValueError, RuntimeError) as error:
    raise UsageError(
      f"the processes did not find each other: {error}; start all of them, and check that they can reach process 0"
    ) from error


def alone() -> bool:
  """Returns whether this is the only process; the first call may start JAX's backend and wait for the others."""
  return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
  """Returns whether this is process 0, which prints and writes."""
  return alone() or jax.process_index() == 0


def all_gather_json(value: Any) -> list[Any]:
  """Returns the JSON values of all processes, in their order; a collective: every process must call it."""
  if alone():
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(text.size))
  # Padding to a power of two limits the number of compiled programs.
  padded = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)
  padded[: text.size] = text
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def error_of_any(message: str | None) -> UsageErrorOfAll | None:
  """Returns the error that all processes must raise if one of them has a message, else None; a collective.

  Args:
    message: why this process cannot go on, or None.
  """
  messages = all_gather_json(message)
  refused = [(process, text) for process, text in enumerate(messages) if text is not None]
  if not refused:
    return None
  process, text = refused[0]
  if len({*messages}) == 1:
    return UsageErrorOfAll(text)
  return UsageErrorOfAll(f"process {process} of {len(messages)}: {text}")


def preempted(step: int) -> bool:
  """Returns whether the processes must save and exit at this step, because one of them received SIGTERM or Ctrl-C.

  It is True at the same step on all processes; every process must call it at every step, inside
  `stop_signals.checkpoint_at_signals`.
  """
  if jax.distributed.is_initialized():
    return multihost_utils.reached_preemption_sync_point(step)
  return stop_signals.requested() is not None


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Turns errors of a command's preparation, which its user can correct, into UsageErrorOfAll.

  If one process rejects its input, process 0 prints the reason and all processes exit; all of them must enter this.
  """
  message, cause = None, None
  try:
    yield
  except (ValueError, OSError, ImportError) as error:
    message, cause = disk_error(error) or str(error), error
  if refused := error_of_any(message):
    raise refused from cause
