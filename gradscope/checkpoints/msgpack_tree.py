"""Flax' ``.msgpack`` files: nested dicts of arrays, as ``flax.serialization`` writes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gradscope.checkpoints.pickles import leaves
from gradscope.errors import InputError
from gradscope.files import PathLike, Tensor, Tensors, allowed, check_size, library, opened, quoted

_ARRAY = 1  # the extension type of an array: [shape, dtype, bytes]
_VALUES = 2**20


@contextmanager
def open_msgpack(path: PathLike, max_size: int | None = None) -> Iterator[Tensors]:
    """The arrays in the file by name, the keys above them joined by dots; max_size : bytes it may have."""
    msgpack = library("msgpack", "flax", path)
    with opened(path, ".msgpack") as (file, size):
        check_size(size, allowed(size, max_size))
        # Flax has no lists but shapes; the library makes room for as many items as a list claims.
        limits = {"max_array_len": 64, "max_map_len": min(size, 2**16)}
        tree = msgpack.unpackb(file.read(), ext_hook=_Packed, strict_map_key=False, **limits)
        if not isinstance(tree, dict):
            raise InputError(f"holds {quoted(type(tree).__name__)}, expected a tree of parameters")
        arrays = [(name, value) for name, value in leaves(tree, _VALUES) if isinstance(value, _Packed)]
        yield {name: _tensor(value, f"array {quoted(name)}", msgpack) for name, value in arrays}


class _Packed:
    """A msgpack extension, not unpacked yet."""

    def __init__(self, code: int, data: bytes) -> None:
        self.code, self.data = code, data


def _tensor(packed: _Packed, called: str, msgpack: Any) -> Tensor:
    return Tensor(called, partial(_load, packed, called, msgpack))


def _load(packed: _Packed, called: str, msgpack: Any) -> npt.NDArray[Any]:
    if packed.code != _ARRAY:
        raise InputError(f"{called} has msgpack extension {packed.code}, expected an array of Flax")
    shape, name, data = msgpack.unpackb(packed.data, max_array_len=64)
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(str(name))
    if dtype.hasobject or any(type(size) is not int or size < 0 for size in shape):
        raise InputError(f"{called} has dtype {quoted(name)} and shape {shape!r:.80}: damaged")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise InputError(f"{called} has shape {shape!r:.80} and {len(data)} bytes: truncated or damaged")
    return np.frombuffer(data, dtype).reshape(shape)
