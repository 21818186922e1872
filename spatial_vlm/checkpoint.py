"""Checkpoints of a run: its state (a pytree of arrays) beside what the host knows (JSON), written by Orbax.

A checkpoint is one folder, `<folder>/<step>/`, that appears complete or not at all: whatever a killed process left
half-written is never offered by `latest` and is removed at the next start.
"""

import contextlib
import json
import logging
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

_STATE, _HOST = "state", "host"


class CheckpointError(ValueError):
  """A checkpoint that is damaged, or that was written by another model or optimizer."""


class Checkpoints(contextlib.AbstractContextManager):
  """The newest `keep` checkpoints in `folder`; leave the context (or `close`) to be sure the last one is written."""

  def __init__(self, folder: epath.PathLike, keep: int = 2, read_only: bool = False):
    """`folder`: a local path or `gs://…`, made if it is not there; `read_only` leaves it alone, for a run that goes
    on may be writing there."""
    if keep < 1:
      raise ValueError(f"keep is {keep}; at least 1 checkpoint has to stay for a run to resume.")
    self.folder = epath.Path(folder)
    logging.getLogger("absl").addFilter(_not_orbax_chatter)
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
      },
    )

  def __exit__(self, *exception: object) -> None:
    self.close()

  def close(self) -> None:
    """Waits for the checkpoint being written."""
    self._manager.close()
    logging.getLogger("absl").removeFilter(_not_orbax_chatter)

  def latest(self) -> int | None:
    """Step of the newest checkpoint, or None; waits for the one being written."""
    self._manager.wait_until_finished()
    return self._manager.latest_step()

  def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
    """Writes `state` and `host` as checkpoint `step`, which must be larger than every earlier one.

    Returns as soon as the arrays are copied, so that the caller may donate them; the files are written in the
    background, and the next `save` or `close` waits for them (and raises what went wrong).
    """
    # What cannot be written is reported here, at the caller, rather than by a thread in the background.
    json.dumps(host)
    if empty := [name for name, leaf in _leaves(state).items() if np.size(leaf) == 0]:
      raise ValueError(
        f"arrays without any value cannot be saved: {', '.join(empty)}; leave them out (None)."
      )
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(
        **{_STATE: ocp.args.PyTreeSave(state), _HOST: ocp.args.JsonSave(host)}
      ),
    )
    if not saved:
      raise ValueError(
        f"checkpoint {step} is not newer than checkpoint {self.latest()}, which {self.folder} holds."
      )

  def restore(self, abstract_state: Any, partial: bool = False) -> tuple[Any, dict[str, Any]]:
    """The newest checkpoint as (state, host); with `partial`, only those arrays that `abstract_state` names.

    `abstract_state`: the expected tree; its leaves are `jax.ShapeDtypeStruct`s or jax arrays (restored with their
    sharding, by default on one device) or NumPy arrays (restored as such). Raises FileNotFoundError where there is
    no checkpoint and CheckpointError where tree, shapes or types differ or the files are damaged.
    """
    step = self.latest()
    if step is None:
      raise FileNotFoundError(
        f"{self.folder} holds no complete checkpoint; start the run without resuming."
      )
    placed = jax.tree.map(_placed, abstract_state)
    state_args = ocp.args.PyTreeRestore(
      placed,
      restore_args=ocp.checkpoint_utils.construct_restore_args(placed),
      partial_restore=partial,
    )
    try:
      self._check(step, abstract_state, partial)
      restored = self._manager.restore(
        step, args=ocp.args.Composite(**{_STATE: state_args, _HOST: ocp.args.JsonRestore()})
      )
    except CheckpointError:
      raise
    except Exception as error:
      raise CheckpointError(
        f"checkpoint {step} in {self.folder} cannot be read ({type(error).__name__}: {error}). Remove the folder "
        f"{self.folder / str(step)} to go on from the checkpoint before it."
      ) from error
    return restored[_STATE], restored[_HOST]

  def host(self) -> dict[str, Any]:
    """What the host knew at the newest checkpoint; there must be one."""
    arguments = ocp.args.Composite(**{_HOST: ocp.args.JsonRestore()})
    return self._manager.restore(self.latest(), args=arguments)[_HOST]

  def _check(self, step: int, abstract_state: Any, partial: bool) -> None:
    written = _signature(self._manager.item_metadata(step)[_STATE].tree)
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


def _placed(leaf: Any) -> Any:
  """ShapeDtypeStructs without a sharding go to one device, rather than where the writer had them."""
  if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return leaf


def _signature(tree: Any) -> dict[str, str]:
  """Path of every leaf -> "dtype[shape]"."""

  def describe(leaf: Any) -> str:
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

  return {name: describe(leaf) for name, leaf in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _not_orbax_chatter(record: logging.LogRecord) -> bool:
  """Keeps Orbax's progress notes out of the terminal; its errors pass."""
  return record.levelno >= logging.ERROR or "orbax" not in record.pathname
