"""A cell's chain in numbers of any exponent: complex steps of ``equations`` in python-flint's balls.

A number is an integer and a ball beside it, so that 1 - 1e-1000 has digits: a state is what the equations
make of the one before it, to the last of them, and as many as float64 has of it are those of the trajectory.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import flint
import numpy as np

from oracles.equations import CELLS, Step, Use, block, cho, elman, gru

H = flint.arb(2) ** -20000  # no rounding is in it, and no term of H^2 where sums cancel to 1e-300
# As many as leave every norm its digits: terms that cancel take them.
BITS = (500, 2000)
SURE = 2.0**-40
# A state that is no further from an integer has digits that float64 does not hold.
NEAR = 2.0**-8


class Beside:
    """whole + rest, an int and an acb."""

    def __init__(self, whole: int, rest: flint.acb) -> None:
        self.whole, self.rest = whole, rest

    def __add__(self, other: Any) -> Beside:
        other = _beside(other)
        return Beside(self.whole + other.whole, self.rest + other.rest)

    def __neg__(self) -> Beside:
        return Beside(-self.whole, -self.rest)

    def __mul__(self, other: Any) -> Beside:
        other = _beside(other)
        rest = self.whole * other.rest + other.whole * self.rest + self.rest * other.rest
        return Beside(self.whole * other.whole, rest)

    def __sub__(self, other: Any) -> Beside:
        return self + -_beside(other)

    def __rsub__(self, other: Any) -> Beside:
        return _beside(other) - self

    __radd__, __rmul__ = __add__, __mul__

    @property
    def all(self) -> flint.acb:
        return self.whole + self.rest

    def tanh(self) -> Beside:
        a = self.all
        if abs(float(a.real.mid())) < 1:
            return Beside(0, a.tanh())
        side = 1 if a.real > 0 else -1
        return Beside(side, -2 * side / (1 + (2 * side * a).exp()))

    def sigmoid(self) -> Beside:
        a = self.all
        return Beside(1, -1 / (1 + a.exp())) if a.real > 0 else Beside(0, 1 / (1 + (-a).exp()))


def _beside(value: Any) -> Beside:
    if isinstance(value, int):  # a ball about 1 would swallow what is left beside it
        return Beside(value, flint.acb(0))
    return value if isinstance(value, Beside) else Beside(0, flint.acb(value))


_number = np.vectorize(_beside, otypes=[object])
sigmoid = np.vectorize(Beside.sigmoid, otypes=[object])


@np.vectorize
def relu(a: Beside) -> Beside:
    return a if a.all.real > 0 else _beside(0)


@np.vectorize
def mean(weight: Beside, old: Beside, new: Beside) -> Beside:
    """weight * old + (1 - weight) * new, of which neither weight is lost beside 1."""
    if weight.all.real < 0.5:
        return new + weight * (old - new)
    return old + (1 - weight) * (new - old)


_STEPS = {
    "rnn-relu": elman(relu),
    "rnn-sigmoid": elman(sigmoid),
    "gru": gru(sigma=sigmoid, mean=mean),
    "gru-reset-before": cho(sigma=sigmoid, mean=mean),
    "lstm": block(sigma=sigmoid),
    "lstm-1997": block(without="f", sigma=sigmoid),
    "lstm-peephole": block("ifo", sigma=sigmoid),
    "lstm-nig": block("fo", without="i", sigma=sigmoid),
    "lstm-nfg": block("io", without="f", sigma=sigmoid),
    "lstm-nog": block("if", without="o", sigma=sigmoid),
    "lstm-niaf": block("ifo", g=lambda a: a, sigma=sigmoid),
    "lstm-noaf": block("ifo", h=lambda a: a, sigma=sigmoid),
    "lstm-cifg": block("io", coupled=True, sigma=sigmoid, mean=mean),
    "gru-relu": gru(relu, sigmoid),
    "gru-reset-before-relu": cho(relu, sigmoid),
    "lstm-relu": block(g=relu, h=relu, sigma=sigmoid),
    "lstm-peephole-relu": block("ifo", g=relu, h=relu, sigma=sigmoid),
    "lstm-cifg-relu": block("io", coupled=True, g=relu, h=relu, sigma=sigmoid, mean=mean),
}
KNOWN = {*_STEPS, *CELLS}


def step_of(cell: str) -> Step:
    return _STEPS[cell] if cell in _STEPS else CELLS[cell][0]


def stacked(steps: list[Step], hidden: int) -> Step:
    """Layers one upon the other: their states in this order, h of ``hidden`` units last of each."""

    def step(p: dict[str, np.ndarray], x: np.ndarray, state: np.ndarray, use: Use) -> np.ndarray:
        found = []
        for number, (one, own) in enumerate(zip(steps, np.split(state, len(steps)), strict=True)):
            prefix = f"layer{number}."
            mine = {key.removeprefix(prefix): a for key, a in p.items() if key.startswith(prefix)}
            found.append(one(mine, x, own, use))
            x = found[-1][-hidden:]
        return np.concatenate(found)

    return step


def jacobian(step: Step, p: dict[str, np.ndarray], x: np.ndarray, state: np.ndarray) -> flint.arb_mat:
    """(m, m): f(s + ih e_j) = f(s) + ih f'(s) e_j + O(h^2)."""
    columns = []
    for j in range(len(state)):
        moved = state.copy()
        moved[j] = state[j] + flint.acb(0, H)
        columns.append([_known(each.rest.imag) / H for each in step(p, x, moved, _read)])
    return flint.arb_mat(columns).transpose()


