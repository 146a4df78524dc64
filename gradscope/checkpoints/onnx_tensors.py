"""The constants of an ONNX graph, in the file or in files beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, quoted
from gradscope.formats.budget import Budget
from gradscope.formats.tensors import Tensor, Tensors

# TensorProto.DataType: its dtype, and the field that has the values where raw_data has not.
_DTYPES: dict[int, tuple[Any, str]] = {
    1: ("f4", "float_data"),
    10: ("f2", "int32_data"),
    11: ("f8", "double_data"),
    16: (ml_dtypes.bfloat16, "int32_data"),
}
_EXTERNAL = 1


def tensors_of(graph: Any, folder: Path, budget: Budget, max_size: int | None) -> Tensors:
    """The constants of a graph by name; those in other files only if these lie in the model's folder.

    budget : of the model's own file. Raises InputError where all inputs of the graph's operators that
    are constants have more bytes together than max_size, by default a small multiple of the files'.
    """
    constants = {tensor.name: tensor for tensor in _constants(graph) if tensor.data_type in _DTYPES}
    external = {name: _beside(t, folder) for name, t in constants.items() if t.data_location == _EXTERNAL}
    beside = Budget(budget.size + sum(path.stat().st_size for path in set(external.values())), max_size)
    for name in constants:
        budget.name(name)
    sizes = {name: _declared(tensor) for name, tensor in constants.items()}
    used = sum(sizes.get(name, 0) for node in graph.node for name in node.input)
    beside.unpack(max(used, sum(sizes.values())))
    return {
        name: Tensor(
            f"tensor {quoted(name)}", partial(_values, tensor, external.get(name), beside), sizes[name]
        )
        for name, tensor in constants.items()
    }


def _constants(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant" and len(node.output) == 1:
            for attribute in node.attribute:
                if attribute.name == "value":
                    attribute.t.name = node.output[0]
                    yield attribute.t


def _declared(tensor: Any) -> int:
    """Bytes of a tensor, by its dimensions."""
    if any(size < 0 for size in tensor.dims):
        raise InputError(
            f"tensor {quoted(tensor.name)} has dimensions {listed([*map(str, tensor.dims)])}: damaged"
        )
    size: int = math.prod(tensor.dims) * np.dtype(_DTYPES[tensor.data_type][0]).itemsize
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


def _values(tensor: Any, beside: Path | None, budget: Budget) -> Array:
    dtype, field = _DTYPES[tensor.data_type]
    expected = _declared(tensor)
    budget.draw(size=8 * math.prod(tensor.dims))  # as float64, by every operator that has it
    if beside:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        with beside.open("rb") as file:
            file.seek(int(entries.get("offset", 0)))
            data = file.read(min(expected, beside.stat().st_size))
    elif tensor.HasField("raw_data"):
        data = tensor.raw_data
    else:
        numbers = getattr(tensor, field)
        bits = np.array(numbers, np.uint16 if field == "int32_data" else dtype)
        data = bits.tobytes()
    if len(data) != expected:
        raise InputError(
            f"tensor {quoted(tensor.name)} declares {expected} bytes and has {len(data)}: damaged"
        )
    return np.frombuffer(data, dtype).reshape(tuple(tensor.dims))
