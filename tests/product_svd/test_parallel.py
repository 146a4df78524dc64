"""Segments of a chain, run side by side and merged, against exact arithmetic and against one segment."""

import numpy as np
import pytest
from oracles.chains import CHAINS
from oracles.few import few
from oracles.reference import conditioning, reference

import gradscope
from gradscope.product_svd.graded_lu import Graded
from gradscope.product_svd.jacobi_svd import decomposed
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.steps import checked
from gradscope.product_svd.time_parallel import Pivoting, merged, product

EPS = np.finfo(float).eps
WALK = Pivoting(lambda t, ratio: len(ratio), {}, False, np.inf)
FULL_RANK = ["tanh", "lstm", "gru", "gaussian", "orthogonal", "scaled", "clustered"]


def log10_values(graded):
    found = decomposed(graded)
    return np.log10(found.mantissa) + found.exponent * np.log10(2.0)


@pytest.mark.parametrize("segments", few([2, 3, 5], 3))
@pytest.mark.parametrize("name", FULL_RANK)
def test_segments_are_as_accurate_as_exact_arithmetic_demands(name, segments):
    chain = CHAINS[name](12, 80, 3)
    steps, _ = checked(chain)
    true = reference(chain, vectors=True)
    errors = np.abs(true.log10_errors(log10_values(product(steps, WALK, None, segments)[0]))) * np.log(10)
    # Not counting that a float64 of some hundred decades is itself no better than its last place.
    allowed = np.maximum(1e-11, 4 * EPS * conditioning(chain, true)) + 2e-13
    assert np.all(errors <= allowed)


@pytest.mark.parametrize("segments", [2, 4])
@pytest.mark.parametrize("name", [*FULL_RANK, "near-singular", "jordan"])
def test_norm_by_lag_does_not_depend_on_segments(name, segments):
    """What is left out of the first segment is bounded, also where it comes back (Jordan blocks)."""
    steps, _ = checked(CHAINS[name](10, 60, 1))
    one = product(steps, WALK, LagNorm(), 1)[1]
    many = product(steps, WALK, LagNorm(), segments)[1]
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-12)


def test_lags_where_the_strongest_direction_dies_later():
    """Block diagonal: the top block decays 1e-60 a step later on, the other one carries the rest."""
    chain = np.zeros((40, 4, 4))
    rng = np.random.default_rng(5)
    for t in range(40):
        top = 1e-12 if t < 20 else 10.0  # the last twenty steps come first from the output
        chain[t, :2, :2] = top * np.linalg.qr(rng.normal(size=(2, 2)))[0]
        chain[t, 2:, 2:] = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    steps, _ = checked(chain)
    lags = product(steps, WALK, LagNorm(), 2)[1]
    expected = [k if k <= 20 else max(20 - 12 * (k - 20), 0) for k in range(1, 41)]
    np.testing.assert_allclose(lags, expected, rtol=0, atol=1e-12)


def test_merging_products_beyond_the_range_of_float64():
    """diag(10^-3000 .. 1) times an orthogonal matrix times diag(10^-2000 .. 1), in closed form for 2 x 2."""
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[c, -s], [s, c]])

    def diagonal(decades):
        exponent = np.array([0, -int(decades / np.log10(2))])
        return Graded(np.eye(2), np.ones(2), exponent, np.eye(2)), exponent * np.log10(2)

    (high, a), (low, b) = diagonal(3000), diagonal(2000)
    found = log10_values(merged(high, Graded(turn.T, low.mantissa, low.exponent, low.y), len))
    # sigma_1 = |cos|, and the determinant is the product of the two small entries.
    np.testing.assert_allclose(found, [np.log10(c), a[1] + b[1] - np.log10(c)], rtol=1e-15, atol=1e-13)


def test_workers_change_nothing_but_rounding():
    chain = CHAINS["tanh"](100, 40, 0)
    one, four = (gradscope.spectrum(chain, workers=n, by_lag=True) for n in (1, 4))
    scale = one.log10_error + four.log10_error
    assert np.abs(one.log10_singular_values - four.log10_singular_values).max() <= scale
    np.testing.assert_allclose(one.log10_norm_by_lag, four.log10_norm_by_lag, rtol=0, atol=1e-12)
    assert np.abs(one.left @ four.left) == pytest.approx(1, abs=1e-10)


def test_segments_leave_exact_rank_to_one_run():
    """A rank-deficient integer step in the first segment: how many zeros is for the whole chain to say."""
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
