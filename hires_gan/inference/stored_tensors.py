"""Tensors and numbers inside a pickle, as torch and numpy write them, for `closed_pickle`.

A tensor that is pickled on its own, not by `torch.save`, carries its values as a string of bytes in torch's older file
format: four pickles (a magic number, a version, a description of the machine, the storage's kind and size), the list of
storages, and the values. All of it is checked before a tensor is made, and a tensor is never larger than its storage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hires_gan.inference.closed_pickle import Maker, Name, Source, load

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_MOST_DIMENSIONS = 8

_KINDS: dict[str, type[np.generic]] = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}


@dataclass(frozen=True)
class Storage:
    """The values behind a tensor, as they lie in the file.

    Attributes:
        data: Their bytes, little-endian.
        kind: Of which type they are.
        count: How many they are.
    """

    data: memoryview
    kind: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is not made yet: a checked view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def tensor(self) -> Tensor:
        """A copy of the values, `shape`, in the storage's dtype."""
        size = self.storage.kind.itemsize
        flat = np.frombuffer(self.storage.data, self.storage.kind)[self.offset :]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, [stride * size for stride in self.strides])
        return torch.from_numpy(np.array(view))


class NumberType:
    """numpy's type of a number, such as f8.

    Args:
        code: Kind and bytes.
        align: Of structures; not used.
        copy: Not used.

    Raises:
        ValueError: If it is no number.
    """

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if type(code) is not str or not re.fullmatch(r"[fiu][1248]|b1", code) or code == "f1":
            raise ValueError("numpy's type is that of no number")
        self.type = np.dtype(code)

    def restore(self, state: Any) -> None:
        """Take numpy's description, which must be that of a plain, little-endian number."""
        if type(state) is not tuple or state[1:2] not in (("<",), ("|",)) or any(part for part in state[2:5]):
            raise ValueError("numpy's type is no plain little-endian number")


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor) or hooks:
        raise ValueError("a parameter is no tensor")
    return data


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any = False, hooks: Any = None
) -> StoredTensor:
    """A view of a storage; refused unless every element lies in it, and unless it has at most as many elements."""
    if not isinstance(storage, Storage) or hooks:
        raise ValueError("a tensor has no storage")
    shape, strides = _numbers(shape), _numbers(strides)
    if type(offset) is not int or offset < 0 or len(shape) != len(strides):
        raise ValueError("a tensor's offset, size and strides do not fit together")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if count > storage.count or (count and last >= storage.count) or offset > storage.count:
        raise ValueError(
            f"a tensor of the size {list(shape)}, strides {list(strides)} and offset {offset} reaches beyond its "
            f"storage of {storage.count} values"
        )
    return StoredTensor(storage, offset, shape, strides)


def _size(sizes: Any) -> tuple[int, ...]:
    return _numbers(sizes)


def _numbers(values: Any) -> tuple[int, ...]:
    if type(values) is not tuple or len(values) > _MOST_DIMENSIONS:
        raise ValueError(f"sizes and strides are up to {_MOST_DIMENSIONS} whole numbers")
    if any(type(value) is not int or not 0 <= value < 2**48 for value in values):
        raise ValueError("sizes and strides are whole numbers of 0 or more")
    return values


def _storage(data: Any) -> Storage:
    """What torch's older file format holds, if it is one storage on its own."""
    if not isinstance(data, bytes | memoryview):
        raise ValueError("a storage is no string of bytes")
    if bytes(data[:2]) == b"PK":
        raise ValueError("a storage is in torch's newer file format, which these files do not have")
    source = Source(memoryview(data), "a storage")
    magic, version, machine = (load(source, {}) for _ in range(3))
    if magic != _MAGIC or version != _VERSION or type(machine) is not dict or machine.get("little_endian") is not True:
        raise ValueError("a storage is not in torch's older file format, little-endian")
    described = load(source, dict.fromkeys(_KINDS), _described)
    keys = load(source, {})
    if not isinstance(described, _Described) or keys != [described.key]:
        raise ValueError("a storage is not one storage on its own")
    values = _values(source, described)
    if source.position != len(source.data):
        raise ValueError("a storage has bytes behind its values")
    return values


@dataclass(frozen=True)
class _Described:
    kind: np.dtype[Any]
    key: str
    count: int


def _described(identity: Any) -> _Described:
    """What torch writes for a storage: its class, a key, a device, the number of values, and no view."""
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage" or any(identity[5:]):
        raise ValueError("a persistent id is no storage")
    kind, key, _, count = identity[1:5]
    if type(kind) is not Name or type(key) is not str or type(count) is not int or count < 0:
        raise ValueError("a persistent id is no storage")
    return _Described(np.dtype(_KINDS[kind.path]).newbyteorder("<"), key, count)


def _values(source: Source, described: _Described) -> Storage:
    """The number of values once more, and the values."""
    if int.from_bytes(source.read(8), "little") != described.count:
        raise ValueError("a storage has another number of values than it says")
    start = source.position
    source.read(described.count * described.kind.itemsize)
    return Storage(source.data[start : source.position], described.kind, described.count)


def _number(kind: Any, data: Any) -> float | int | bool:
    """A number that numpy wrote, as Python's."""
    if not isinstance(kind, NumberType) or not isinstance(data, bytes) or len(data) != kind.type.itemsize:
        raise ValueError("numpy's number is none")
    number: float | int | bool = np.frombuffer(data, kind.type.newbyteorder("<"))[0].item()
    return number


TENSORS: Mapping[str, Maker | None] = {
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    "torch.Size": _size,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
    "numpy.dtype": NumberType,
}
"""What the names mean with which torch and numpy write tensors and numbers."""
