"""The largest value alone, against exact arithmetic; and where a small direction is the last."""

import numpy as np
import pytest
from oracles import chains
from oracles.few import few
from oracles.first_value import check_first
from oracles.reference import reference

from gradscope.product_svd.plain_product import InColumns, PlainProducts
from gradscope.product_svd.plain_values import values_of
from gradscope.product_svd.spectrum import EPS, spectrum
from gradscope.product_svd.steps import checked

LARGEST = [("lstm", 32, 100), ("gru", 48, 60), ("tanh", 40, 60)]


@pytest.mark.parametrize("name", few(chains.CHAINS, "lstm", "jordan", "dead unit"))
def test_against_exact_arithmetic(name):
    check(chains.CHAINS[name](8, 60, 0))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "m", "steps"), LARGEST)
def test_of_larger_chains(name, m, steps):
    check(chains.CHAINS[name](m, steps, 0))


def check(chain):
    true = reference(chain)
    found = spectrum(chain, by_lag=True, only_first=True)
    assert found.exact_zeros is None
    if true.exact_zeros == len(chain[0]):
        assert np.isneginf(found.log10_singular_values).all()
        return
    check_first(found, chain, true)


@pytest.mark.parametrize("after", [0, 3])
def test_a_chain_that_dies_with_no_zero_in_its_entries(after):
    """[1, -1; 1, -1] squared is zero, as a rectified unit's leak may make it."""
    dying = np.array([[1.0, -1.0], [1.0, -1.0]])
    chain = np.stack([dying, dying, *[np.ones((2, 2))] * after])
    found = spectrum(chain, by_lag=True, only_first=True)
    assert np.isneginf(found.log10_singular_values).all()
    np.testing.assert_allclose(found.log10_norm_by_lag[:after], np.log10(2.0) * np.arange(1, after + 1))


@pytest.mark.parametrize("n", [3, 20])
def test_what_was_shed_may_be_all_that_is_left(n):
    """From the output end the first block grows to 2^120, the second is shed; then the first dies."""
    sizes = np.concatenate([np.full(100, 1e-3), np.full(120, 2.0)])
    chain = chains.two_blocks(sizes, n)
    assert values_of(checked(chain)[0], 1, EPS) is None
    found = spectrum(chain, by_lag=True, only_first=True)
    assert found.log10_singular_values[0] == pytest.approx(0.0, abs=1e-12)
    expected = np.maximum(np.cumsum(np.log10(sizes[::-1])), 0.0)
    np.testing.assert_allclose(found.log10_norm_by_lag, expected, atol=1e-11)


def test_what_is_shed_and_stays_small_is_not_missed():
    sizes = np.full(200, 2.0)
    found = values_of(checked(chains.two_blocks(sizes, 20))[0], 1, EPS)
    assert found is not None
    assert found.log10[0] == pytest.approx(200 * np.log10(2), abs=1e-11)
    assert found.error[0] < 1e-10


def test_lags_that_are_asked_above_a_floor_alone():
    chain = chains.CHAINS["lstm"](8, 60, 0)
    whole = np.asarray(spectrum(chain, by_lag=True).log10_norm_by_lag)
    floor = np.log10(1e-3)
    found = np.asarray(spectrum(chain, by_lag=True, floor=floor, only_first=True).log10_norm_by_lag)
    above = whole >= floor
    np.testing.assert_allclose(found[above], whole[above], atol=1e-10)
    assert (found[~above] < floor).all()
    assert (found >= whole - 1e-10).all()


def turned(sizes):
    """(T, m, m) of Q_t+1 diag(sizes[t]) Q_t^T, and Q_T+1: products are known whatever is between."""
    rng = np.random.default_rng(0)
    steps, m = sizes.shape
    turns = np.linalg.qr(rng.normal(size=(steps + 1, m, m)))[0]
    return turns[1:] * sizes[:, None] @ turns[:-1].transpose(0, 2, 1), turns[-1]


def test_of_a_long_chain_few_rows_are_left():
    sizes = np.tile(np.geomspace(1.1, 0.1, 48), (150, 1))
    chain, last = turned(sizes)
    products = PlainProducts(150, (1, 48))
    rows = set()
    for step in chain[::-1]:
        products.times(InColumns([step[None]], 4.0))
        rows.add(products.rows)
    assert rows == {48, 30}
    found = values_of(checked(chain)[0], 1, EPS)
    np.testing.assert_allclose(found.lags, np.log10(1.1) * np.arange(1, 151), atol=1e-12)
    assert abs(found.left @ last[:, 0]) == pytest.approx(1.0, abs=1e-12)
    assert found.error[0] < 1e-10
