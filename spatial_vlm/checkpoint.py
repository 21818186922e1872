"""Checkpoints of a run, written by Orbax: a pytree of arrays and a JSON value of the host.

A checkpoint is one folder, `<folder>/<step>/`, that appears complete or not at all: `latest` never returns one that a
killed process left half-written, and the next start removes it. Orbax's files do not notice a changed bit, so checksums
of the arrays and of the JSON value lie beside them and are compared at every restore.
"""

import contextlib
import functools
import hashlib
import json
import logging
import sys
import threading
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from spatial_vlm.parameters.partition import checksums
from spatial_vlm.parameters.paths import path_name

_STATE, _HOST, _CHECKSUMS = "state", "host", "checksums"


class CheckpointError(ValueError):
  """Raised for a checkpoint that is damaged, or was written by another model or optimizer."""


_SAVING = threading.Lock()
"""Held by one save of the process at a time, while it starts: the threads of a save wait for signals that Orbax numbers
by process, and one that starts meanwhile, such as that of the demo's other stage, would take over the number."""


class Checkpoints(contextlib.AbstractContextManager):
  """Reads and writes the newest `keep` checkpoints in `folder`; leaving the context waits for the last write."""

  def __init__(self, folder: epath.PathLike, keep: int = 2, read_only: bool = False):
    """Opens `folder`.

    Args:
      folder: a local path or `gs://…`; created if it does not exist.
      keep: how many checkpoints to keep.
      read_only: changes nothing in `folder`, since a running command may be writing there.
    """
    if keep < 1:
      raise ValueError(f"keep is {keep}; a run needs at least 1 checkpoint to resume.")
    self.folder = epath.Path(folder)
    self._signatures: dict[int, dict[str, str]] = {}
    self._checksums: dict[int, dict[str, int | str]] = {}
    logging.getLogger("absl").addFilter(_is_no_orbax_progress)
    _drop_late_errors()
    self._manager = ocp.CheckpointManager(
      self.folder.resolve() if "://" not in str(folder) else self.folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(keep),
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
        save_root_metadata=False,
      ),
      item_handlers={
        _STATE: ocp.PyTreeCheckpointHandler(use_compression=False),
        _HOST: ocp.JsonCheckpointHandler(),
        _CHECKSUMS: ocp.JsonCheckpointHandler(),
      },
    )

  def __exit__(self, *exception: object) -> None:
    self.close()

  def close(self) -> None:
    """Waits until the last checkpoint is written."""
    self._manager.close()
    logging.getLogger("absl").removeFilter(_is_no_orbax_progress)

  def latest(self) -> int | None:
    """Returns the step of the newest checkpoint, or None; waits until the last one is written."""
    self._manager.wait_until_finished()
    return self._manager.latest_step()

  def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
    """Writes `state` and `host` as checkpoint `step`, which must be larger than every earlier one.

    Returns as soon as the arrays are copied, so that the caller may donate them. A thread writes the files; the next
    `save` or `close` waits for it and raises its errors.
    """
    # Checks here what the thread would report too late.
    json.dumps(host)
    if empty := [name for name, leaf in _leaves(state).items() if np.size(leaf) == 0]:
      raise ValueError(
        f"arrays of size 0 cannot be saved: {', '.join(empty)}; replace them by None."
      )
    items = {
      _STATE: ocp.args.PyTreeSave(state),
      _HOST: ocp.args.JsonSave(host),
      _CHECKSUMS: ocp.args.JsonSave(checksums(state) | {_HOST_KEY: _digest(host)}),
    }
    with _SAVING:
      saved = self._manager.save(step, args=ocp.args.Composite(**items))
    if not saved:
      raise ValueError(
        f"checkpoint {step} is not newer than checkpoint {self.latest()} in {self.folder}."
      )

  def restore(self, abstract_state: Any, partial: bool = False) -> tuple[Any, dict[str, Any]]:
    """Returns (state, host) of the newest checkpoint.

    Args:
      abstract_state: the expected tree; its leaves are `jax.ShapeDtypeStruct`s or JAX arrays (restored with their
        sharding, by default on one device) or NumPy arrays (restored as such).
      partial: restores only the arrays that `abstract_state` has.

    Raises:
      FileNotFoundError: there is no checkpoint.
      CheckpointError: tree, shapes or types differ, or the files are damaged.
    """
    step = self.latest()
    if step is None:
      raise FileNotFoundError(
        f"{self.folder} holds no complete checkpoint; start the run without resuming."
      )
    with_devices = jax.tree.map(_with_device, abstract_state)
    state_args = ocp.args.PyTreeRestore(
      with_devices,
      restore_args=ocp.checkpoint_utils.construct_restore_args(with_devices),
      partial_restore=partial,
    )
    try:
      self._check(step, abstract_state, partial)
      restored = self._manager.restore(
        step, args=ocp.args.Composite(**{_STATE: state_args, _HOST: ocp.args.JsonRestore()})
      )
      self._compare_checksums(step, restored[_STATE], restored[_HOST])
    except CheckpointError:
      raise
    except Exception as error:
      raise self._damaged(step, f"cannot be read ({type(error).__name__}: {error})") from error
    return restored[_STATE], restored[_HOST]

  def host(self) -> dict[str, Any]:
    """Returns the host's value of the newest checkpoint, which must exist."""
    arguments = ocp.args.Composite(**{_HOST: ocp.args.JsonRestore()})
    return self._manager.restore(self.latest(), args=arguments)[_HOST]

  def _damaged(self, step: int, what: str) -> CheckpointError:
    return CheckpointError(
      f"checkpoint {step} in {self.folder} {what}. Remove the folder {self.folder / str(step)} to resume from the "
      "checkpoint before it."
    )

  def _compare_checksums(self, step: int, state: Any, host: dict[str, Any]) -> None:
    if step not in self._checksums:  # `export` restores arrays one by one
      arguments = ocp.args.Composite(**{_CHECKSUMS: ocp.args.JsonRestore()})
      self._checksums[step] = self._manager.restore(step, args=arguments)[_CHECKSUMS]
    written, found = self._checksums[step], checksums(state) | {_HOST_KEY: _digest(host)}
    if changed := [name for name, number in found.items() if written.get(name) != number]:
      more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
      raise self._damaged(step, f"is damaged: {changed[0]}{more} changed since it was written")

  def _signature_of(self, step: int) -> dict[str, str]:
    """Returns path of every array of checkpoint `step` -> "dtype[shape]"."""
    # Orbax opens every array for this. `export` restores them one by one, and asks only once.
    if step not in self._signatures:
      self._signatures[step] = _signature(self._manager.item_metadata(step)[_STATE].tree)
    return self._signatures[step]

  def _check(self, step: int, abstract_state: Any, partial: bool) -> None:
    written = self._signature_of(step)
    expected = _signature(abstract_state)
    differences = [
      f"{name}: written {written.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
      for name in sorted(expected.keys() if partial else written.keys() | expected.keys())
      if written.get(name) != expected.get(name)
    ]
    if differences:
      shown = "\n  ".join(differences[:20])
      more = f"\n  … and {len(differences) - 20} more" if len(differences) > 20 else ""
      raise CheckpointError(
        f"checkpoint {step} in {self.folder} was written by another model or optimizer:\n  {shown}{more}\n"
        "Use the configuration that the run was started with, or another --workdir."
      )


