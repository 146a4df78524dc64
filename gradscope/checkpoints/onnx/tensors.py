"""The constants of an ONNX graph, in the file or in files beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gradscope.checkpoints.onnx.scopes import every_graph, stored
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, quoted
from gradscope.formats.budget import Budget
from gradscope.formats.tensors import Tensor, Tensors

# TensorProto.DataType: its dtype, and the field that has the values where raw_data has not.
DTYPES: dict[int, tuple[Any, str]] = {
    1: ("f4", "float_data"),
    2: ("u1", "int32_data"),
    3: ("i1", "int32_data"),
    6: ("i4", "int32_data"),
    7: ("i8", "int64_data"),
    9: ("?", "int32_data"),
    10: ("f2", "int32_data"),
    11: ("f8", "double_data"),
    16: (ml_dtypes.bfloat16, "int32_data"),
}
_FLOATS = (1, 10, 11, 16)
_EXTERNAL = 1


class Stored:
    """The tensors that a model's graph and the bodies in it hold, and what their values may take.

    tensors : those of real numbers by name; budget : of the model's files together.
    Raises InputError where a file beside the model is not in its folder, or where all inputs of operators
    that are constants have more bytes together than max_size, by default a small multiple of the files'.
    """

    def __init__(self, graph: Any, folder: Path, size: int, max_size: int | None) -> None:
        self._folder = folder
        graphs = list(every_graph(graph))
        constants: dict[str, Any] = {}
        for tensor in (one for each in graphs for one in stored(each) if one.data_type in DTYPES):
            constants.setdefault(tensor.name, tensor)
        files = {_beside(t, folder) for t in constants.values() if t.data_location == _EXTERNAL}
        self.budget = Budget(size + sum(path.stat().st_size for path in files), max_size)
        for name in constants:
            self.budget.name(name)
        sizes = {name: _declared(tensor) for name, tensor in constants.items()}
        used = sum(sizes.get(name, 0) for one in graphs for node in one.node for name in node.input)
        self.budget.unpack(max(used, sum(sizes.values())))
        self.tensors: Tensors = {
            name: Tensor(f"tensor {quoted(name)}", partial(self._copied, tensor), sizes[name])
            for name, tensor in constants.items()
            if tensor.data_type in _FLOATS
        }

    def values(self, tensor: Any) -> Array | None:
        """The values of a tensor, None of one of a type that is none of numbers."""
        return self._loaded(tensor) if tensor.data_type in DTYPES else None

    def _copied(self, tensor: Any) -> Array:
        self.budget.draw(size=8 * math.prod(tensor.dims))  # as float64
        return self._loaded(tensor)

    def _loaded(self, tensor: Any) -> Array:
        dtype, field = DTYPES[tensor.data_type]
        expected = _declared(tensor)
        self.budget.draw(size=expected)
        if tensor.data_location == _EXTERNAL:
            data = _read(tensor, _beside(tensor, self._folder), expected)
        elif tensor.HasField("raw_data"):
            data = tensor.raw_data
        else:
            halves = field == "int32_data" and tensor.data_type in _FLOATS  # their bits, as whole numbers
            data = np.array(getattr(tensor, field), np.uint16 if halves else dtype).tobytes()
        if len(data) != expected:
            raise InputError(
                f"tensor {quoted(tensor.name)} declares {expected} bytes and has {len(data)}: damaged"
            )
        return np.frombuffer(data, dtype).reshape(tuple(tensor.dims))


def _read(tensor: Any, path: Path, size: int) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    with path.open("rb") as file:
        file.seek(int(entries.get("offset", 0)))
        return file.read(min(size, path.stat().st_size))


def _declared(tensor: Any) -> int:
    """Bytes of a tensor, by its dimensions."""
    if any(size < 0 for size in tensor.dims):
        raise InputError(
            f"tensor {quoted(tensor.name)} has dimensions {listed([*map(str, tensor.dims)])}: damaged"
        )
    size: int = math.prod(tensor.dims) * np.dtype(DTYPES[tensor.data_type][0]).itemsize
    return size


def _beside(tensor: Any, folder: Path) -> Path:
    """The file that holds the tensor's values: a regular one, and within the model's folder."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    path = (folder / location).resolve()
    if not path.is_relative_to(folder) or path == folder:
        raise InputError(f"tensor {quoted(tensor.name)} is in {quoted(location)}, outside the model's folder")
    if not path.is_file():
        raise InputError(
            f"tensor {quoted(tensor.name)} is in {quoted(location)}: no such file beside the model"
        )
    return path


def inlined(model: Any, folder: Path) -> None:
    """Put what a model has in other files into it, as far as these lie in its folder."""
    for tensor in _every_tensor(model):
        if tensor.data_location == _EXTERNAL:
            length = next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), None)
            path = _beside(tensor, folder)
            tensor.raw_data = _read(tensor, path, path.stat().st_size if length is None else length)
            del tensor.external_data[:]
            tensor.data_location = 0


def _every_tensor(model: Any) -> Iterator[Any]:
    """All tensors of a model, also those in attributes, bodies and functions."""
    for graph in (one for whole in (model.graph, *model.functions) for one in every_graph(whole)):
        sparse = [*getattr(graph, "sparse_initializer", ())]
        yield from getattr(graph, "initializer", ())
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for one in sparse:
            yield from (one.values, one.indices)
