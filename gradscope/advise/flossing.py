"""Gradient flossing: parameters moved until the largest Lyapunov exponents of the chain are near 0.

Engelken 2023 (arXiv 2312.17306) minimises the squares of the first k exponents before training. Here they
are lambda_i = ln sigma_i / T of the chain itself, and their derivatives those of ``measure.sensitivity``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gradscope.advise.network import Network
from gradscope.cells.notation import is_any_bias, is_recurrent
from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.formats.tensors import library

# Of Adam, at most; and of a move of a weight in the first of them.
STEPS, _RATE = 60, 0.03
# Decades per value: nearer to 1 than this a gain is 1.
_DONE = 0.05


def flossed(network: Network, count: int, report: Callable[[str], None]) -> dict[str, Array]:
    """The parameters with the ``count`` largest singular values of the chain brought near 1.

    Recurrent matrices and biases are moved by Adam (optax), along the median sequence of the batch. Raises
    InputError where optax is not installed, or where a value has no derivative.
    """
    optax: Any = library("optax", "floss")
    size = network.problem.system.size
    if not 1 <= count <= size:
        raise InputError(f"--floss is {count}, expected 1 to {size} (the size of the state)")
    parameters = {
        name: array for name, array in network.parameters.items() if is_recurrent(name) or is_any_bias(name)
    }
    optimiser = optax.adam(_RATE)
    state, best = optimiser.init(parameters), (math.inf, parameters)
    for step in range(STEPS + 1):
        loss, gradient = network.exponents(network.parameters | parameters, count)
        if loss < best[0]:
            best = loss, parameters
        worst = math.sqrt(loss) * network.analysis.full.steps / math.log(10.0)
        if step % 10 == 0:
            report(f"flossing, step {step}: log10 of the largest values within {worst:.3g} of 0")
        if worst <= _DONE or step == STEPS:
            break
        moves, state = optimiser.update({name: gradient[name] for name in parameters}, state)
        parameters = {name: np.asarray(parameters[name] + moves[name]) for name in parameters}
    return dict(network.parameters) | best[1]
