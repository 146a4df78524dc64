"""Slopes too small for float64: chains of saturated units against arithmetic that holds them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from oracles.any_exponent import log10_norms, stacked, step_of
from oracles.few import few

import gradscope
from gradscope.cells import find
from gradscope.cells.cell import Member
from gradscope.cells.stack import stacked as stacked_cell
from gradscope.linearize.system import System
from gradscope.linearize.trajectory import states_of

N, D, T = 3, 2, 10
CELLS = ["rnn", "rnn-sigmoid", "gru", "gru-reset-before", "lstm", "lstm-peephole", "lstm-cifg", "lstm-noaf"]


def network(cell, weights, size):
    """Weights and inputs of these sizes, and the states that they lead to."""
    rng, found = np.random.default_rng(1), find(cell)
    shapes = found.shapes(N, D).items()
    arrays = {key: weights * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in shapes}
    inputs = size * rng.normal(size=(1, T, D))
    system = System(found, N, arrays, inputs, np.zeros((1, found.size(N))))
    return arrays, inputs, states_of(system, jax.devices()[:1])[0]


@pytest.mark.parametrize("size", [1e3, 1e6])
@pytest.mark.parametrize("cell", few(CELLS, "rnn"))
def test_the_gain_is_that_of_numbers_of_any_size(cell, size, tmp_path):
    arrays, inputs, states = network(cell, 3.0, size)
    np.savez(tmp_path / "cell.npz", **arrays)
    found = gradscope.analyze(checkpoint=tmp_path / "cell.npz", cell=cell, inputs=inputs, only="gain").full
    expected = log10_norms(step_of(cell), arrays, inputs[0], states)
    assert expected[-1] < -200
    error = found.spectra[0].log10_norm_error
    assert error < 1e-3
    np.testing.assert_allclose(found.by_lag[0], expected, rtol=1e-14, atol=10 * error)
    assert found.log10_norm.median == pytest.approx(expected[-1], abs=error)


def test_every_value_path_and_share_of_such_a_chain_is_measured(tmp_path):
    arrays, inputs, states = network("rnn", 3.0, 1e4)
    np.savez(tmp_path / "cell.npz", **arrays)
    found = gradscope.analyze(checkpoint=tmp_path / "cell.npz", cell="rnn", inputs=inputs)
    (spectrum,) = found.full.spectra
    assert (spectrum.exact_zeros, spectrum.lost) == (0, 0)
    # All of them together are the determinants', whose slopes sech^2 a are 4 exp(-2 |a|) far out.
    a = np.abs(inputs[0] @ arrays["W"].T + states[:-1] @ arrays["R"].T + arrays["b"])
    assert a.min() > 20
    _, log_determinant = np.linalg.slogdet(arrays["R"])
    expected = (T * log_determinant + (np.log(4.0) - 2 * a).sum()) / np.log(10)
    assert spectrum.log10_singular_values.sum() == pytest.approx(expected, rel=1e-12)
    assert found.shares == {"R": pytest.approx(1.0, abs=1e-6)}
    assert not any("are 0 in float64" in note for note in found.verdict.notes)


def test_units_that_are_dead_have_no_slope_however_small(tmp_path):
    arrays = {"W": np.full((1, 1), -1.0), "R": np.ones((1, 1)), "b": np.zeros(1)}
    np.savez(tmp_path / "cell.npz", **arrays)
    given = {"checkpoint": tmp_path / "cell.npz", "inputs": np.full((1, T, 1), 1e4)}
    dead = gradscope.analyze(**given, cell="rnn-relu").full
    assert (dead.log10_norm.median, dead.spectra[0].exact_zeros) == (-np.inf, 1)
    # At a = -(1e4 + h) the slope of elu is exp(a), and h is -1.
    falling = gradscope.analyze(**given, cell="rnn-elu").full
    assert falling.log10_norm.median == pytest.approx(-(T * 1e4 + T - 1) / np.log(10), rel=1e-12)


def test_layers_that_read_each_other_have_such_slopes_between_them_too(tmp_path):
    sizes, rng = (D, N), np.random.default_rng(2)
    shapes = {f"layer{k}.{key}": one for k in (0, 1) for key, one in find("rnn").shapes(N, sizes[k]).items()}
    arrays = {key: 300.0 * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in shapes.items()}
    inputs = rng.normal(size=(1, T, D))
    np.savez(tmp_path / "two.npz", **arrays)
    given = {"map": {name: name for name in arrays}, "reads": "layer1=layer0", "only": "gain"}
    found = gradscope.analyze(checkpoint=tmp_path / "two.npz", cell="rnn", inputs=inputs, **given).full
    members = tuple(Member(find("rnn"), N, sizes[k], k, (((0, D),), (0,))[k]) for k in (0, 1))
    system = System(stacked_cell(members), N, arrays, inputs, np.zeros((1, 2 * N)))
    states = states_of(system, jax.devices()[:1])[0]
    expected = log10_norms(stacked([step_of("rnn")] * 2, N), arrays, inputs[0], states)
    assert expected[-1] < -320
    np.testing.assert_allclose(
        found.by_lag[0], expected, rtol=1e-14, atol=10 * found.spectra[0].log10_norm_error
    )
