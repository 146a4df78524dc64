"""A cell's chain in numbers of any exponent: complex steps of ``equations`` in python-flint's balls.

The slopes are those at given states, so that no rounding of a trajectory is in what is compared.
"""

from __future__ import annotations

import math

import flint
import numpy as np

from oracles.equations import CELLS, Step, Use, block, cho, elman, gru

H = flint.arb(2) ** -200  # no rounding is in it
BITS = 500
_number = np.vectorize(flint.acb, otypes=[object])


def relu(a: np.ndarray) -> np.ndarray:
    return np.array([each if each.real > 0 else flint.acb(0) for each in a], object)


class Gate(np.ndarray):
    """s(a) that knows 1 - s(a) = s(-a): no number of bits holds both."""

    complement: np.ndarray

    def __rsub__(self, one: int) -> np.ndarray:
        assert one == 1
        return self.complement


def sigmoid(a: np.ndarray) -> Gate:
    gate = np.array([1 / (1 + (-each).exp()) for each in a], object).view(Gate)
    gate.complement = np.array([1 / (1 + each.exp()) for each in a], object)
    return gate


_STEPS = {
    "rnn-relu": elman(relu),
    "gru": gru(sigma=sigmoid),
    "gru-reset-before": cho(sigma=sigmoid),
    "lstm-cifg": block("io", coupled=True, sigma=sigmoid),
    "gru-relu": gru(relu, sigmoid),
    "gru-reset-before-relu": cho(relu, sigmoid),
    "lstm-relu": block(g=relu, h=relu),
    "lstm-peephole-relu": block("ifo", g=relu, h=relu),
    "lstm-cifg-relu": block("io", coupled=True, g=relu, h=relu, sigma=sigmoid),
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
        moved[j] = flint.acb(state[j].real, H)
        columns.append([_known(each.imag) / H for each in step(p, x, moved, lambda _, value: value)])
    return flint.arb_mat(columns).transpose()


def _known(number: flint.arb) -> flint.arb:
    """0 of what no bit is known of: 1 - tanh a where a state is 1 itself."""
    return flint.arb(0) if number.contains(0) else number


def log10_norms(
    step: Step, parameters: dict[str, np.ndarray], inputs: np.ndarray, states: np.ndarray
) -> np.ndarray:
    """log10 sigma_1 of J_T ... J_(T-k+1), k = 1 ... T; inputs (T, d), states (T + 1, m)."""
    before, flint.ctx.prec = flint.ctx.prec, BITS
    try:
        p = {key: _number(array) for key, array in parameters.items()}
        product, found = None, []
        for x, state in zip(_number(inputs)[::-1], _number(states[:-1])[::-1], strict=True):
            one = jacobian(step, p, x, state)
            product = one if product is None else (product * one)
            found.append(log10_norm(product))
        return np.array(found)
    finally:
        flint.ctx.prec = before


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
