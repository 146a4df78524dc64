"""The weights of a recurrent operator of ONNX, of one of its directions, in our notation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradscope.checkpoints.found import gated
from gradscope.checkpoints.onnx.constants import Constants
from gradscope.checkpoints.onnx.scopes import Scope
from gradscope.checkpoints.onnx.wiring import QUANTISED, OnnxOperator
from gradscope.custom_types import Array
from gradscope.errors import InputError, quoted
from gradscope.formats.tensors import as_float64

_GATES = {"LSTM": ("i", "o", "f", "z"), "GRU": ("z", "r", "h"), "RNN": ("",)}
_STATES = ("h0", "c0")


def weights_of(operator: OnnxOperator, number: int, constants: Constants) -> dict[str, Array]:
    """W (G n, d), R (G n, n) and what else there is of B, P, h0 and c0 of a direction, as float64.

    Raises InputError where one is computed from what the model is given, or does not fit.
    """
    scope, inputs = operator.scope, operator.inputs
    read = {role: constants.array(scope, name) for role, name in inputs.items()}
    missing = [inputs[role] for role, array in read.items() if array is None and role not in _STATES]
    if missing:
        by = ", ".join(constants.maker(scope, name) for name in missing[:3])
        raise InputError(f"has weights that the graph computes ({by}), expected constants")
    there = {role: array for role, array in read.items() if array is not None}
    if not {"W", "R"} <= there.keys():
        raise InputError("has no weights W and R: damaged")
    for role in _STATES:
        if role in inputs:
            _check_units(scope, inputs[role], there.get(role), there["R"].shape[-1])
    layout, weights = whole(scope.attributes(operator.node), "layout"), dict[str, Array]()
    for role in [role for role in ("W", "R", "B", "P", *_STATES) if role in there]:
        called = f"tensor {quoted(inputs[role])}"
        if role in _STATES and not there[role].any():
            continue  # as where there is none
        if role in _STATES:
            part = _state(there[role], role, number, layout)
        else:
            part = _side(there[role], role, number, len(operator.sides))
            if operator.node.op_type == QUANTISED and role in "WR":
                part = _dequantised(part, role, number, there)
        constants.pay_copy(part)
        weights[role] = as_float64(part, called)
    return weights


def stored_as(operator: OnnxOperator, constants: Constants) -> str:
    """The dtype in which the file keeps the recurrent matrix."""
    array = constants.array(operator.scope, operator.inputs["R"])
    return str(np.asarray(array).dtype)


def native(kind: str, values: Mapping[str, Array], *, reset_after: bool, coupled: bool) -> dict[str, Array]:
    """Under the names of the cells; coupled : whether the forget gate is 1 - i."""
    gates, w, r = _GATES[kind], values["W"], values["R"]
    hidden, rows = r.shape[-1], len(_GATES[kind]) * r.shape[-1]
    expected = {"W": (rows, w.shape[-1]), "R": (rows, hidden), "B": (2 * rows,), "P": (3 * hidden,)}
    for role, value in values.items():
        if role in expected and value.shape != expected[role]:
            raise InputError(f"{role} has shape {value.shape} in one direction, expected {expected[role]}")
    weights = {"W": w, "R": r}
    if "B" in values:
        weights |= dict(zip("bc", np.split(values["B"], 2), strict=True))
    arrays = gated(gates, weights, reset_after=kind == "GRU" and reset_after)
    if "P" in values:
        arrays |= dict(zip(("p_i", "p_o", "p_f"), np.split(values["P"], 3), strict=True))
    arrays |= {role: values[role] for role in _STATES if role in values}
    return _coupled(arrays) if coupled and kind == "LSTM" else arrays


def _coupled(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Without the forget gate, which is 1 - i whatever its weights; a cell that may have peepholes."""
    none = np.zeros(len(arrays["R_i"]))
    return {"p_i": none, "p_o": none} | {k: v for k, v in arrays.items() if not k.endswith("_f")}


def _dequantised(part: Array, role: str, number: int, read: Mapping[str, Array]) -> Array:
    """(G n, d) of the (d, G n) that DynamicQuantizeLSTM has, with a scale for all or for each row."""

    def along(kind: str) -> Any:
        given = read.get(f"{role} {kind}")
        if given is None:
            return 0.0
        if given.ndim not in (1, 2) or len(given) <= number or given[number].size not in (1, part.shape[1]):
            raise InputError(f"{role} has a {kind} of shape {given.shape}, expected one for all or each row")
        return given[number].astype(np.float64)

    if f"{role} scale" not in read:
        raise InputError(f"{role} has no scale: damaged")
    return np.asarray(((part.astype(np.float64) - along("zero point")) * along("scale")).T)


def _side(value: Array, role: str, number: int, count: int) -> Array:
    """One direction of a weight, whose first axis is the directions."""
    if value.ndim != (3 if role in "WR" else 2) or value.shape[0] != count:
        raise InputError(f"{role} has shape {value.shape}, expected one row of weights per direction")
    return np.asarray(value[number])


def _check_units(scope: Scope, state: str, array: Array | None, units: int) -> None:
    """Raise InputError where a state has other units than R, as far as the file says how many it has.

    An exporter that left out the projection of an LSTM has made a graph that does not run.
    """
    found = scope.last_axis(state) if array is None else array.shape[-1]
    if found not in (None, units):
        raise InputError(
            f"has R of {units} units and an initial state {quoted(state)} of {found}: no such graph runs. "
            "ONNX has no LSTM with a projection: of one, give the weights in the library's own format"
        )


def _state(value: Array, role: str, number: int, layout: int) -> Array:
    """The initial state of one direction, if it is the same for every sequence."""
    if value.ndim == 3 and value.shape[1 if layout else 0] > number:
        states: Array = value[:, number] if layout else value[number]
        if len(states) and (states == states[0]).all():
            return np.asarray(states[0])
    raise InputError(f"initial state {role} has shape {value.shape}, expected one for all sequences")


def whole(attributes: Mapping[str, Any], name: str) -> int:
    """A whole number among the attributes, 0 where it is not there."""
    return int(attributes[name].i) if name in attributes else 0