def _read(_: str, value: Any) -> Any:
    return value


def _known(number: flint.arb) -> flint.arb:
    """0 of what no bit is known of."""
    return flint.arb(0) if number.contains(0) else number


def along(step: Step, p: dict[str, np.ndarray], inputs: np.ndarray, states: np.ndarray) -> list[np.ndarray]:
    """The states before every step: the trajectory's, with the digits that they have beside an integer."""
    found = [_number(states[0])]
    for x, after in zip(inputs[:-1], states[1:], strict=False):
        made = step(p, x, found[-1], _read)
        found.append(np.array([_refined(*each) for each in zip(made, after.tolist(), strict=True)], object))
    return found


def _refined(made: Beside, state: float) -> Beside:
    """A state as it was made, if that is near an integer, else the number of the trajectory."""
    near = round(state) if math.isfinite(state) and abs(state) < 1e6 else 0
    rest = made.rest + (made.whole - near)
    close = abs(state - near) < NEAR and abs(float(rest.real.mid()) - (state - near)) < NEAR
    return Beside(near, flint.acb(rest.real)) if close else _beside(state)


def log10_norms(
    step: Step,
    parameters: dict[str, np.ndarray],
    inputs: np.ndarray,
    states: np.ndarray,
    lags: int | None = None,
) -> np.ndarray:
    """log10 sigma_1 of J_T ... J_(T-k+1), k = 1 ... lags; inputs (T, d), states (T + 1, m).

    NaN of those of which the longest balls leave nothing.
    """
    for bits in BITS:
        before, flint.ctx.prec = flint.ctx.prec, bits
        try:
            p = {key: _number(array) for key, array in parameters.items()}
            read = _number(inputs)
            every = list(zip(read, along(step, p, read, states), strict=True))
            product, found = None, []
            for x, state in reversed(every[-lags:] if lags else every):
                one = jacobian(step, p, x, state)
                product = one if product is None else (product * one)
                found.append(log10_norm(product) if _sure(product) else math.nan)
        finally:
            flint.ctx.prec = before
        if not np.isnan(found).any():
            break
    return np.array(found)


def _sure(matrix: flint.arb_mat) -> bool:
    """Whether the balls are small beside the largest entry."""
    entries = matrix.entries()
    largest = max(abs(each.mid()) for each in entries)
    return all(each.rad() <= largest * SURE for each in entries)


