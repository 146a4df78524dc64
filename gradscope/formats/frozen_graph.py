"""Graphs that TensorFlow has frozen (``.pb``): the constants among their nodes, which weights have become.

Field numbers are those of graph.proto, node_def.proto, attr_value.proto, tensor.proto and tensor_shape.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, quoted
from gradscope.formats.budget import Budget
from gradscope.formats.tensors import Tensor, Tensors, opened

# DataType: its dtype, and the field that has the values where tensor_content has not.
_DTYPES: dict[int, tuple[Any, int]] = {
    1: ("f4", 5),
    2: ("f8", 6),
    3: ("i4", 7),
    9: ("i8", 10),
    14: (ml_dtypes.bfloat16, 13),
    19: ("f2", 13),
}
_NODE, _NAME, _OP, _ATTR, _KEY, _VALUE, _TENSOR = 1, 1, 2, 5, 1, 2, 8
_DTYPE, _SHAPE, _CONTENT = 1, 2, 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Of the scalars that a graph computes with few are of use, and none is a weight.
_LARGEST_VARINT = 10
Fields = Iterator[tuple[int, int, Any]]


@contextmanager
def open_frozen(path: PathLike, max_size: int | None = None) -> Iterator[Tensors]:
    """The constants of a frozen graph by the names of their nodes; max_size : bytes that they may have."""
    with opened(path, "frozen TensorFlow graph", max_size) as (file, budget):
        budget.unpack(budget.size)
        tensors = dict(_constants(memoryview(file.read()), budget))
        if not tensors:
            raise InputError(
                "holds no constants, expected a frozen graph; of a SavedModel load the model in TensorFlow "
                "and model.save_weights('model.weights.h5')"
            )
        budget.unpack(sum(tensor.size for tensor in tensors.values()))
        yield tensors


def _constants(graph: memoryview, budget: Budget) -> Iterator[tuple[str, Tensor]]:
    for field, _, node in _fields(graph, budget):
        if field != _NODE or not isinstance(node, memoryview):
            continue
        parts = {f: v for f, _, v in _fields(node, budget) if f in (_NAME, _OP) and isinstance(v, memoryview)}
        if bytes(parts.get(_OP, b"")) == b"Const":
            name = bytes(parts.get(_NAME, b"")).decode("utf-8", "replace")
            if (tensor := _tensor(node, name, budget)) is not None:
                yield name, tensor


def _tensor(node: memoryview, name: str, budget: Budget) -> Tensor | None:
    """The value of a node Const, None if it is no number."""
    for field, _, entry in _fields(node, budget):
        if field != _ATTR:
            continue
        pair = {f: v for f, _, v in _fields(entry, budget)}
        if bytes(pair.get(_KEY, b"")) != b"value":
            continue
        value = {f: v for f, _, v in _fields(pair[_VALUE], budget)}.get(_TENSOR)
        if not isinstance(value, memoryview):
            return None
        proto = {f: v for f, _, v in _fields(value, budget)}
        if proto.get(_DTYPE) not in _DTYPES:
            return None
        shape = tuple(_extents(proto.get(_SHAPE, memoryview(b"")), budget))
        dtype = np.dtype(_DTYPES[proto[_DTYPE]][0])
        called = f"constant {quoted(name)}"
        load = partial(_values, value, proto[_DTYPE], shape, called, budget)
        return Tensor(called, load, math.prod(shape) * dtype.itemsize)
    return None


def _extents(shape: memoryview, budget: Budget) -> Iterator[int]:
    """The sizes of the axes, which stand in messages of their own; one that is missing is 0."""
    for field, _, axis in _fields(shape, budget):
        if field == 2:
            yield next((int(v) for f, _, v in _fields(axis, budget) if f == 1), 0)


def _values(proto: memoryview, kind: int, shape: tuple[int, ...], called: str, budget: Budget) -> Array:
    """The numbers of a TensorProto: bytes, or one by one, of which the last may stand for all that follow."""
    dtype, own = np.dtype(_DTYPES[kind][0]), _DTYPES[kind][1]
    count, data = math.prod(shape), b""
    for field, wire, value in _fields(proto, budget):
        if field == _CONTENT:
            data = bytes(value)
        elif field == own and wire == _BYTES and own in (5, 6):
            data += bytes(value)
        elif field == own:
            bits = [value] if wire != _BYTES else list(_varints(value))
            data += b"".join(_bits(one, dtype, wire) for one in bits)
    if 0 < len(data) < count * dtype.itemsize:
        last = data[-dtype.itemsize :]
        data += last * (count - len(data) // dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise InputError(f"{called} has {len(data)} bytes, expected {shape}: truncated or damaged")
    return np.frombuffer(data, dtype).reshape(shape)


def _bits(value: Any, dtype: np.dtype[Any], wire: int) -> bytes:
    """A number that stands alone: the bytes of a float, or a varint that is cut to what it is of."""
    if wire in (_FIXED32, _FIXED64):
        return bytes(memoryview(value))
    size: int = dtype.itemsize
    return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _fields(message: memoryview, budget: Budget) -> Fields:
    """(number, wire type, value) of every field of a message, in their order."""
    place = 0
    while place < len(message):
        budget.draw()
        key, place = _varint(message, place)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield field, wire, value
            continue
        if wire == _BYTES:
            size, place = _varint(message, place)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise InputError("is no graph of TensorFlow, or damaged")
        if place + size > len(message):
            raise InputError("has a message that ends behind it: truncated or damaged")
        yield field, wire, message[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for k in range(_LARGEST_VARINT):
        if place + k >= len(data):
            break
        value |= (data[place + k] & 127) << (7 * k)
        if data[place + k] < 128:
            return value, place + k + 1
    raise InputError("has a number without an end: truncated or damaged")
