"""Gated recurrent units: h_t = (1 - z) n + z h_(t-1), with the reset gate after or before R_h."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscope.cells.activated import with_activations
from gradscope.cells.cell import Cell, unit_cell
from gradscope.cells.late import applied, one_minus
from gradscope.cells.mean import Sum, mean_of
from gradscope.cells.units import Parameters, Shapes, Units

_GATES = ("r", "z", "h")


def _parameters(hidden: int, input_size: int) -> Shapes:
    shapes: Shapes = {f"W_{g}": (hidden, input_size) for g in _GATES}
    shapes |= {f"R_{g}": (hidden, hidden) for g in _GATES}
    return shapes | {f"b_{g}": (hidden,) for g in _GATES}


def gru(state: str = "tanh", gate: str = "sigmoid") -> Cell:
    """Reset after the product, n = tanh(W x + b + r (R_h h + c_h)): PyTorch's and cuDNN's form."""
    squash, closed, mean = applied(gate), one_minus(gate), mean_of(state)

    def parameters(hidden: int, input_size: int) -> Shapes:
        return _parameters(hidden, input_size) | {"c_h": (hidden,)}

    def drive(params: Parameters, x: Any) -> dict[str, Any]:
        # The candidate's input part "x" is outside the reset product, its bias c_h inside.
        outside = {g: params[f"W_{g}"] @ x + params[f"b_{g}"] for g in _GATES}
        return {"r": outside["r"], "z": outside["z"], "x": outside["h"], "h": params["c_h"]}

    def core(h: Any, pre: Mapping[str, Any], _: Mapping[str, Any]) -> Any:
        r, z = squash(pre["r"]), squash(pre["z"])
        candidate = pre["x"] + r * pre["h"]
        return (mean(h, z, closed(pre["z"]), candidate),), {"r": r, "z": z}

    weights = (("r", "W_r"), ("z", "W_z"), ("x", "W_h"))
    units = Units(gates=_GATES, drive=drive, weights=weights, core=core, own="carry")
    return unit_cell(with_activations("gru", [state, gate]), units, parameters, ("h",), Sum(state))


def reset_before(state: str = "tanh", gate: str = "sigmoid") -> Cell:
    """Cho et al. 2014 (arXiv 1406.1078): n = tanh(W x + R_h (r h) + b).

    R_h mixes the units after the reset gate, so there is no per-unit form.
    """
    squash, closed, mean = applied(gate), one_minus(gate), mean_of(state)

    def bar(params: Parameters, g: str, x: Any, h: Any) -> Any:
        return params[f"W_{g}"] @ x + params[f"R_{g}"] @ h + params[f"b_{g}"]

    def step(params: Parameters, x: Any, copies: Mapping[str, Any]) -> Any:
        r = squash(bar(params, "r", x, copies["R_r"]))
        z = bar(params, "z", x, copies["R_z"])
        candidate = bar(params, "h", x, r * copies["R_h"])
        return mean(copies["carry"], squash(z), closed(z), candidate)

    def gates(params: Parameters, x: Any, h: Any) -> dict[str, Any]:
        return {g: squash(bar(params, g, x, h)) for g in ("r", "z")}

    return Cell(
        name=with_activations("gru-reset-before", [state, gate]),
        parameters=_parameters,
        step=step,
        paths=("carry", "R_r", "R_z", "R_h"),
        gates=gates,
        adds=Sum(state),
    )
