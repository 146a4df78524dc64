"""Simple recurrent networks: h_t = phi(W x_t + R h_(t-1) + b) (Elman 1990)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscope.cells import late
from gradscope.cells.activated import with_activations
from gradscope.cells.cell import Cell, unit_cell
from gradscope.cells.units import Parameters, Shapes, Units


def _parameters(hidden: int, input_size: int) -> Shapes:
    return {"W": (hidden, input_size), "R": (hidden, hidden), "b": (hidden,)}


def _drive(params: Parameters, x: Any) -> dict[str, Any]:
    return {"": params["W"] @ x + params["b"]}


def elman(activation: str = "tanh") -> Cell:
    """The tanh RNN of PyTorch and Keras, or one of another activation."""
    phi = late.applied(activation)

    def core(own: Any, pre: Mapping[str, Any], _: Mapping[str, Any]) -> Any:
        return (phi(pre[""]),), {}

    units = Units(gates=("",), drive=_drive, weights=(("", "W"),), core=core)
    return unit_cell(with_activations("rnn", [activation]), units, _parameters, ("h",))


def linear() -> Cell:
    """h_t = W x_t + R h_(t-1) + b: its chain is R^T exactly."""
    return elman("linear")


def relu() -> Cell:
    """ReLU RNN (Le, Jaitly and Hinton 2015, arXiv 1504.00941); the slope at 0 is 0, as in PyTorch."""
    return elman("relu")


def sigmoid() -> Cell:
    """Logistic RNN."""
    return elman("sigmoid")
