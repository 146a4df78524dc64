"""HDF5 as h5py writes it for Keras, read without the HDF5 library.

A damaged file can make that library loop without end, and a hostile one can have it read other files
(external and virtual data sets, links) or unpack a thousand times its size (filters). Keras uses
none of that: groups of the first format, data sets that lie in the file as they are, attributes.
The field layouts are those of the HDF5 File Format Specification, version 3.0, sections II to IV.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, quoted
from gradscope.formats.budget import Budget
from gradscope.formats.tensors import Tensor, Tensors

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_OTHER = "is HDF5 of a kind that Keras does not write: load the model in Keras and save it again"
_DEEPEST = 32
_LONGEST_NAME = 1024
# Types of the messages in an object's header.
_SPACE, _TYPE, _EXTERNAL, _LAYOUT, _FILTERS, _ATTRIBUTE, _CONTINUATION, _GROUP = 1, 3, 7, 8, 11, 12, 16, 17
_LINKS = (2, 6)  # of groups of a later format
_SOFT_LINK = 2
_FLOATS = {(2, 5): "f2", (4, 8): "f4", (8, 11): "f8"}  # by bytes, exponent bits


@dataclass
class HDF5:
    """An HDF5 file in memory: its objects by path, found along hard links from the root.

    links : the paths of soft links, which are not followed.
    Raises InputError, or one of Python's errors for what is out of bounds.
    """

    data: bytes
    budget: Budget
    headers: dict[str, list[tuple[int, memoryview]]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # What a user keeps before it takes 512 bytes, or twice as many, or ...; addresses count from its end.
        starts = [0, *(1 << power for power in range(9, len(self.data).bit_length()))]
        block = next((start for start in starts if self.data.startswith(_SIGNATURE, start)), None)
        if block is None:
            raise InputError("does not begin as HDF5 does")
        self.data = self.data[block:]
        version, offsets, lengths = self.data[8], self.data[13], self.data[14]
        if version > 1 or (offsets, lengths) != (8, 8):
            raise InputError(_OTHER)
        start = 24 if version == 0 else 28
        base, _, end, _, _, root = self._numbers("<6Q", start)
        if base not in (0, block):
            raise InputError(_OTHER)
        if end - base > len(self.data):
            raise InputError(f"declares {end - base} bytes and has {len(self.data)}: truncated")
        self._find("", root, set(), 0)

    def tensors(self) -> Tensors:
        """The data sets of numbers by path."""
        found = {}
        for path, messages in self.headers.items():
            parts = dict(messages)
            if _LAYOUT in parts and _SPACE in parts and _TYPE in parts:
                self.budget.name(path)
                called, dtype = f"array {quoted(path)}", _dtype(parts[_TYPE])
                shape = _shape(parts[_SPACE])
                load = partial(self._load, called, parts, shape, dtype)
                found[path] = Tensor(called, load, math.prod(shape) * (dtype.itemsize if dtype else 0))
        for path in self.links:
            self.budget.name(path)
            called = f"array {quoted(path)}"
            found[path] = Tensor(called, partial(_unread, f"{called} is a link to another"))
        return found

    def text(self, path: str, name: str) -> str | None:
        """An attribute that is one string, None if there is no such."""
        for kind, message in self.headers.get(path, ()):
            self.budget.draw(size=len(message))  # many paths may be of one object
            if kind == _ATTRIBUTE and (found := self._attribute(bytes(message), name)) is not None:
                return found.rstrip(b"\0").decode("utf-8", "replace")
        return None

    def _numbers(self, layout: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(layout, self.data, at)

    def _expect(self, signature: bytes, at: int) -> None:
        self.budget.draw(4)
        if self.data[at : at + 4] != signature:
            raise InputError(f"lacks {signature.decode()} at byte {at}: damaged")

    def _find(self, path: str, address: int, above: set[int], depth: int) -> None:
        """Enter the object at ``address`` and, if it is a group, all that is in it."""
        if address in above or depth > _DEEPEST:
            raise InputError(f"has groups that hold themselves, or nest more than {_DEEPEST} deep")
        self.headers[path] = list(self._messages(address))
        for kind, message in self.headers[path]:
            if kind in _LINKS:
                raise InputError(_OTHER)
            if kind == _GROUP:
                tree, heap = struct.unpack_from("<2Q", message)
                self._expect(b"HEAP", heap)
                (names,) = self._numbers("<Q", heap + 24)
                for name, child in self._entries(tree, names, 0):
                    inside = f"{path}/{name}".lstrip("/")
                    self.budget.draw(size=len(inside))
                    if len(inside) > _LONGEST_NAME:
                        raise InputError(f"has a path of more than {_LONGEST_NAME} characters")
                    if child is None:
                        self.links.append(inside)
                    else:
                        self._find(inside, child, above | {address}, depth + 1)

    def _messages(self, address: int) -> Iterator[tuple[int, memoryview]]:
        """The messages in an object's header, those of its continuation blocks included."""
        version, _, _, _, size = self._numbers("<BBHII", address)
        if version != 1:
            raise InputError(_OTHER)
        waiting = [(address + 16, size)]
        while waiting:
            at, size = waiting.pop()
            end = at + size
            while at + 8 <= end:
                self.budget.draw(4)
                kind, length, flags = self._numbers("<HHB", at)
                message = memoryview(self.data)[at + 8 : at + 8 + length]
                if flags & 2 and kind in (_SPACE, _TYPE, _LAYOUT):
                    raise InputError(_OTHER)
                if kind == _CONTINUATION:
                    waiting.append(struct.unpack_from("<2Q", message))
                yield kind, message
                at += 8 + length

    def _entries(self, node: int, names: int, depth: int) -> Iterator[tuple[str, int | None]]:
        """Names and addresses in a group, the leaves of its tree; a soft link has none."""
        if depth > _DEEPEST:
            raise InputError(f"has a tree of more than {_DEEPEST} levels: damaged")
        self._expect(b"TREE", node)
        level, used = self._numbers("<BH", node + 5)
        for k in range(used):
            (child,) = self._numbers("<Q", node + 32 + 16 * k)
            if level:
                yield from self._entries(child, names, depth + 1)
                continue
            self._expect(b"SNOD", child)
            (count,) = self._numbers("<H", child + 6)
            for entry in range(child + 8, child + 8 + 40 * count, 40):
                self.budget.draw(4)
                offset, address, cached = self._numbers("<QQI", entry)
                start = names + offset
                end = self.data.index(b"\0", start, start + _LONGEST_NAME)
                name = self.data[start:end].decode("utf-8", "replace")
                yield name, None if cached == _SOFT_LINK else address

    def _attribute(self, message: bytes, wanted: str) -> bytes | None:
        """The value of a string attribute, if that is its name."""
        version, _, name_size, type_size, space_size = struct.unpack_from("<BBHHH", message)
        at, pad = (9, 1) if version == 3 else (8, 8 if version == 1 else 1)
        starts = [at]
        for size in (name_size, type_size, space_size):
            starts.append(starts[-1] + -(-size // pad) * pad)
        name, kind = message[at : at + name_size].rstrip(b"\0"), message[starts[1] : starts[2]]
        if name != wanted.encode() or math.prod(_shape(message[starts[2] : starts[3]])) != 1:
            return None
        value = message[starts[3] :]
        if kind[0] & 15 == 3:  # a string of fixed length
            return value
        if kind[0] & 15 == 9 and kind[1] & 15 == 1:  # one of any length, kept in a heap
            length, heap, index = struct.unpack_from("<IQI", value)
            return self._from_heap(heap, index)[:length]
        return None

    def _from_heap(self, heap: int, wanted: int) -> bytes:
        self._expect(b"GCOL", heap)
        (size,) = self._numbers("<Q", heap + 8)
        at, end = heap + 16, heap + size
        while at + 16 <= end:
            self.budget.draw(4)
            index, length = self._numbers("<H6xQ", at)
            if index == wanted:
                return self.data[at + 16 : at + 16 + length]
            at += 16 + -(-length // 8) * 8
        raise InputError("has an attribute whose text is not in the file: damaged")

    def _load(
        self, called: str, parts: dict[int, memoryview], shape: tuple[int, ...], dtype: np.dtype[Any] | None
    ) -> Array:
        if dtype is None:
            _unread(f"{called} holds no real numbers")
        version, layout = parts[_LAYOUT][:2]
        if _FILTERS in parts or _EXTERNAL in parts or version not in (3, 4) or layout not in (0, 1):
            raise InputError(f"{called} is packed or kept outside the file, which Keras does not do")
        size = math.prod(shape) * dtype.itemsize
        if layout == 0:
            (held,), at, data = struct.unpack_from("<H", parts[_LAYOUT], 2), 4, parts[_LAYOUT]
        else:
            (at, held), data = struct.unpack_from("<2Q", parts[_LAYOUT], 2), memoryview(self.data)
        if held != size or at + held > len(data):
            raise InputError(
                f"{called} declares {size} bytes and the file holds {held}: truncated or damaged"
            )
        return np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)


def _unread(what: str) -> NoReturn:
    """The error for what is there and is not read: to leave it out would be to read another model."""
    raise InputError(f"{what}, which Keras does not write: load the model in Keras and save it again")


def _shape(space: bytes | memoryview) -> tuple[int, ...]:
    """The extents of a dataspace, () for a single value."""
    version, rank = space[:2]
    if rank > 32 or version not in (1, 2):
        raise InputError("has an array of more than 32 axes: damaged")
    return struct.unpack_from(f"<{rank}Q", space, 8 if version == 1 else 4)


def _dtype(kind: bytes | memoryview) -> np.dtype[Any] | None:
    """The dtype of a data set of numbers, None for others; bfloat16 is two bytes without a meaning."""
    what, bits = kind[0] & 15, kind[1]
    (size,) = struct.unpack_from("<I", kind, 4)
    order = ">" if bits & 1 else "<"
    if what == 0 and size in (1, 2, 4, 8):
        return np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
    if what == 1 and (size, kind[13]) in _FLOATS:
        return np.dtype(f"{order}{_FLOATS[size, kind[13]]}")
    brain: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return brain if (what, size) == (5, 2) else None