def log10_of_loss(
    step: Step, parameters: dict[str, np.ndarray], inputs: np.ndarray, states: np.ndarray, seed: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """log10 norms of what a loss, of derivatives ``seed`` by the last state, sends back.

    By lag k = 0 ... T; {bias: (T,)} by that bias at the steps T - k + 1 alone; and {parameter: (T,)} by it at
    those up to T - k + 1, the last first: the whole gradient, and what BPTT leaves out that is cut at k - 1.
    """
    before, flint.ctx.prec = flint.ctx.prec, BITS[0]
    try:
        p = {key: _number(array) for key, array in parameters.items()}
        read = _number(inputs)
        adjoint = flint.arb_mat([seed.tolist()])
        norms, by_step = [log10_norm(adjoint)], {key: [] for key in p}
        for x, state in reversed(list(zip(read, along(step, p, read, states), strict=True))):
            for key in p:
                by_step[key].append(adjoint * _by_parameter(step, p, key, x, state))
            adjoint = adjoint * jacobian(step, p, x, state)
            norms.append(log10_norm(adjoint))
        deltas = {key: np.array(list(map(log10_norm, by_step[key]))) for key in p if key.startswith("b")}
        left = {key: _sums_from_the_end(each) for key, each in by_step.items()}
        return np.array(norms), deltas, left
    finally:
        flint.ctx.prec = before


def elasticity(
    step: Step, parameters: dict[str, np.ndarray], inputs: np.ndarray, start: np.ndarray, name: str
) -> float:
    """d log sigma_1 / d log alpha of a parameter times alpha: a central difference of exact trajectories."""
    before, flint.ctx.prec = flint.ctx.prec, BITS[0]
    try:
        by = flint.arb(2) ** -100
        up, down = (
            _log_norm(_product(step, parameters, inputs, start, {name: 1 + sign * by})) for sign in (1, -1)
        )
        return float((up - down) / (2 * by))
    finally:
        flint.ctx.prec = before


def _product(
    step: Step,
    parameters: dict[str, np.ndarray],
    inputs: np.ndarray,
    start: np.ndarray,
    factors: dict[str, flint.arb],
) -> flint.arb_mat:
    """J_T ... J_1 along the trajectory that these lead to, of which no state is rounded to 53 bits."""
    p = {key: _number(array) * flint.acb(factors.get(key, 1)) for key, array in parameters.items()}
    state, product = _number(start), None
    for x in _number(inputs):
        one = jacobian(step, p, x, state)
        product = one if product is None else one * product
        state = np.array([_centred(each) for each in step(p, x, state, _read)], object)
    return product


def _centred(made: Beside) -> Beside:
    """The same with the integer that is nearest to it."""
    near = round(float(made.all.real.mid()))
    return Beside(near, flint.acb((made.rest + (made.whole - near)).real))


def _log_norm(matrix: flint.arb_mat) -> flint.arb:
    """ln of the largest singular value, by repeated squaring of A^T A."""
    gram, found = matrix.transpose() * matrix, flint.arb(0)
    for k in range(60):
        size = gram.trace()
        found += size.log() / flint.arb(2) ** (k + 1)
        gram = (gram / size) * (gram / size)
    return found


def _sums_from_the_end(each: list[flint.arb_mat]) -> np.ndarray:
    sums = list(itertools.accumulate(reversed(each)))
    return np.array([log10_norm(one) for one in reversed(sums)])


def _by_parameter(
    step: Step, p: dict[str, np.ndarray], key: str, x: np.ndarray, state: np.ndarray
) -> flint.arb_mat:
    """(m, entries of the parameter), by complex steps."""
    columns = []
    for place in np.ndindex(p[key].shape):
        moved = p[key].copy()
        moved[place] = moved[place] + flint.acb(0, H)
        columns.append([_known(each.rest.imag) / H for each in step({**p, key: moved}, x, state, _read)])
    return flint.arb_mat(columns).transpose()


def log10_norm(matrix: flint.arb_mat) -> float:
    entries = [each.mid().man_exp() for each in matrix.entries()]
    sizes = [int(man).bit_length() + int(exp) for man, exp in entries if man != 0]
    if not sizes:
        return -math.inf
    top = max(sizes)
    held = [_float(int(man), int(exp) - top) for man, exp in entries]
    sigma = np.linalg.norm(np.reshape(held, (matrix.nrows(), matrix.ncols())), 2)
    return float(np.log10(sigma)) + top * math.log10(2)


def _float(man: int, exp: int) -> float:
    spare = max(0, abs(man).bit_length() - 60)
    return math.ldexp(float(man >> spare if man > 0 else -(-man >> spare)), max(exp + spare, -2000))
