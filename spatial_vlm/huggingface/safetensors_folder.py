"""Folders of safetensors files: checked by their headers, read by ranges of rows, written as a stream.

A file is the length n of its header (8 bytes, little endian), n bytes of JSON that give each tensor's dtype, shape and
place, and the values (https://huggingface.co/docs/safetensors). Several files come with an index, which tells the
file of each tensor. Only ranges are read, so a folder may be local or remote (gs://) and larger than the memory;
nothing is unpickled.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from jaxtyping import Int

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PART_FILE = "model-{:05d}-of-{:05d}.safetensors"
DTYPES = {
  "F32": np.dtype(np.float32),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F16": np.dtype(np.float16),
}
"""Names in a header -> types that weights may have."""
BLOCK_BYTES = 16 << 20
"""Read or written at once, at most (or one row)."""
_LONGEST_HEADER = 100_000_000


class Stored(NamedTuple):
  """A tensor in a file."""

  file: epath.Path
  dtype: str
  """As the header writes it."""
  shape: tuple[int, ...]
  start: int
  """Bytes of the file before its values."""


class Inventory(NamedTuple):
  """What a folder holds, as far as its headers can be read."""

  tensors: dict[str, Stored]
  problems: list[str]
  lost: set[str]
  """Tensors that the index puts into files that are missing or damaged."""


def inventory(folder: epath.Path) -> Inventory:
  """Reads the index and the headers, and compares them with each other and with the sizes of the files.

  Raises:
    FileNotFoundError: there are no safetensors.
    ValueError: the index, or the only file, cannot be read, so that nothing is known of the tensors.
  """
  if not (folder / INDEX_FILE).is_file():
    if not (folder / WEIGHTS_FILE).is_file():
      raise FileNotFoundError(f"{folder} lacks {WEIGHTS_FILE}.{_pickled(folder)}")
    return Inventory(_header(folder / WEIGHTS_FILE), [], set())
  indexed = _index(folder / INDEX_FILE)
  found, problems, lost = {}, [], set()
  for name in sorted(set(indexed.values())):
    named = {tensor for tensor, file in indexed.items() if file == name}
    try:
      held = _part(folder, name)
    except ValueError as error:
      problems.append(f"{error} ({len(named)} tensors)")
      lost |= named
      continue
    problems += [
      f"{INDEX_FILE} puts {tensor} into {name}, which does not hold it"
      for tensor in sorted(named - held.keys())
    ]
    problems += [
      f"{name} holds {tensor}, which {INDEX_FILE} does not put there"
      for tensor in sorted(held.keys() - named)
    ]
    lost |= named - held.keys()
    found |= {tensor: held[tensor] for tensor in named & held.keys()}
  return Inventory(found, problems, lost)


def _index(path: epath.Path) -> dict[str, str]:
  try:
    weight_map = json.loads(path.read_bytes())["weight_map"]
    if not all(isinstance(file, str) for file in weight_map.values()):
      raise TypeError("a file's name that is no text")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} is damaged ({error!r}); copy it again") from error
  return weight_map


def _part(folder: epath.Path, name: str) -> dict[str, Stored]:
  """Tensors of a file that the index names; ValueError says what is wrong with it."""
  if not re.fullmatch(r"[\w.-]+\.safetensors", name):
    raise ValueError(
      f"{INDEX_FILE} names {name!r}, which is no safetensors file of this folder and is not opened"
    )
  if not (folder / name).is_file():
    raise ValueError(f"{name} is missing")
  return _header(folder / name)


def _pickled(folder: epath.Path) -> str:
  names = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
  if not names:
    return ""
  return (
    f" It has {', '.join(names)}, but pickled weights can run code when opened and are never read here: load the"
    " folder with transformers in a place you trust and save it again with save_pretrained, which writes safetensors."
  )


def _header(path: epath.Path) -> dict[str, Stored]:
  """The tensors of a file; ValueError when its header is unreadable or its size is another than the header says."""
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
      name: Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + begin)
      for name, entry in entries.items()
      for begin, _ in [entry["data_offsets"]]
    }
    ends = _ends(entries)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path.name} is damaged (header: {error!r}); copy it again") from error
  if size != 8 + length + ends:
    raise ValueError(
      f"{path.name} is damaged ({size} bytes, where its header speaks of {8 + length + ends}); copy it again"
    )
  return tensors


def _ends(entries: dict[str, dict]) -> int:
  """Bytes of all values, which must follow each other without a gap; ValueError names the tensor where they do not."""
  end = 0
  for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
    begin, after = entry["data_offsets"]
    known = DTYPES.get(entry["dtype"])
    values = math.prod(entry["shape"])
    if begin != end or after < begin or (known and after - begin != values * known.itemsize):
      raise ValueError(f"{name} {entry['dtype']} {entry['shape']} at {begin} to {after}")
    end = after
  return end


def row_blocks(stored: Stored, rows: Int[np.ndarray, "n"]) -> Iterator[tuple[int, np.ndarray]]:
  """The rows (entries of the first axis) `rows`, ascending, as (number of the first row, [rows, values of a row]).

  Each block is one range of the file of at most BLOCK_BYTES, and nothing else is read. A block is valid until the next
  is asked for.
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


class Planned(NamedTuple):
  """A tensor to be written."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def bytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def write_folder(
  folder: epath.Path,
  plan: Sequence[Planned],
  arrays: Iterable[np.ndarray],
  max_file_bytes: int,
) -> None:
  """Writes `arrays`, those of `plan` in its order, one at a time.

  Files hold at most `max_file_bytes` of values (or one tensor). One file is `model.safetensors`; several are named as
  transformers names them and get an index, which is written last: without it the folder is not complete. Files of an
  earlier checkpoint in the folder are removed.
  """
  folder.mkdir(parents=True, exist_ok=True)
  earlier = rf"{INDEX_FILE}|model(-\d{{5}}-of-\d{{5}})?\.safetensors"
  for path in sorted(folder.iterdir(), reverse=True):  # the index, then the files that it speaks of
    if re.fullmatch(earlier, path.name):
      path.unlink()
  parts = list(_cut(plan, max_file_bytes))
  names = [PART_FILE.format(number, len(parts)) for number in range(1, len(parts) + 1)]
  if len(parts) == 1:
    names = [WEIGHTS_FILE]
  remaining = iter(arrays)
  for name, part in zip(names, parts, strict=True):
    with (folder / name).open("wb") as file:
      _write_file(file, part, remaining)
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
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _cut(plan: Sequence[Planned], max_bytes: int) -> Iterator[list[Planned]]:
  part: list[Planned] = []
  for tensor in plan:
    if part and sum(other.bytes for other in part) + tensor.bytes > max_bytes:
      yield part
      part = []
    part.append(tensor)
  yield part


def _write_file(file: BinaryIO, part: list[Planned], arrays: Iterator[np.ndarray]) -> None:
  # "pt" is the layout's name, required by from_pretrained; no torch is involved
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
  text += b" " * (-len(text) % 8)  # so that the values are aligned
  file.write(len(text).to_bytes(8, "little") + text)
  for tensor in part:
    array = next(arrays)
    if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
      raise ValueError(f"{tensor} was planned, {array.dtype} {array.shape} came to be written")
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(values), BLOCK_BYTES):
      file.write(values[start : start + BLOCK_BYTES].tobytes())
