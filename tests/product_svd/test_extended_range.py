"""Chains that float64 cannot hold: against exact arithmetic, from both ends, and what is lost is counted."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from oracles import chains
from oracles.few import few
from oracles.reference import largest, reference

import gradscope
from gradscope.cells import CELLS, find
from gradscope.linearize.cell_chain import split
from gradscope.linearize.jacobians import linearize
from gradscope.linearize.system import precise
from gradscope.product_svd.extended_range_array import Wide, wide_product
from gradscope.product_svd.spectrum import spectrum

ENTRY_ERROR = 9e-16


def saturated(name, n, steps, size, seed=0, weights=1.0):
    """Jacobians of a cell on inputs of that size."""
    rng, cell = np.random.default_rng(seed), find(name)
    parameters = {
        key: weights * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in cell.shapes(n, 3).items()
    }
    inputs = size * rng.normal(size=(steps, 3))
    with precise("float64"):
        found = jax.device_get(linearize(cell, parameters, inputs, np.zeros(cell.size(n))))
    jacobians = split(cell, parameters, found)
    return np.array([jacobians[t] for t in range(steps)])


def check(found, true, entry_error):
    """Every known value is right, and with those lost and the zeros they are all."""
    values = found.log10_singular_values
    known = int(np.isfinite(values).sum())
    assert known >= 1
    assert np.isnan(values[known : known + found.lost]).all()
    assert known + found.lost + found.exact_zeros == len(values)
    errors = np.abs(values[:known] - np.array([float(v) for v in true.log10()[:known]]))
    assert errors[0] <= max(10 * found.log10_norm_error, 1e-12)
    assert errors.max() <= max(10 * found.log10_error, 1e-12)
    if entry_error is None:
        assert found.exact_zeros == true.exact_zeros


@pytest.mark.parametrize("entry_error", [None, ENTRY_ERROR])
@pytest.mark.parametrize(
    ("name", "n", "size", "seed"),
    [
        ("rnn", 4, 300, 0),
        ("lstm", 3, 100, 0),
        ("lstm", 3, 300, 1),
        pytest.param("lstm", 4, 1000, 1, marks=pytest.mark.slow),
        pytest.param("lstm-peephole", 3, 100, 0, marks=pytest.mark.slow),
        ("lstm-cifg", 4, 100, 1),
        ("gru", 6, 300, 0),
    ],
)
def test_saturated_cells_from_both_ends(name, n, size, seed, entry_error):
    chain = saturated(name, n, 20, size, seed)
    true = reference(chain, bits=8192)
    options = {} if entry_error is None else {"entry_error": entry_error}
    here, back = (spectrum(c, by_lag=True, **options) for c in (chain, chain[::-1].transpose(0, 2, 1)))
    check(here, true, entry_error)
    check(back, true, entry_error)
    np.testing.assert_allclose(here.log10_singular_values[0], back.log10_singular_values[0], atol=1e-12)
    for lag in (1, 2, 7, 20):
        expected = largest(chain[20 - lag :])
        assert here.log10_norm_by_lag[lag - 1] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("weights", "size"), [(1e-3, 1e6), (30, 1), (100, 0.1)])
def test_weights_of_any_size(weights, size):
    chain = saturated("lstm", 3, 50, size, weights=weights)
    found, true = spectrum(chain, by_lag=True, entry_error=ENTRY_ERROR), reference(chain, bits=16384)
    check(found, true, ENTRY_ERROR)
    assert np.isfinite(found.log10_norm_by_lag).all()


@pytest.mark.parametrize("name", ["tanh", "gru", "row-scaled", "both-scaled", "clustered", "dead both"])
def test_ordinary_chains_by_the_way_of_wide_ones(name, monkeypatch):
    monkeypatch.setattr("gradscope.product_svd.steps.WILD", 0.0)
    chain = chains.CHAINS[name](8, 40, 0)
    found, true = spectrum(chain, entry_error=ENTRY_ERROR), reference(chain)
    rank = len(true.sigma)
    np.testing.assert_allclose(
        found.log10_singular_values[:rank], [float(v) for v in true.log10()], atol=1e-10, rtol=0
    )
    assert found.exact_zeros + found.lost == 8 - rank


@pytest.mark.parametrize("fits", [1200, -1])
def test_what_is_left_out_changes_nothing_of_the_rest(fits, monkeypatch):
    monkeypatch.setattr("gradscope.product_svd.extended_range_chain.FOLLOWED", 3)
    monkeypatch.setattr("gradscope.product_svd.extended_range_lu.FITS", fits)
    chain = saturated("lstm", 6, 24, 100)
    found = spectrum(chain, by_lag=True, entry_error=ENTRY_ERROR)
    check(found, reference(chain, bits=8192), ENTRY_ERROR)
    assert np.isfinite(found.log10_singular_values[2])
    assert found.lost
    for lag in (1, 2, 5, 11, 24):
        expected = largest(chain[24 - lag :], bits=8192)
        assert found.log10_norm_by_lag[lag - 1] == pytest.approx(expected, abs=1e-10)
    chain[3] = 0
    assert spectrum(chain, entry_error=ENTRY_ERROR).exact_zeros == 12


@pytest.mark.parametrize(
    ("name", "weights", "size", "seed"),
    [("rnn", 30, 10, 28), ("gru", 30, 10, 175), ("lstm", 3, 10, 209), ("gru", 3, 10, 100)],
)
def test_small_saturated_chains_at_every_lag(name, weights, size, seed):
    # Rows of zeros, terms that cancel to their last bit, and directions that the next step all but ends.
    chain = saturated(name, 3, 10, size, seed, weights)
    found, true = spectrum(chain, by_lag=True, entry_error=ENTRY_ERROR), reference(chain, bits=16384)
    known = np.isfinite(found.log10_singular_values).sum()
    expected = [float(v) for v in true.log10()[:known]]
    assert found.log10_singular_values[:known] == pytest.approx(expected, abs=max(1e-6, found.log10_error))
    for lag in range(1, 11):
        expected = largest(chain[10 - lag :], bits=16384)
        assert found.log10_norm_by_lag[lag - 1] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "weights", "size", "seed"),
    [
        ("lstm-cifg", 10, 3, 2),
        ("lstm-cifg", 10, 0.3, 102),
        ("gru-reset-before", 10, 3, 126),
        # Of these one was known to an error that it had not.
        ("lstm-cifg", 30, 0.3, 172),
        ("lstm-cifg", 3, 10, 217),
    ],
)
def test_values_that_float64_would_take_for_noise_are_right_or_lost(name, weights, size, seed):
    # A pivot is small beside the largest entry of its row, and no rounding of its own terms.
    chain = saturated(name, 3, 10, size, seed, weights)
    found, true = spectrum(chain, entry_error=ENTRY_ERROR), reference(chain, bits=16384)
    check(found, true, ENTRY_ERROR)
    assert found.exact_zeros <= true.exact_zeros


def test_a_lag_of_which_rounding_leaves_nothing_is_lost_and_the_next_is_right():
    third = 1 / 3
    chain = np.zeros((4, 3, 3))
    chain[3] = [[1, 1, 0], [0.5, 0.5, 0], [0, 0, 1e-30]]
    # Beside what cancels here one entry is left of 1e-40, and the step before ends all else.
    chain[2] = [[third, 0.7, 0], [-third * (1 - 2**-52), -0.7, 0], [0, 0, 1e-10]]
    chain[1] = [[1e-90, 1e-90, 0], [0, 1e-90, 1e-95], [0, 0, 2]]
    chain[0] = np.random.default_rng(0).normal(size=(3, 3))
    for only_first in (False, True):
        found = spectrum(chain, by_lag=True, entry_error=ENTRY_ERROR, only_first=only_first)
        assert np.isnan(found.log10_norm_by_lag).tolist() == [False, True, False, False]
        for lag in (1, 3, 4):
            expected = largest(chain[4 - lag :])
            assert found.log10_norm_by_lag[lag - 1] == pytest.approx(expected, abs=1e-12)


def test_elimination_in_float64_is_that_with_an_exponent_for_every_entry(monkeypatch):
    chain, found = saturated("gru", 8, 40, 300, seed=1), []
    for fits in (1200, -1):
        monkeypatch.setattr("gradscope.product_svd.extended_range_lu.FITS", fits)
        found.append(spectrum(chain, by_lag=True, entry_error=ENTRY_ERROR))
    both = np.array([one.log10_singular_values for one in found])
    known = np.isfinite(both).all(axis=0)
    assert known.sum() >= 4
    np.testing.assert_allclose(*both[:, known], atol=max(one.log10_error for one in found), rtol=0)
    np.testing.assert_allclose(*(one.log10_norm_by_lag for one in found), atol=1e-11, rtol=0)


def test_products_of_numbers_far_apart():
    rng = np.random.default_rng(0)
    exponents = rng.integers(-3000, 3000, size=(2, 5, 5))
    a, b = (Wide.of(rng.normal(size=(5, 5)), e) for e in exponents)

    def exact(wide):
        # Fractions of integers: exact for any exponent.
        return [
            [int(m * 2**53) << int(e + 20000) for m, e in zip(*row, strict=True)]
            for row in zip(wide.mantissa, wide.exponent, strict=True)
        ]

    found = exact(wide_product(a, b)[0])
    left, right = exact(a), exact(b)
    for i in range(5):
        for j in range(5):
            true = sum(left[i][k] * right[k][j] for k in range(5)) >> (20000 + 53)
            assert abs(found[i][j] - true) * 10**14 <= abs(true)


@pytest.mark.parametrize("name", few(CELLS, "rnn"))
def test_no_analysis_of_unnormalised_inputs_ends_without_gain_and_lags(name):
    for size in (1.0, 300.0, 1e6):  # of one program
        inputs = size * np.random.default_rng(0).normal(size=(1, 20, 3))
        found = gradscope.analyze(cell=name, hidden=3, input_size=3, inputs=inputs)
        assert not np.isnan(found.full.log10_norm.median)
        assert not np.isnan(found.full.by_lag).any()
        assert found.full.by_lag.shape == (1, 20)
        told = found.to_dict()["chains"][0]
        assert ("unmeasured" in told) == (found.full.spectra[0].lost > 0)
