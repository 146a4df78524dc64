"""ONNX files: the operators LSTM, GRU and RNN, their weights told by the place of the operator's input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gradscope.checkpoints.found import Contents, Found, attempt
from gradscope.checkpoints.map_choices import unnamed
from gradscope.checkpoints.onnx.activations import cell_of
from gradscope.checkpoints.onnx.constants import Constants
from gradscope.checkpoints.onnx.scopes import Scope, every_graph
from gradscope.checkpoints.onnx.tensors import Stored
from gradscope.checkpoints.onnx.weights import native, stored_as, weights_of, whole
from gradscope.checkpoints.onnx.wiring import QUANTISED, WITH_ATTENTION, OnnxOperator, operators
from gradscope.custom_types import PathLike
from gradscope.errors import InputError, listed
from gradscope.formats.protobuf import pay
from gradscope.formats.tensors import Tensors, library, opened

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
_DEQUANTISED = "that the weights are what whole numbers of 8 bits stand for (DynamicQuantizeLSTM)"
_ROUNDED = "onnxruntime rounds inputs and outputs to 8 bits in every step, which has no slope of its own"
_GOES_ON = "that a pass starts from the state in which the one before ended, whatever the loop makes of it"
# The place among an operator's inputs of the steps that each sequence has.
_LENGTHS = 4


@contextmanager
def open_onnx(path: PathLike, max_size: int | None) -> Iterator[Tensors]:
    """The constants of a model's graph by name."""
    with opened_model(path, max_size) as (_, stored):
        yield stored.tensors


@contextmanager
def opened_model(path: PathLike, max_size: int | None) -> Iterator[tuple[Any, Stored]]:
    """A model, and the tensors of its graphs."""
    with opened(path, ".onnx", max_size) as (file, budget):
        kind = library("onnx", "onnx").ModelProto
        budget.unpack(budget.size)
        pay(data := file.read(), kind.DESCRIPTOR, budget)
        model = kind.FromString(data)
        yield model, Stored(model.graph, Path(path).resolve().parent, budget.size, max_size)


def read_onnx(path: PathLike, max_size: int | None, also: Iterable[str] = ()) -> Contents:
    """The recurrent operators of a model, the two directions of a bidirectional one as two layers."""
    with opened_model(path, max_size) as (model, stored):
        constants = Constants(stored.values, stored.budget)
        met = operators(model, stored.budget)
        found = [layer for operator in met for layer in _directions(operator, constants)]
        if not found and (spelled_out := unnamed(stored.tensors)):
            told = [
                replace(layer, problem=f"is no operator of the graph, and {layer.problem}")
                for layer in spelled_out
            ]
            return Contents.of(told, stored.tensors, also)
        if not found:
            kinds = sorted({node.op_type for graph in every_graph(model.graph) for node in graph.node})
            raise InputError(
                f"holds no operator LSTM, GRU or RNN ({listed(kinds) or 'no operators'}): export it with its "
                "recurrent layer as one operator, or say by --map what its constants are"
            )
        return Contents.of(_fitting(found), stored.tensors, also)


def _directions(operator: OnnxOperator, constants: Constants) -> list[Found]:
    """The layer of an operator, or two where it is bidirectional."""
    scope, reads = operator.scope, operator.reads
    inputs = operator.inputs
    lengths, given_lengths = _lengths(operator, constants)
    states = [inputs[role] for role in ("h0", "c0") if role in inputs]
    given_state = not all(_is_known(name, scope, constants) for name in states)
    goes_on = given_state and scope.again
    found = []
    for number, (name, side) in enumerate(zip(operator.layers, operator.sides, strict=True)):
        layer = attempt(partial(_layer, operator, number, constants), name, ())
        keys = {key for value in inputs.values() for key in constants.leaves(scope, value)}
        found.append(
            replace(
                layer,
                keys=tuple(sorted(keys)),
                direction=side,
                depth=reads.depth,
                below=reads.below,
                reads="" if reads.below else reads.root,
                table=reads.table,
                given_state=given_state,
                time_major=operator.time_major,
                lengths=lengths,
                given_lengths=given_lengths,
                assumed=(*layer.assumed, *(f"that {one}" for one in scope.when), *[_GOES_ON] * goes_on),
            )
        )
    return found


def _lengths(operator: OnnxOperator, constants: Constants) -> tuple[tuple[int, ...] | None, str]:
    """The steps of each sequence where they are constant, and what else tells them, "" if nothing does."""
    name = next(iter(operator.node.input[_LENGTHS : _LENGTHS + 1]), "")
    if not name:
        return None, ""
    try:
        array = constants.array(operator.scope, name)
    except InputError:  # of other constants than there may be
        array = None
    whole_numbers = array is not None and array.ndim == 1 and array.dtype.kind in "iu"
    return (tuple(array.tolist()), "") if whole_numbers and array is not None else (None, name)


def _is_known(state: str, scope: Scope, constants: Constants) -> bool:
    """Whether a state is constant, or zeros alone, which exporters make where a model gives none."""
    try:
        if constants.array(scope, state) is not None:
            return True
    except InputError:  # it is said where the layer is read
        return True
    waiting, seen = [(scope, state)], set[tuple[Scope, str]]()
    while waiting and len(seen) < _LONGEST:
        where, own = waiting[-1][0].find(waiting.pop()[1])
        seen.add((where, own))
        node: Any = where.makers.get(own)
        kind = node.op_type if node else ""
        if own in where.tensors:
            array = constants.array(where, own)
            zero = array is not None and not array.any()
        elif kind == "ConstantOfShape":
            zero = _is_zero_fill(where.attributes(node))
        else:
            zero = kind in _MOVES
            given = list(node.input) if zero else []
            waiting += [(where, name) for name in given[: None if kind == "Concat" else 1]]
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


def _layer(operator: OnnxOperator, number: int, constants: Constants) -> Found:
    if operator.node.op_type == WITH_ATTENTION:
        raise InputError(f"is an {WITH_ATTENTION}, which reads a memory in every step: there is no such cell")
    kind, options = operator.kind, operator.scope.attributes(operator.node)
    weights = weights_of(operator, number, constants)
    linear, coupled = whole(options, "linear_before_reset"), bool(whole(options, "input_forget"))
    arrays = native(kind, weights, reset_after=bool(linear), coupled=coupled)
    cells, problem = _cells(kind, _base(kind, "P" in weights, linear, coupled), options, number)
    quantised = operator.node.op_type == QUANTISED
    return Found(
        "",
        arrays,
        cells,
        problem=problem,
        kind=kind.lower(),
        dtype=stored_as(operator, constants),
        not_applied=(_ROUNDED,) if quantised else (),
        assumed=(_DEQUANTISED,) if quantised else (),
    )


def _cells(kind: str, base: str, attributes: Mapping[str, Any], number: int) -> tuple[tuple[str, ...], str]:
    """The cell with the activations of a direction, or none and why."""
    if "clip" in attributes and attributes["clip"].f:
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