_HOST_KEY = "(host)"
"""Name of the JSON value among the arrays' checksums."""


def _digest(host: dict[str, Any]) -> str:
  """Returns a digest of a JSON value, before it is written and after it was read."""
  text = json.dumps(json.loads(json.dumps(host)), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _with_device(leaf: Any) -> Any:
  """Returns the leaf; a ShapeDtypeStruct without a sharding gets one device, instead of the writer's devices."""
  if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return leaf


def _signature(tree: Any) -> dict[str, str]:
  """Returns path of every leaf -> "dtype[shape]"."""

  def describe(leaf: Any) -> str:
    leaf = np.asarray(leaf) if isinstance(leaf, int | float) else leaf
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

  return {name: describe(leaf) for name, leaf in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@functools.cache
def _drop_late_errors() -> None:
  """Drops tracebacks of the array writes that end after one of them has failed and Orbax has raised its error.

  asyncio logs those that nobody waits for any more. TensorStore reports others to an event loop that is closed, and
  prints the error that this raises.
  """
  logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
  shown = sys.unraisablehook

  def hook(ignored: Any) -> None:
    where = ignored.exc_traceback
    is_late = where and where.tb_frame.f_code.co_name == "call_soon_threadsafe"
    if not (is_late and ignored.exc_type is RuntimeError):
      shown(ignored)

  sys.unraisablehook = hook


def _is_no_orbax_progress(record: logging.LogRecord) -> bool:
  """Returns whether to log the record: drops Orbax's progress, and tracebacks of errors that it raises as well."""
  is_error = record.levelno >= logging.ERROR and not record.exc_info
  return is_error or "orbax" not in record.pathname
