"""Rates of mean-field theory: numbers of the papers, closed forms, and what they say of large networks."""

import math

import numpy as np
import pytest

import gradscope
from gradscope.grid.mean_field import theory_rate
from gradscope.problem.problem import make_problem
from gradscope.settings import Settings


def theory(**given):
    return theory_rate(make_problem(Settings(**{"init": "orthogonal", "input_size": 4, **given})))


@pytest.mark.parametrize(("gain", "rate"), [(1.5, 0.0652), (2.0, 0.1547), (3.0, 0.3103)])
def test_lyapunov_exponents_of_random_tanh_networks(gain, rate):
    """Molgedey et al. 1992, as Engelken et al. (arXiv 2006.02427) tell them."""
    given = {"cell": "rnn", "hidden": 16, "inputs": "zeros", "gain": gain}
    moved = {"h0": np.full(16, 0.1)}
    assert theory(**given, initial_state=moved) == pytest.approx(rate, abs=6e-5)
    # From zero itself it never moves: its units are linear.
    assert theory(**given) == pytest.approx(math.log(gain), abs=1e-9)


@pytest.mark.parametrize("gain", [0.25, 0.9, 1.0])
def test_below_the_critical_gain_units_are_linear(gain):
    rate = theory(cell="rnn", hidden=16, inputs="zeros", gain=gain)
    assert rate == pytest.approx(math.log(gain), abs=1e-9)


@pytest.mark.parametrize(("entering", "critical"), [(0.05, 1.32701), (0.25, 1.549674), (1.0, 1.855589)])
def test_the_critical_gain_grows_with_the_inputs(entering, critical):
    """chi = 1: what the inputs add has this variance."""
    problem = make_problem(Settings(cell="rnn", hidden=16, input_size=4, init="orthogonal", gain=critical))
    driven = problem.system.inputs @ problem.system.parameters["W"].T
    problem.system.parameters["W"] *= math.sqrt(entering / np.mean(driven**2))
    assert theory_rate(problem) == pytest.approx(0.0, abs=2e-6)


def test_a_bias_enters_as_it_is():
    """By a sum over a fine grid of z; the fixed point by plain iteration."""
    z = np.linspace(-9, 9, 2001)
    weights = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    v = 1.0
    for _ in range(200):
        v = 1.4**2 * weights @ np.tanh(math.sqrt(v) * z + 0.7) ** 2
    chi = 1.4**2 * weights @ np.cosh(math.sqrt(v) * z + 0.7) ** -4
    found = theory(cell="rnn", hidden=16, inputs="zeros", gain=1.4, biases={"b": 0.7})
    assert found == pytest.approx(0.5 * math.log(chi), abs=1e-9)


def test_critical_gains_of_gated_cells_at_rest():
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    for b_r in (-1.0, 0.0, 2.0):
        given = {"cell": "gru", "hidden": 8, "inputs": "zeros", "biases": {"b_r": b_r, "b_z": 0.4}}
        assert theory(gain=1 + math.exp(-b_r), **given) == pytest.approx(0.0, abs=1e-12)
    f, i, o = sigmoid(1.0), sigmoid(-0.5), sigmoid(0.25)
    biases = {"b_f": 1.0, "b_i": -0.5, "b_o": 0.25}
    given = {"cell": "lstm", "hidden": 8, "inputs": "zeros", "biases": biases}
    assert theory(gain=(1 - f) / (o * i), **given) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "given",
    [
        {"cell": "rnn-relu"},
        {"cell": "rnn", "init": "identity"},
        {"cell": "lstm"},
        {"cell": "lstm", "inputs": "zeros", "init": "pytorch"},
        {"cell": "gru", "inputs": "zeros", "biases": {"b_h": 0.1}},
        {"cell": "rnn", "scale": {"R": 0.5}},
        {"cell": "rnn", "gain": 0.0},
    ],
)
def test_where_theory_has_no_number(given):
    assert theory(hidden=8, **given) is None


def test_what_is_measured_comes_near():
    """An LSTM at rest is linear: its rate is that of the powers of one random matrix."""
    given = {"cell": "lstm", "hidden": 48, "inputs": "zeros", "init": "gaussian", "biases": {"b_f": 1.0}}
    (row,) = gradscope.sweep(grid={"gain": [1.5]}, **given, steps=150).points
    assert row["rate"] == pytest.approx(row["theory_rate"], abs=0.05)
