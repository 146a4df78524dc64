"""An ONNX graph that onnxruntime runs once: what its recurrent operators read and put out on given inputs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.checkpoints.calls import Heard, ModuleCall, finite_array, recordings, rounding
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.onnx.graph import opened_model
from gradscope.checkpoints.onnx.scopes import bodies, every_graph
from gradscope.checkpoints.onnx.tensors import inlined
from gradscope.checkpoints.onnx.wiring import QUANTISED, OnnxOperator, operators
from gradscope.checkpoints.recording import Recorded
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, reason, shown
from gradscope.formats.reading import read_arrays
from gradscope.formats.tensors import as_float64

# A graph may take as long, and beside its own size and that of its inputs as much memory.
_SECONDS, _MEMORY, _TIMES = 600, 2**32, 16
_MOST = 2**31 - 1  # bytes of a message of protobuf
_MADE = "gradscope."  # begins the names of what is added to a graph
_RAN = (
    "onnxruntime ran the model's graph on the inputs: each layer reads what that makes of them, and what it "
    "puts out is compared"
)
_IN_BODY = "is in a body or a function, of which onnxruntime does not tell what it reads there"
_EIGHT_BITS = 2.0**-7
# What an operator is given and puts out, by place.
_GIVEN = {"X": 0, "lengths": 4, "h0": 5, "c0": 6}
_MAKES = {"Y": 0, "h": 1, "c": 2}


def recorded_on(
    path: Any, layers: Sequence[Found], named: Sequence[str], inputs: Any, max_size: int | None
) -> Recorded | None:
    """What the layers of a model do on its inputs, where these alone do not tell what a layer reads.

    named : the layers that were asked for by name, whose own the inputs are if they fit. None where no graph
    need be run. Raises InputError where one must be and cannot.
    """
    chosen = [layer for layer in layers if not named or layer.name in named]
    needing = [layer for layer in chosen if _needs(layer)]
    if not needing:
        return None
    arrays = _arrays(inputs)
    if named and all(_is_own(layer, arrays) for layer in chosen):
        return None
    if find_spec("onnxruntime") is None:
        what = f"layer {shown(needing[0].name)}: {needing[0].open}"
        raise InputError(
            f"{shown(path)}: {what}; or pip install onnxruntime (gradscope[onnx-run]): gradscope then runs "
            "the graph on the model's own inputs"
        )
    with opened_model(path, max_size) as (model, stored):
        met = operators(model, stored.budget)
        there = [one for one in met if one.scope.around is None]
        if not {layer.name for layer in needing} & {name for one in there for name in one.layers}:
            return None
        _keep(model, _listen(model, there))
        inlined(model, Path(path).resolve().parent)
        found = _run(model, _feeds(model.graph, arrays), max_size)
    heard = {place: Heard() for place in range(len(there))}
    for place, one in enumerate(there):
        heard[place].note(partial(_call, one, place, found))
    places = {name: place for place, one in enumerate(there) for name in one.layers}
    recorded = recordings(layers, lambda layer: places.get(layer.name), heard, lambda *_: False)
    problems = {name: _IN_BODY for one in met if one not in there for name in one.layers}
    problems |= recorded.problems
    label = os.fspath(inputs) if isinstance(inputs, str | os.PathLike) else "array"
    return Recorded(recorded.layers, problems, label, made_of_inputs=True, said=_RAN)


def _needs(layer: Found) -> bool:
    """Whether something stands before a layer, makes its initial state, or tells how far its sequences go."""
    return not layer.problem and (layer.below is None or layer.given_state or bool(layer.given_lengths))


def _arrays(inputs: Any) -> dict[str, Array]:
    """The arrays of the inputs by name, "" of one that has none."""
    if isinstance(inputs, str | os.PathLike):
        return read_arrays(inputs, "")
    if isinstance(inputs, Mapping):
        return {str(name): as_float64(array, str(name)) for name, array in inputs.items()}
    return {"": as_float64(inputs, "inputs")}


def _is_own(layer: Found, arrays: Mapping[str, Array]) -> bool:
    """Whether inputs may be what a layer itself reads."""
    (array, *more) = arrays.values()
    return not more and array.ndim in (2, 3) and layer.sizes is not None and array.shape[-1] == layer.sizes[1]


# -- the graph ----------------------------------------------------------------------------------------


def _listen(model: Any, there: Sequence[OnnxOperator]) -> list[str]:
    """Make what the operators read and put out outputs of the graph; their names."""
    names = []
    for place, one in enumerate(there):
        node = one.node
        count = 3 if one.kind == "LSTM" else 2
        node.output.extend([""] * (count - len(node.output)))
        for number in range(count):
            node.output[number] = node.output[number] or f"{_MADE}{place}.output{number}"
        given = {role: node.input[k] for role, k in _GIVEN.items() if len(node.input) > k}
        made = {role: node.output[k] for role, k in _MAKES.items() if k < count}
        for role, value in (given | made).items():
            if value:
                names.append(f"{_MADE}{place}.{role}")
                model.graph.node.add(op_type="Identity", input=[value], output=[names[-1]])
    return names


def _keep(model: Any, wanted: Sequence[str]) -> None:
    """Leave in the graph what these values need, and make them its outputs."""
    graph, needed, kept = model.graph, set(wanted), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed |= set(_reads(node))
            kept.append(node)
    for values, left in (
        (graph.node, kept[::-1]),
        (graph.initializer, [one for one in graph.initializer if one.name in needed]),
        (graph.sparse_initializer, [s for s in graph.sparse_initializer if s.values.name in needed]),
        (graph.input, [value for value in graph.input if value.name in needed]),
    ):
        copies = [type(one).FromString(one.SerializeToString()) for one in left]
        del values[:]
        values.extend(copies)
    for values in (graph.output, graph.value_info, model.metadata_props, model.training_info):
        del values[:]
    for name in wanted:
        graph.output.add(name=name)


def _reads(node: Any) -> Iterator[str]:
    """The values that a node reads, also in its bodies."""
    yield from node.input
    for _, body in bodies(node):
        for graph in every_graph(body):
            yield from (name for inner in graph.node for name in inner.input)
            yield from (output.name for output in graph.output)


# -- running it ---------------------------------------------------------------------------------------


def _feeds(graph: Any, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """What the graph is given by the names of its inputs; raises InputError where that does not fit."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) == len(arrays) == 1:
        arrays = {inputs[0].name: next(iter(arrays.values()))}
    if missing := [value.name for value in inputs if value.name not in arrays]:
        raise InputError(
            f"the graph has the inputs {listed([value.name for value in inputs])}, and {listed(missing)} "
            "are not given: give --inputs FILE.npz with an array of each of these names, or, with "
            "--layer, a layer's own inputs"
        )
    return {value.name: _as_input(value, arrays[value.name]) for value in inputs}


