"""Finds the tensors of a PyTorch file (`pytorch_model.bin`, `*.pt`) without running the code that a pickle may hold.

The format since PyTorch 1.6 is an uncompressed zip: `NAME/data.pkl` pickles the state dict, whose tensors refer to
storages, the files `NAME/data/0`, `NAME/data/1`, … (torch/serialization.py, `_save`). Unpickling here knows four names:
OrderedDict, two functions that rebuild tensors, and the types of storages. Every other name is refused, so nothing can
be called. The result is each tensor's place in the file, which `safetensors_folder.row_blocks` reads.
"""

import collections
import io
import math
import pickle
import re
import zipfile
from typing import IO, Any, NamedTuple

from etils import epath

from spatial_vlm.huggingface.safetensors_folder import StoredTensor
from spatial_vlm.text import short_line

_DTYPES = {
  "FloatStorage": ("F32", 4),
  "HalfStorage": ("F16", 2),
  "BFloat16Storage": ("BF16", 2),
  "DoubleStorage": ("F64", 8),
  "LongStorage": ("I64", 8),
  "IntStorage": ("I32", 4),
}
"""Class of a storage → name of its type, as in safetensors, and bytes of a value."""
_LONGEST_PICKLE = 100_000_000
_ALLOWED = "OrderedDict, torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter, storages"


class _StorageType(NamedTuple):
  dtype: str
  itemsize: int


class _Storage(NamedTuple):
  type: _StorageType
  start: int
  """Offset in the file, in bytes."""
  values: int


def torch_inventory(path: epath.Path) -> dict[str, StoredTensor]:
  """Returns the tensors of the state dict in a PyTorch file, local or remote (gs://); no value is read.

  Raises:
    ValueError: the file is damaged, of the format before PyTorch 1.6 or not a plain state dict, or its pickle names
      something other than tensors. Nothing of it was run.
  """
  with path.open("rb") as file:
    if file.read(4) != b"PK\x03\x04":
      raise ValueError(
        f"{path.name} is not a zip file: PyTorch wrote it before version 1.6, or it is damaged. Such a pickle is never"
        " opened here; save it again with torch.save of a newer PyTorch, or as safetensors"
      )
    try:
      with zipfile.ZipFile(file) as archive:
        state = _Unpickler(path, file, archive).load()
        return {
          name: StoredTensor(path, *place) for name, place in _tensors(path.name, state).items()
        }
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
      raise ValueError(f"{path.name} is damaged ({error}); copy it again") from error


def _tensors(file: str, state: Any) -> dict[str, Any]:
  if not isinstance(state, dict) or not all(
    isinstance(name, str) and isinstance(tensor, _Tensor) for name, tensor in state.items()
  ):
    raise ValueError(f"{file} is not a state dict (names → tensors); save model.state_dict()")
  return {name: (tensor.dtype, tensor.shape, tensor.start) for name, tensor in state.items()}


class _Tensor(NamedTuple):
  dtype: str
  shape: tuple[int, ...]
  start: int


class _Unpickler(pickle.Unpickler):
  """Unpickles a state dict to `_Tensor`s; refuses every name that it does not know."""

  def __init__(self, path: epath.Path, file: IO[bytes], archive: zipfile.ZipFile):
    self._name, self._file = path.name, file
    self._entries = {entry.filename: entry for entry in archive.infolist()}
    if len(self._entries) != len(archive.infolist()):
      raise ValueError(f"{path.name} is damaged (two entries of one name); copy it again")
    pickles = [name for name in self._entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
      raise ValueError(f"{path.name} has {len(pickles)} entries NAME/data.pkl; PyTorch writes one")
    self._root = pickles[0].removesuffix("data.pkl")
    order = self._entries.get(self._root + "byteorder")
    if order and (order.file_size > 16 or archive.read(order) != b"little"):
      raise ValueError(f"{path.name} holds big-endian values; save it on a little-endian machine")
    if self._entries[pickles[0]].file_size > _LONGEST_PICKLE:
      raise ValueError(f"{path.name}: its pickle is larger than {_LONGEST_PICKLE} bytes")
    super().__init__(io.BytesIO(archive.read(pickles[0])))

  def load(self) -> Any:
    try:
      return super().load()
    except ValueError:
      raise
    except Exception as error:  # a hostile pickle can raise anything
      raise ValueError(
        f"{self._name}: its pickle cannot be read ({short_line(repr(error))})"
      ) from error

  def find_class(self, module_name: str, global_name: str) -> Any:
    # None of these has attributes that the pickle could set.
    name = f"{module_name}.{global_name}"
    if name == "collections.OrderedDict":
      return collections.OrderedDict
    if name == "torch._utils._rebuild_tensor_v2":
      return _RebuildTensor()
    if name == "torch._utils._rebuild_parameter":
      return _RebuildParameter()
    if module_name == "torch" and global_name in _DTYPES:
      return _StorageType(*_DTYPES[global_name])
    raise ValueError(
      f"{self._name}: its pickle names {name!r}, which could run code and was not called; known are {_ALLOWED}. Load "
      "the file in a place that you trust and save its weights as safetensors"
    )

  def persistent_load(self, pid: Any) -> _Storage:
    match pid:
      case ("storage", _StorageType() as kind, str(key), str(), int(values)) if values >= 0:
        return _Storage(kind, self._start(key, values * kind.itemsize), values)
    raise ValueError(f"{self._name}: its pickle refers to {pid!r}, which is not a storage")

  def _start(self, key: str, size: int) -> int:
    """Returns the offset of a storage's values, which follow the entry's own header."""
    entry = self._entries.get(f"{self._root}data/{key}")
    if not re.fullmatch(r"[0-9]+", key) or entry is None:
      raise ValueError(f"{self._name}: its pickle names the storage {key!r}, which is not there")
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
      raise ValueError(f"{self._name}: storage {key} is compressed or encrypted; PyTorch does not")
    if entry.file_size != size:
      raise ValueError(
        f"{self._name} is damaged (storage {key} has {entry.file_size} bytes, {size} are expected); copy it again"
      )
    self._file.seek(entry.header_offset)
    header = self._file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
      raise ValueError(f"{self._name} is damaged (header of storage {key}); copy it again")
    names = (int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little"))
    return entry.header_offset + 30 + sum(names)


class _RebuildTensor:
  """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""

  __slots__ = ()

  def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
      raise ValueError("a tensor is not built from a storage and sizes")
    size, values = tuple(size), math.prod(size)
    contiguous = tuple(math.prod(size[axis + 1 :]) for axis in range(len(size)))
    strides = zip(size, stride, contiguous, strict=True)
    if any(count > 1 and step != expected for count, step, expected in strides):
      raise ValueError(f"a tensor {size} has strides {stride}; save contiguous tensors")
    if offset + values > storage.values:
      raise ValueError(f"a tensor {size} exceeds its storage of {storage.values} values")
    return _Tensor(storage.type.dtype, size, storage.start + offset * storage.type.itemsize)


class _RebuildParameter:
  """torch._utils._rebuild_parameter(data, requires_grad, hooks)."""

  __slots__ = ()

  def __call__(self, data: Any, *_: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
      raise ValueError("a parameter is not built from a tensor")
    return data
