"""Folders of safetensors files: checks their headers, reads ranges of rows, writes tensors as a stream.

A file has the length n of its header (8 bytes, little endian), n bytes of JSON with each tensor's dtype, shape and
offsets, and the values (https://huggingface.co/docs/safetensors). Several files come with an index from tensors to
files. Only ranges are read, so a folder may be local or remote (gs://) and larger than the memory. Pickles are never
opened here; `torch_zip` finds the tensors of an encoder's published files without running them.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from jaxtyping import Int

from spatial_vlm.remote import whole_file, write_whole
from spatial_vlm.text import short_line

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PART_FILE = "model-{:05d}-of-{:05d}.safetensors"
DTYPES = {
  "F32": np.dtype(np.float32),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F16": np.dtype(np.float16),
}
"""Name in a header -> type; weights may have these types."""
BLOCK_BYTES = 16 << 20
"""Largest number of bytes read or written at once (one row, if it is larger)."""
_LONGEST_HEADER = 100_000_000


class StoredTensor(NamedTuple):
  """A tensor in a file."""

  file: epath.Path
  dtype: str
  """Name in the header."""
  shape: tuple[int, ...]
  start: int
  """Offset of its values in the file, in bytes."""


class Inventory(NamedTuple):
  """The tensors of a folder whose headers can be read, and the problems of the others."""

  tensors: dict[str, StoredTensor]
  problems: list[str]
  lost: set[str]
  """Tensors of missing or damaged files, by the index."""


def inventory(folder: epath.Path) -> Inventory:
  """Returns the tensors of a folder, after comparing index, headers and sizes of the files.

  Raises:
    FileNotFoundError: there are no safetensors.
    ValueError: the index, or the only file, cannot be read.
  """
  if not (folder / INDEX_FILE).is_file():
    if not (folder / WEIGHTS_FILE).is_file():
      raise FileNotFoundError(f"{folder} lacks {WEIGHTS_FILE}.{_pickled(folder)}")
    return Inventory(read_header(folder / WEIGHTS_FILE), [], set())
  indexed = _index(folder / INDEX_FILE)
  found, problems, lost = {}, [], set()
  for name in sorted(set(indexed.values())):
    named = {tensor for tensor, file in indexed.items() if file == name}
    try:
      stored = _part(folder, name)
    except ValueError as error:
      problems.append(f"{error} ({len(named)} tensors)")
      lost |= named
      continue
    problems += [
      f"{INDEX_FILE} puts {tensor} into {name}, which does not hold it"
      for tensor in sorted(named - stored.keys())
    ]
    problems += [
      f"{name} holds {tensor}, which {INDEX_FILE} does not put there"
      for tensor in sorted(stored.keys() - named)
    ]
    lost |= named - stored.keys()
    found |= {tensor: stored[tensor] for tensor in named & stored.keys()}
  return Inventory(found, problems, lost)


def _index(path: epath.Path) -> dict[str, str]:
  try:
    weight_map = json.loads(path.read_bytes())["weight_map"]
    if not all(isinstance(file, str) for file in weight_map.values()):
      raise TypeError("a file name is not a string")
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
    raise ValueError(f"{path} is damaged ({short_line(repr(error))}); copy it again") from error
  return weight_map


def _part(folder: epath.Path, name: str) -> dict[str, StoredTensor]:
  """Returns the tensors of a file that the index names.

  Raises:
    ValueError: the file lies outside the folder, is missing or is damaged.
  """
  if not re.fullmatch(r"[\w.-]+\.safetensors", name):
    raise ValueError(
      f"{INDEX_FILE} names {name!r}, which is not a safetensors file of this folder and is not opened"
    )
  if not (folder / name).is_file():
    raise ValueError(f"{name} is missing")
  return read_header(folder / name)


def _pickled(folder: epath.Path) -> str:
  names = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
  if not names:
    return ""
  return (
    f" It has {', '.join(names)}, but pickled weights can run code when opened and are never read here: load the"
    " folder with transformers in a place you trust and save it again with save_pretrained, which writes safetensors."
  )


def read_header(path: epath.Path) -> dict[str, StoredTensor]:
  """Returns the tensors of a file.

  Raises:
    ValueError: the header is unreadable, or the size of the file differs from the header's.
  """
  with path.open("rb") as file:
    size = file.seek(0, 2) or file.tell()
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
      raise ValueError(f"{path.name} is damaged (no header in its {size} bytes); copy it again")
    text = file.read(length)
  try:
    entries = json.loads(text)
    entries.pop("__metadata__", None)
    tensors = {
      name: StoredTensor(path, entry["dtype"], tuple(entry["shape"]), 8 + length + begin)
      for name, entry in entries.items()
      for begin, _ in [entry["data_offsets"]]
    }
    ends = _ends(entries)
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
    raise ValueError(
      f"{path.name} is damaged (header: {short_line(repr(error))}); copy it again"
    ) from error
  if size != 8 + length + ends:
    raise ValueError(
      f"{path.name} is damaged ({size} bytes, its header says {8 + length + ends}); copy it again"
    )
  return tensors


def _ends(entries: dict[str, dict]) -> int:
  """Returns the number of bytes of all values.

  Raises:
    ValueError: the values of a tensor leave a gap, overlap others or do not fit its shape.
  """
  end = 0
  for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
    begin, after = entry["data_offsets"]
    known = DTYPES.get(entry["dtype"])
    values = math.prod(entry["shape"])
    if begin != end or after < begin or (known and after - begin != values * known.itemsize):
      raise ValueError(f"{name} {entry['dtype']} {entry['shape']} at {begin} to {after}")
    end = after
  return end


def row_blocks(
  stored: StoredTensor, rows: Int[np.ndarray, "n"]
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields the ascending `rows` (entries of the first axis) in blocks: (number of its first row, [rows, values]).

  Each block is one range of the file of at most BLOCK_BYTES; nothing else is read.
  """
  dtype = DTYPES[stored.dtype]
  width = math.prod(stored.shape[1:])
  most = max(1, BLOCK_BYTES // (width * dtype.itemsize))
  with stored.file.open("rb") as file:
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
      for start in range(0, len(run), most):
        first, count = int(run[start]), min(most, len(run) - start)
        file.seek(stored.start + first * width * dtype.itemsize)
        data = file.read(count * width * dtype.itemsize)
        if len(data) < count * width * dtype.itemsize:
          raise OSError(f"{stored.file} became shorter while it was read")
        yield first, np.frombuffer(data, dtype).reshape(count, width)


class TensorPlan(NamedTuple):
  """Name, shape and type of a tensor to write."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def bytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def write_folder(
  folder: epath.Path,
  plan: Sequence[TensorPlan],
  arrays: Iterable[np.ndarray],
  max_file_bytes: int,
) -> None:
  """Writes `arrays`, one at a time, as the tensors of `plan`.

  A file has at most `max_file_bytes` of values (or one tensor). A single file is named `model.safetensors`; several are
  named as in transformers and get an index. The index is written last: a folder without it is incomplete. Files of an
  earlier checkpoint in the folder are replaced or removed.
  """
  folder.mkdir(parents=True, exist_ok=True)
  (folder / INDEX_FILE).unlink(missing_ok=True)
  parts = list(_split_into_files(plan, max_file_bytes))
  names = [PART_FILE.format(number, len(parts)) for number in range(1, len(parts) + 1)]
  if len(parts) == 1:
    names = [WEIGHTS_FILE]
  remaining = iter(arrays)
  for name, part in zip(names, parts, strict=True):
    with whole_file(folder / name) as file:
      write_file(file, part, remaining)
  for path in folder.iterdir():
    if re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", path.name) and path.name not in names:
      path.unlink()
  if len(parts) > 1:
    index = {
      "metadata": {
        "total_parameters": sum(math.prod(tensor.shape) for tensor in plan),
        "total_size": sum(tensor.bytes for tensor in plan),
      },
      "weight_map": {
        tensor.name: name for name, part in zip(names, parts, strict=True) for tensor in part
      },
    }
    write_whole(folder / INDEX_FILE, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _split_into_files(plan: Sequence[TensorPlan], max_bytes: int) -> Iterator[list[TensorPlan]]:
  part: list[TensorPlan] = []
  for tensor in plan:
    if part and sum(other.bytes for other in part) + tensor.bytes > max_bytes:
      yield part
      part = []
    part.append(tensor)
  yield part


def write_file(file: IO, part: Sequence[TensorPlan], arrays: Iterator[np.ndarray]) -> None:
  """Writes the next `arrays` as the tensors of `part` into one file."""
  # from_pretrained requires "pt", the name of the layout; torch is not needed.
  header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
  names = {dtype: name for name, dtype in DTYPES.items()}
  end = 0
  for tensor in part:
    header[tensor.name] = {
      "dtype": names[tensor.dtype],
      "shape": list(tensor.shape),
      "data_offsets": [end, end + tensor.bytes],
    }
    end += tensor.bytes
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # aligns the values
  file.write(len(text).to_bytes(8, "little") + text)
  for tensor in part:
    array = next(arrays)
    if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
      raise ValueError(f"the plan has {tensor}, but the array is {array.dtype} {array.shape}")
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(values), BLOCK_BYTES):
      file.write(values[start : start + BLOCK_BYTES].tobytes())
