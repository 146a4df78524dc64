"""What the field advises where a number of one network cannot tell, each with its source."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradscope.advise.goals import Goal, Horizon
from gradscope.advise.network import Network
from gradscope.errors import counted
from gradscope.report.next_steps import carousel_bias

_CLIP = (
    "Clip the norm of the gradient where it explodes: it bounds a step and changes no direction (Pascanu, "
    "Mikolov and Bengio 2013, arXiv 1211.5063)."
)
_NO_CURE = (
    "No clipping brings back what has vanished: it multiplies the whole gradient by one number, so that the "
    "share of a lag stays what it is (Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063)."
)
_TRUNCATE = (
    "Beyond the horizon backpropagation adds nothing: truncating it there is cheaper and loses as little "
    "(Aicher, Foti and Fox 2019, arXiv 1905.07473, choose the length by the bias)."
)
_NORMALISE = (
    "Layer normalisation keeps pre-activations where units have a slope, whatever weights grow to (Ba, Kiros "
    "and Hinton 2016, arXiv 1607.06450); it is another network, to be trained anew."
)


def field_advice(network: Network, goal: Goal, layers: str = "") -> Iterator[str]:
    """Advice for this network, called so, and for what is asked of it."""
    vanishing = goal.excess(network.analysis) < 0
    if vanishing:
        yield from (f"{layers}: {said}" if layers else said for said in _carousel(network, goal))
        yield _NO_CURE
        yield _TRUNCATE
    else:
        yield _CLIP
    yield _NORMALISE


def _carousel(network: Network, goal: Goal) -> Iterator[str]:
    """What the gate that holds the state does on its own, of an LSTM or a GRU."""
    parameters = network.parameters
    biases = [key for key in parameters if key.rpartition(".")[2] == "b_f"]
    if not biases:
        biases = [key for key in parameters if key.rpartition(".")[2] == "b_z" and "carry" in _paths(network)]
    if not biases:
        return
    steps = goal.steps if isinstance(goal, Horizon) else network.analysis.full.steps
    tau = network.policy.vanishing_below
    now = float(np.median([np.median(parameters[key]) for key in biases]))
    halved = math.log(0.5) / -math.log1p(math.exp(-now))
    name = biases[0].rpartition(".")[2]
    held = 1 / (1 + math.exp(-now))
    yield (
        f"{name} is {now:.2f} in the median: alone it holds {held:.2f} of a state per step, halved every "
        f"{halved:.3g} steps. For {counted(steps, 'step')} it would have to be "
        f"{carousel_bias(steps, tau):.2f} at a gain of {tau:g}, {carousel_bias(steps, math.exp(-1)):.2f} at "
        "1/e (Gers, Schmidhuber and Cummins 2000 and Jozefowicz et al. 2015 set 1; Tallec and Ollivier 2018, "
        "arXiv 1804.11188, draw it for lags up to T: --init chrono)."
    )


def _paths(network: Network) -> set[str]:
    """Of all layers."""
    cell = network.problem.system.cell
    return {path for one in (cell, *(member.cell for member in cell.members)) for path in one.paths}
