"""ONNX files: the operators LSTM, GRU and RNN, their weights told by the place of the operator's input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.checkpoints.found import Contents, Found, attempt, gated, take
from gradscope.checkpoints.onnx_activations import cell_of
from gradscope.checkpoints.onnx_tensors import tensors_of
from gradscope.checkpoints.onnx_wiring import OnnxOperator, attributes, operators
from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, listed, shown
from gradscope.formats.protobuf import pay
from gradscope.formats.tensors import Tensors, library, opened

# W, R, B, sequence_lens, initial_h, initial_c, P follow X among the inputs of the operator.
_INPUTS = {"W": 1, "R": 2, "B": 3, "h0": 5, "c0": 6, "P": 7}
_GATES = {"LSTM": ("i", "o", "f", "z"), "GRU": ("z", "r", "h"), "RNN": ("",)}
# What puts numbers elsewhere, or repeats them; a state is made by a chain of these that is no longer.
_MOVES = (
    "Cast",
    "Concat",
    "Expand",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
_LONGEST = 64
# The place among an operator's inputs of the steps that each sequence has.
_LENGTHS = 4


@contextmanager
def open_onnx(path: PathLike, max_size: int | None) -> Iterator[Tensors]:
    """The constants of a model's graph by name."""
    with _opened(path, max_size) as (_, tensors):
        yield tensors


@contextmanager
def _opened(path: PathLike, max_size: int | None) -> Iterator[tuple[Any, Tensors]]:
    """A model, and the constants of its graph."""
    with opened(path, ".onnx", max_size) as (file, budget):
        kind = library("onnx", "onnx").ModelProto
        budget.unpack(budget.size)
        pay(data := file.read(), kind.DESCRIPTOR, budget)
        model = kind.FromString(data)
        yield model, tensors_of(model.graph, Path(path).resolve().parent, budget, max_size)


def read_onnx(path: PathLike, max_size: int | None, also: Iterable[str] = ()) -> Contents:
    """The recurrent operators of a model, the two directions of a bidirectional one as two layers."""
    with _opened(path, max_size) as (model, tensors):
        graph = model.graph
        makers = {name: node for node in graph.node for name in node.output}
        found = [layer for operator in operators(model) for layer in _directions(operator, tensors, makers)]
        if not found:
            kinds = sorted({node.op_type for node in graph.node})
            raise InputError(
                f"holds no operator LSTM, GRU or RNN ({listed(kinds) or 'no operators'}): export it with its "
                "recurrent layer as one operator, or give its weights in another format"
            )
        return Contents.of(_fitting(found), tensors, also)


def _directions(operator: OnnxOperator, tensors: Tensors, makers: Mapping[str, Any]) -> list[Found]:
    """The layer of an operator, or two where it is bidirectional; makers : the node of every value."""
    node, found = operator.node, []
    if operator.inside:
        problem = (
            f"is in the body of {operator.inside}, which gradscope does not run: export it outside of that"
        )
        return [Found(operator.name, {}, problem=problem, kind=node.op_type.lower(), below=None)]
    inputs = {role: node.input[k] for role, k in _INPUTS.items() if len(node.input) > k and node.input[k]}
    keys = [key for key in inputs.values() if key in tensors]
    computed = [inputs[role] for role in ("h0", "c0") if role in inputs and inputs[role] not in tensors]
    told = node.input[_LENGTHS] if len(node.input) > _LENGTHS else ""
    lengths = f"{shown(told)} of the graph says how many steps each sequence has: give these as --lengths"
    given_state = not all(_is_zero(name, tensors, makers) for name in computed)
    for number, (name, side) in enumerate(zip(operator.layers, operator.sides, strict=True)):
        make = partial(_layer, node.op_type, inputs, attributes(node), number, tensors)
        reads = operator.reads
        layer = replace(attempt(make, name, keys), direction=side, given_state=given_state)
        layer = replace(layer, not_applied=(lengths,) if told else ())
        root = "" if reads.below else reads.root
        found.append(replace(layer, depth=reads.depth, below=reads.below, reads=root, table=reads.table))
    return found


def _is_zero(value: str, tensors: Tensors, makers: Mapping[str, Any]) -> bool:
    """Whether a value is zeros alone, which exporters have the graph make where a model gives no state."""
    waiting, seen = [value], set[str]()
    while waiting and len(seen) < _LONGEST:
        seen.add(name := waiting.pop())
        node: Any = makers.get(name)
        kind = node.op_type if node else ""
        if name in tensors:
            zero = not tensors[name].load().any()
        elif kind == "ConstantOfShape":
            zero = _is_zero_fill(attributes(node))
        else:
            zero = kind in _MOVES
            waiting += node.input[: None if kind == "Concat" else 1] if zero else ()
        if not zero:
            return False
    return not waiting


def _is_zero_fill(given: Mapping[str, Any]) -> bool:
    """Whether ConstantOfShape, given these attributes, makes zeros."""
    if "value" not in given:
        return True
    fill = given["value"].t
    return not (fill.raw_data.strip(b"\0") or any((*fill.float_data, *fill.double_data, *fill.int32_data)))