def _as_input(value: Any, array: Array) -> Any:
    """An array in the dtype and with the axes of an input of the graph."""
    from onnx import helper

    kind = value.type.tensor_type
    dims = [int(one.dim_value) for one in kind.shape.dim]
    if kind.HasField("shape") and array.ndim == len(dims) - 1:
        array = np.expand_dims(array, 1 if len(dims) > 1 and dims[1] == 1 != dims[0] else 0)
    if kind.HasField("shape") and not _fits(array.shape, dims):
        axes = [one.dim_param or str(one.dim_value or "?") for one in kind.shape.dim]
        raise InputError(
            f"the graph's input {shown(value.name)} is ({', '.join(map(shown, axes))}), and what is given "
            f"has shape {array.shape}: give it as the model takes it, or, with --layer, a layer's own inputs"
        )
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError as error:
        raise InputError(f"the graph's input {shown(value.name)} is no array of numbers") from error
    if dtype.kind in "iu" and (array % 1).any():
        raise InputError(f"the graph's input {shown(value.name)} holds whole numbers, expected such")
    return array.astype(dtype)


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(not d or d == n for n, d in zip(shape, dims, strict=True))


def _run(model: Any, given: Mapping[str, Any], max_size: int | None) -> dict[str, Any]:
    """The outputs of the graph, which another process computes, in bounded time and memory."""
    if (size := model.ByteSize()) > _MOST:
        raise InputError(f"has {size} bytes of weights, and at most {_MOST} can be run: use --layer")
    size += sum(array.nbytes for array in given.values())
    memory = max(_MEMORY + _TIMES * size, max_size or 0)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "model.onnx").write_bytes(model.SerializeToString())
        np.savez(here / "inputs.npz", allow_pickle=False, **given)
        program = [sys.executable, "-P", str(Path(__file__).with_name("child.py")), folder, str(memory)]
        try:
            done = subprocess.run(program, capture_output=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"its graph ran for {_SECONDS} seconds on the inputs: give fewer") from error
        if done.returncode or not (here / "outputs.npz").is_file():
            raise _failed(done, memory)
        with np.load(here / "outputs.npz", allow_pickle=False) as outputs:
            return dict(outputs)


def _failed(done: subprocess.CompletedProcess[bytes], memory: int) -> InputError:
    said = done.stderr.decode("utf-8", "replace")
    if "alloc" in said.lower() or "MemoryError" in said:
        return InputError(
            f"its graph takes more than {memory} bytes of memory on the inputs: give fewer, or more "
            "--max-size"
        )
    why = reason(Exception(said)) if done.returncode > 0 else f"it ended by signal {-done.returncode}"
    return InputError(
        f"onnxruntime cannot run its graph on the inputs ({why}): give a layer's own inputs, with --layer"
    )


def _call(one: OnnxOperator, place: int, found: Mapping[str, Any]) -> ModuleCall:
    """The call of an operator: what it read and put out, sequence by sequence."""
    first = "layout" in (given := one.scope.attributes(one.node)) and bool(given["layout"].i)

    def value(role: str, axes: int) -> Array | None:
        array = found.get(f"{_MADE}{place}.{role}")
        return None if array is None else finite_array(np.array(array, np.float64), axes)

    def states(*roles: str) -> tuple[Array, ...]:
        parts = [value(role, 3) for role in roles]
        return tuple(part.swapaxes(0, 1) if first else part for part in parts if part is not None)

    x, y, lengths = value("X", 3), value("Y", 4), value("lengths", 1)
    assert x is not None
    assert y is not None
    x = x if first else x.swapaxes(0, 1)
    y = y if first else y.transpose(2, 0, 1, 3)  # (B, T, D, n)
    counts = None if lengths is None or (lengths == x.shape[1]).all() else tuple(map(int, lengths))
    if counts and min(counts) < 1:
        raise InputError("has a sequence of no steps")
    lstm = one.kind == "LSTM"
    before = states("h0", "c0")
    if before and len(before) < 1 + lstm:
        role = "c0" if f"{_MADE}{place}.h0" in found else "h0"
        before = (before[0], 0 * before[0]) if role == "c0" else (0 * before[0], before[0])
    unit = rounding(str(found[f"{_MADE}{place}.X"].dtype))
    unit = _EIGHT_BITS if one.node.op_type == QUANTISED else unit
    outputs = y.reshape(*y.shape[:2], -1)
    return ModuleCall(x, outputs, before, states("h", "c")[: 1 + lstm], counts, unit)
