"""Flax' ``.msgpack`` files: nested maps of arrays, as ``flax.serialization`` writes them.

Read without the msgpack library, which makes a Python object of every byte a hostile file may hold;
here nothing is made but the names of the arrays. The format is that of the MessagePack specification.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, quoted
from gradscope.formats.budget import Budget
from gradscope.formats.pickles import joined
from gradscope.formats.tensors import Tensor, Tensors, opened

_ARRAY = 1  # the extension type of an array: [shape, dtype, bytes]
_DEEPEST = 24
# First byte -> what follows: a number, or the length of something, in this layout.
_LAYOUTS = {
    **dict.fromkeys((0xC0, 0xC2, 0xC3), ("number", "")),  # nil, false, true
    **{0xC4 + k: ("bytes", layout) for k, layout in enumerate((">B", ">H", ">I"))},
    **{0xC7 + k: ("extension", layout) for k, layout in enumerate((">B", ">H", ">I"))},
    **{0xCA + k: ("number", f">{layout}") for k, layout in enumerate("fdBHIQbhiq")},
    **{0xD9 + k: ("text", layout) for k, layout in enumerate((">B", ">H", ">I"))},
    **{0xDC + k: ("list", layout) for k, layout in enumerate((">H", ">I"))},
    **{0xDE + k: ("map", layout) for k, layout in enumerate((">H", ">I"))},
}


@contextmanager
def open_msgpack(path: PathLike, max_size: int | None = None) -> Iterator[Tensors]:
    """The arrays in the file by name, the keys above them joined by dots; max_size : bytes it may have."""
    with opened(path, ".msgpack", max_size) as (file, budget):
        budget.unpack(budget.size)
        reader = _Reader(memoryview(file.read()), budget)
        tensors = {name: _tensor(name, budget, *packed) for name, packed in reader.extensions("", 0)}
        reader.expect_end()
        yield tensors


class _Reader:
    """A cursor in a msgpack file."""

    def __init__(self, data: memoryview, budget: Budget) -> None:
        self.data, self.at, self.budget = data, 0, budget

    def item(self) -> tuple[str, Any]:
        """The next item: its kind and its value, of a list or a map the number of entries."""
        self.budget.draw(4)
        first = self._take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return "number", first - 256 * (first >= 0xE0)
        if first < 0xA0:
            return ("map" if first < 0x90 else "list"), first & 15
        if first < 0xC0:
            return "text", str(self._take(first & 31), "utf-8")
        if 0xD4 <= first <= 0xD8:
            return "extension", (self._take(1)[0], self._take(1 << first - 0xD4))
        if first not in _LAYOUTS:
            raise InputError(f"has the byte {first:#x} where an item begins: damaged")
        kind, layout = _LAYOUTS[first]
        number = next(iter(struct.unpack(layout, self._take(struct.calcsize(layout)))), None)
        if kind == "extension":
            return kind, (self._take(1)[0], self._take(number))
        if kind in ("bytes", "text"):
            held = self._take(number)
            return kind, held if kind == "bytes" else str(held, "utf-8")
        return kind, number

    def extensions(self, name: str, depth: int) -> Iterator[tuple[str, tuple[int, memoryview]]]:
        """Every extension in the next item, with the keys above it and what it holds."""
        if depth > _DEEPEST:
            raise InputError(f"nests more than {_DEEPEST} deep")
        kind, value = self.item()
        if depth == 0 and kind != "map":
            raise InputError(f"holds a {kind}, expected a tree of parameters")
        if kind == "extension":
            yield name, value
        for k in range(value if kind in ("map", "list") else 0):
            key = self.item()[1] if kind == "map" else k
            yield from self.extensions(joined(name, key, self.budget), depth + 1)

    def expect_end(self) -> None:
        """Raise InputError where more follows than the item that a file is."""
        if self.at < len(self.data):
            raise InputError(f"goes on after its end at byte {self.at}: damaged")

    def _take(self, count: Any) -> memoryview:
        start, self.at = self.at, self.at + int(count)
        if self.at > len(self.data):
            raise InputError(f"ends at byte {len(self.data)} in the middle of an item: truncated")
        return self.data[start : self.at]


def _tensor(name: str, budget: Budget, code: int, data: memoryview) -> Tensor:
    budget.name(name)
    called = f"array {quoted(name)}"
    return Tensor(called, partial(_load, called, budget, code, data), len(data))


def _load(called: str, budget: Budget, code: int, data: memoryview) -> Array:
    if code != _ARRAY:
        raise InputError(f"{called} has msgpack extension {code}, expected an array of Flax")
    reader = _Reader(data, budget)
    if reader.item() != ("list", 3):
        raise InputError(f"{called} is no array of Flax: damaged")
    kind, axes = reader.item()
    shape = tuple(reader.item()[1] for _ in range(min(axes, 33) if kind == "list" else 0))
    name, held = reader.item()[1], reader.item()[1]
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(str(name))
    if dtype.hasobject or any(type(size) is not int or size < 0 for size in shape):
        raise InputError(f"{called} has dtype {quoted(name)} and shape {shape!r:.80}: damaged")
    if math.prod(shape) * dtype.itemsize != len(held):
        raise InputError(f"{called} has shape {shape!r:.80} and {len(held)} bytes: truncated or damaged")
    return np.frombuffer(held, dtype).reshape(shape)
