"""Simple recurrent networks: h_t = phi(W x_t + R h_(t-1) + b) (Elman 1990)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gradscope.cells import activations
from gradscope.cells.cell import Cell, unit_cell
from gradscope.cells.units import Parameters, Shapes, Units


def _parameters(hidden: int, input_size: int) -> Shapes:
    return {"W": (hidden, input_size), "R": (hidden, hidden), "b": (hidden,)}


def _drive(params: Parameters, x: Any) -> dict[str, Any]:
    return {"": params["W"] @ x + params["b"]}


def _rnn(name: str, phi: Callable[[Any], Any]) -> Cell:
    def core(own: Any, pre: Mapping[str, Any], _: Mapping[str, Any]) -> Any:
        return (phi(pre[""]),), {}

    units = Units(gates=("",), drive=_drive, weights=(("", "W"),), core=core)
    return unit_cell(name, units, _parameters, ("h",))


def linear() -> Cell:
    """h_t = W x_t + R h_(t-1) + b: its chain is R^T exactly."""
    return _rnn("linear", lambda a: a)


def tanh() -> Cell:
    """The plain tanh RNN of PyTorch and Keras."""
    return _rnn("rnn", activations.tanh)


def relu() -> Cell:
    """ReLU RNN (Le, Jaitly and Hinton 2015, arXiv 1504.00941); the slope at 0 is 0, as in PyTorch."""
    return _rnn("rnn-relu", activations.relu)


def sigmoid() -> Cell:
    """Logistic RNN."""
    return _rnn("rnn-sigmoid", activations.sigmoid)
