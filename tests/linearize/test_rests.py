"""What states have beside levels, where floats have nothing: an LSTM's c that f c and i z cancel to 0."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from oracles.few import few

from gradscope.cells import find
from gradscope.cells.cell import Cell
from gradscope.linearize import sequence
from gradscope.linearize.sequence import Linearized
from gradscope.linearize.system import System
from gradscope.product_svd.extended_range_array import Wide

N, T = 3, 8
VARIANTS = ["lstm", "lstm-1997", "lstm-peephole", "lstm-nig", "lstm-nog", "lstm-noaf"]


def driven(cell, size, seed=0):
    """A cell whose gates are open and whose block input changes sides; {gate: (T, N)} pre-activations."""
    rng, shapes = np.random.default_rng(seed), find(cell).shapes(N, 1)
    gates = [name.removeprefix("W_") for name in shapes if name.startswith("W_")]
    a = {gate: size * rng.uniform(0.4, 1.0, size=(T, N)) for gate in gates}
    a["z"] *= np.where(np.arange(T)[:, None] % 2, -1.0, 1.0) * rng.choice([-1.0, 1.0], size=N)
    arrays = {name: np.zeros(shape) for name, shape in find(cell).shapes(N, N * len(gates)).items()}
    for k, gate in enumerate(gates):
        arrays[f"W_{gate}"][:, k * N : (k + 1) * N] = np.eye(N)
    inputs = np.concatenate([a[gate] for gate in gates], axis=1)[None]
    return System(find(cell), N, arrays, inputs, np.zeros((1, 2 * N))), a


def slopes(cell, a):
    """log10 of the slopes of c and h by the pre-activations of f and o at every step, of unit after unit."""
    one, squash = mpmath.mpf(1), (lambda c: c) if cell == "lstm-noaf" else mpmath.tanh
    found = {gate: np.zeros((T, 2, N)) for gate in "fo" if gate in a}
    for unit in range(N):
        c = mpmath.mpf(0)
        for t in range(T):
            at = {gate: mpmath.mpf(float(values[t, unit])) for gate, values in a.items()}
            opening = {gate: 1 / (1 + mpmath.exp(-x)) for gate, x in at.items() if gate != "z"}
            slope = {gate: s * (1 - s) for gate, s in opening.items()}
            before, c = c, opening.get("f", one) * c + opening.get("i", one) * mpmath.tanh(at["z"])
            out = opening.get("o", one) * (1 if cell == "lstm-noaf" else mpmath.sech(c) ** 2)
            if "f" in found:
                found["f"][t, :, unit] = [log10(before * slope["f"]), log10(out * before * slope["f"])]
            if "o" in found:
                found["o"][t, :, unit] = [-np.inf, log10(squash(c) * slope["o"])]
    return found


def log10(x):
    return float(mpmath.log10(abs(x))) if x else -np.inf


def compared(chain, expected):
    for path in chain.paths:
        if (gate := path.name.removeprefix("R_")) in expected:
            found = path.far.log10 if path.far is not None else Wide.of(path.slope).log10
            # Through exp(a) of a rounded a, of either gate that has a part in c.
            np.testing.assert_allclose(found, expected[gate], rtol=1e-14, atol=1e-12)


@pytest.mark.parametrize("cell", few(VARIANTS, "lstm", "lstm-nog"))
def test_what_levels_leave_of_each_other_has_all_its_digits(cell, monkeypatch):
    system, a = driven(cell, 60.0)
    with mpmath.workdps(100):
        expected = slopes(cell, a)
    # c is 1 and 0 by turns, and float64 has nothing of what is left, or roundings.
    assert min(each[each > -np.inf].min() for each in expected.values()) < -30
    compared(Linearized(system, 0, jax.devices()[0]).segment(0), expected)
    monkeypatch.setattr(sequence, "SEGMENT_BYTES", 1)
    parts = Linearized(system, 0, jax.devices()[0])
    assert len(parts.starts) > 1
    for i, start in reversed([*enumerate(parts.starts)]):
        chain = parts.segment(i)
        compared(chain, {gate: each[start : start + chain.steps] for gate, each in expected.items()})


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "lstm-noaf"])
def test_so_has_what_is_below_float64(cell):
    system, a = driven(cell, 1e3)
    with mpmath.workdps(1000):
        expected = slopes(cell, a)
    chain = Linearized(system, 0, jax.devices()[0]).segment(0)
    assert chain.beyond
    compared(chain, expected)


def test_a_cell_of_ones_own_has_them_too():
    """c = c + tanh(a), whose sum of +-1 is read by nothing but its own slope."""

    def step(parameters, x, c):
        return c + jnp.tanh(x) + 0.0 * parameters["R"] @ c + jnp.square(c)

    cell = Cell("own", lambda hidden, _: {"R": (hidden, hidden)}, step)
    inputs = np.array([20.0, -30.0, 0.0])[None, :, None]
    chain = Linearized(System(cell, 1, {"R": np.ones((1, 1))}, inputs, -np.ones((1, 1))), 0, jax.devices()[0])
    # c_1 = -1 + tanh(20) + 1, c_2 = c_1 + c_1^2 - tanh(30): slopes 1 + 2 c.
    with mpmath.workdps(50):
        c = mpmath.mpf(-1)
        for t, x in enumerate((20, -30, 0)):
            assert chain.segment(0)[t] == pytest.approx(float(1 + 2 * c), rel=1e-14)
            c = c + mpmath.tanh(x) + c * c