def _fitting(found: list[Found]) -> list[Found]:
    """The layers, none of which is said to read others whose outputs are not as many as its inputs."""
    hidden = {layer.name: layer.sizes[0] for layer in found if layer.sizes}

    def fits(layer: Found) -> bool:
        return not layer.below or (
            layer.sizes is not None and layer.sizes[1] == sum(hidden.get(name, 0) for name in layer.below)
        )

    return [layer if fits(layer) else replace(layer, below=None) for layer in found]


def _layer(
    kind: str, inputs: Mapping[str, str], attributes: Mapping[str, Any], number: int, tensors: Tensors
) -> Found:
    constant = {role: name for role, name in inputs.items() if name in tensors}
    if computed := [name for role, name in inputs.items() if role in "WRBP" and role not in constant]:
        raise InputError(f"has weights that the graph computes ({listed(computed)}), expected them stored")
    if not {"W", "R"} <= constant.keys():
        raise InputError("has no weights W and R: damaged")
    read, dtype = take(tensors, dict.fromkeys(constant.values()))
    values = {role: _side(read[name], role, number) for role, name in constant.items() if role in "WRBP"}
    arrays = _native(kind, values, linear=_whole(attributes, "linear_before_reset"))
    layout = _whole(attributes, "layout")
    for role in {"h0", "c0"} & constant.keys():
        arrays[role] = _state(read[constant[role]], role, number, layout)
    coupled = kind == "LSTM" and _given(attributes, "input_forget")
    if coupled:
        arrays = _coupled(arrays)
    base = _base(kind, "P" in values, _whole(attributes, "linear_before_reset"), coupled)
    cells, problem = _cells(kind, base, attributes, number)
    return Found("", arrays, cells, problem=problem, kind=kind.lower(), dtype=dtype)


def _cells(kind: str, base: str, attributes: Mapping[str, Any], number: int) -> tuple[tuple[str, ...], str]:
    """The cell with the activations of a direction, or none and why."""
    if _given(attributes, "clip"):
        way = "where no pre-activation is as large it does nothing: save the operator without it"
        return (), f"has clip, for which gradscope has no {kind}; {way}"
    try:
        return (cell_of(kind, base, attributes, number),), ""
    except InputError as error:
        return (), str(error)


def _base(kind: str, peepholes: bool, linear: int, coupled: bool) -> str:
    """The cell, whatever its activations are."""
    if kind == "RNN":
        return "rnn"
    if kind == "GRU":
        return "gru" if linear else "gru-reset-before"
    return "lstm-cifg" if coupled else "lstm-peephole" if peepholes else "lstm"


def _native(kind: str, values: Mapping[str, Array], linear: int) -> dict[str, Array]:
    gates, w, r = _GATES[kind], values["W"], values["R"]
    hidden, rows = r.shape[-1], len(_GATES[kind]) * r.shape[-1]
    expected = {"W": (rows, w.shape[-1]), "R": (rows, hidden), "B": (2 * rows,), "P": (3 * hidden,)}
    for role, value in values.items():
        if value.shape != expected[role]:
            raise InputError(f"{role} has shape {value.shape} in one direction, expected {expected[role]}")
    weights = {"W": w, "R": r}
    if "B" in values:
        weights |= dict(zip("bc", np.split(values["B"], 2), strict=True))
    arrays = gated(gates, weights, reset_after=kind == "GRU" and bool(linear))
    if "P" in values:
        arrays |= dict(zip(("p_i", "p_o", "p_f"), np.split(values["P"], 3), strict=True))
    return arrays


def _coupled(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Without the forget gate, which is 1 - i whatever its weights; a cell that may have peepholes."""
    none = np.zeros(len(arrays["R_i"]))
    return {"p_i": none, "p_o": none} | {k: v for k, v in arrays.items() if not k.endswith("_f")}


def _side(value: Array, role: str, number: int) -> Array:
    """One direction of a weight, whose first axis is the directions."""
    if value.ndim != (3 if role in "WR" else 2) or value.shape[0] <= number:
        raise InputError(f"{role} has shape {value.shape}, expected one row of weights per direction")
    return np.asarray(value[number])


def _state(value: Array, role: str, number: int, layout: int) -> Array:
    """The initial state of one direction, if it is the same for every sequence."""
    if value.ndim == 3 and value.shape[1 if layout else 0] > number:
        states: Array = value[:, number] if layout else value[number]
        if len(states) and (states == states[0]).all():
            return np.asarray(states[0])
    raise InputError(f"initial state {role} has shape {value.shape}, expected one for all sequences")


def _whole(attributes: Mapping[str, Any], name: str) -> int:
    return int(attributes[name].i) if name in attributes else 0


def _given(attributes: Mapping[str, Any], name: str) -> bool:
    return name in attributes and bool(attributes[name].i or attributes[name].f)
