"""The rate that theory expects of infinitely many units and steps, where it knows one.

Of a random tanh network (Molgedey, Schuchhardt and Schuster 1992; Poole et al. 2016; Schoenholz et al. 2017;
Chen, Pennington and Schoenholz 2018) the squared size of what enters the units comes to rest at v with

    v = g^2 E tanh^2(sqrt(v) z + b) + s^2,    rate = ln(g^2 E sech^4(sqrt(v) z + b)) / 2,

z standard normal, g^2 the sum of squares of a row of R, s^2 the variance of what the input adds, b the bias.
The critical line is where the rate is zero (chi = 1). A network that nothing moves from zero has v = 0. Of a
gated cell that rests at zero the step is a + b R with two numbers, and its radius a + b g.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.optimize import brentq

from gradscope.custom_types import Array
from gradscope.problem.problem import Problem

# Laws whose entries are independent and of mean zero, or whose matrices are orthogonal and else random.
_RANDOM = ("pytorch", "keras", "flax", "gaussian", "orthogonal")
# Biases that are looked at; the least v that is told from none.
_BIASES, _AT_REST = 64, 1e-12
# Of a smooth function of a standard normal the trapezoidal rule is right to rounding; units may be steep.
_NODES = np.linspace(-10, 10, 1001)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


def theory_rate(problem: Problem) -> float | None:
    """Nats per step of infinitely many units and steps; None where theory has no number for such a cell."""
    system, origin = problem.system, problem.origin
    plain = not problem.cut and problem.view == "state" and not system.cell.factors
    if not (plain and origin.init in _RANDOM and system.mask is None):
        return None
    parameters = system.parameters
    if system.cell.name == "rnn":
        return _tanh_rate(parameters, system.inputs, system.state)
    if np.any(system.inputs) or np.any(system.state):
        return None
    if system.cell.name == "lstm":
        return _lstm_rate(parameters)
    return _gru_rate(parameters) if system.cell.name in ("gru", "gru-reset-before") else None


def _gain(matrix: Array) -> float:
    """g: the radius of a random matrix, or the scale of an orthogonal one."""
    return float(np.linalg.norm(matrix) / math.sqrt(len(matrix)))


def _log(value: float) -> float | None:
    return math.log(value) if value > 0 else None


def _tanh_rate(parameters: Mapping[str, Array], inputs: Array, state: Array) -> float | None:
    g, driven = _gain(parameters["R"]), inputs @ parameters["W"].T
    moved = np.any(driven) or np.any(parameters["b"]) or np.any(state)
    # What nothing moves stays at zero, where units are linear, also where that is not stable.
    slopes = _slopes(g, float(np.mean(driven**2)), parameters["b"]) if moved else 1.0
    chi = g * g * slopes
    log = _log(chi)
    return None if log is None else log / 2


def _slopes(g: float, entering: float, biases: Array) -> float:
    """E sech^4 of what enters the units where its size has come to rest."""
    some = np.unique(biases)
    some = some if len(some) <= _BIASES else np.quantile(biases, (np.arange(_BIASES) + 0.5) / _BIASES)

    def slope(v: float) -> Array:  # sech^2 = 1 - tanh^2
        return np.asarray(1 - np.tanh(math.sqrt(v) * _NODES + some[:, None]) ** 2)

    def grows(v: float) -> float:
        return g * g * float(((1 - slope(v)) @ _WEIGHTS).mean()) + entering - v

    # What maps v to its next is concave: from above it comes to rest at the largest of its fixed points.
    least, most = _AT_REST, g * g + entering + _AT_REST
    v = brentq(grows, least, most, xtol=1e-14) if grows(least) > 0 else 0.0
    return float((slope(v) ** 2 @ _WEIGHTS).mean())


def _rests(parameters: Mapping[str, Array], *biases: str) -> bool:
    """Whether these biases are zero, so that the state stays at zero."""
    return not any(np.any(parameters[name]) for name in biases if name in parameters)


def _open(parameters: Mapping[str, Array], name: str) -> float | None:
    """The gate of a bias whose entries are all the same."""
    values = np.unique(parameters[name])
    return 1 / (1 + math.exp(-values[0])) if len(values) == 1 else None


def _lstm_rate(parameters: Mapping[str, Array]) -> float | None:
    """Radius f + o i g: critical at g = (1 - f) / (o i)."""
    f, i, o = (_open(parameters, name) for name in ("b_f", "b_i", "b_o"))
    if f is None or i is None or o is None or not _rests(parameters, "b_z"):
        return None
    return _log(f + o * i * _gain(parameters["R_z"]))


def _gru_rate(parameters: Mapping[str, Array]) -> float | None:
    """Radius z + (1 - z) r g: critical at g = 1 + exp(-b_r)."""
    z, r = (_open(parameters, name) for name in ("b_z", "b_r"))
    if z is None or r is None or not _rests(parameters, "b_h", "c_h"):
        return None
    return _log(z + (1 - z) * r * _gain(parameters["R_h"]))
