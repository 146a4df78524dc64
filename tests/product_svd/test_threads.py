"""Threads, the fast accuracy, and lags whose strongest direction changes, against exact arithmetic."""

import numpy as np
import pytest
from oracles.chains import CHAINS
from oracles.reference import reference

import gradscope


def test_lags_where_the_strongest_direction_dies_later():
    """Block diagonal: the top block decays 1e-60 a step later on, the other one carries the rest."""
    chain = np.zeros((40, 4, 4))
    rng = np.random.default_rng(5)
    for t in range(40):
        top = 1e-12 if t < 20 else 10.0  # the last twenty steps come first from the output
        chain[t, :2, :2] = top * np.linalg.qr(rng.normal(size=(2, 2)))[0]
        chain[t, 2:, 2:] = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    lags = gradscope.spectrum(chain, by_lag=True).log10_norm_by_lag
    expected = [k if k <= 20 else max(20 - 12 * (k - 20), 0) for k in range(1, 41)]
    np.testing.assert_allclose(lags, expected, rtol=0, atol=1e-12)


def test_threads_change_nothing():
    """The run on changed entries beside the first, or after it; of a step without full rank with its plan."""
    chain = CHAINS["tanh"](100, 40, 0)
    flat = np.array(chain[:8])
    flat[5] = flat[5][:, :90] @ flat[3][:90]
    for some in (chain, flat):
        one, four = (gradscope.spectrum(some, workers=n, by_lag=True, entry_error=1e-15) for n in (1, 4))
        np.testing.assert_array_equal(one.log10_singular_values, four.log10_singular_values)
        np.testing.assert_array_equal(one.log10_norm_by_lag, four.log10_norm_by_lag)
        assert (one.log10_error, one.exact_zeros) == (four.log10_error, four.exact_zeros)


def test_exact_rank_of_a_product():
    """A rank-deficient integer step: how many zeros there are the entries say, which are exact."""
    rng = np.random.default_rng(0)
    chain = rng.integers(-3, 4, size=(40, 100, 100)).astype(float)
    chain[5] = chain[5][:, :90] @ rng.integers(-1, 2, size=(90, 100))
    rank = np.linalg.matrix_rank(chain[5])
    assert gradscope.spectrum(chain, workers=4).exact_zeros == 100 - rank


OTHERS = sorted(set(CHAINS) - {"gru", "jordan"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["gru", "jordan", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)],
)
def test_fast_is_right_to_a_millionth_or_says_so(name):
    chain = CHAINS[name](50, 40, 2)
    true = reference(chain)
    found = gradscope.spectrum(chain, accuracy="fast")
    assert found.exact_zeros == true.exact_zeros
    errors = np.abs(true.log10_errors(found.log10_singular_values[: 50 - true.exact_zeros]))
    assert errors.max() <= max(1e-6 / np.log(10), found.log10_error)
    assert errors.max() <= 10 * found.log10_error
    assert errors[0] <= max(1e-12, found.log10_norm_error)


@pytest.mark.slow
def test_fast_says_so_where_pivots_tell_nothing():
    """A Jordan block in another basis: no pivot is small, and yet the smallest values are lost."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 50)))[0]
    chain = np.array([turn @ a @ turn.T for a in CHAINS["jordan"](50, 40, 2)])
    found = gradscope.spectrum(chain, accuracy="fast", entry_error=1e-15)
    errors = np.abs(reference(chain).log10_errors(found.log10_singular_values))
    assert 1e-4 < errors.max() <= 10 * found.log10_error
