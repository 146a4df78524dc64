"""The top values of a plain product, against exact arithmetic; and what it has lost is left to others."""

import numpy as np
import pytest
from oracles import chains
from oracles.few import few
from oracles.reference import allowed, largest, reference

import gradscope
from gradscope.product_svd.plain_product import InColumns, PlainProducts
from gradscope.product_svd.plain_values import few_of_many, values_of
from gradscope.product_svd.spectrum import EPS
from gradscope.product_svd.steps import checked

# Those whose values are known to be there, so that no test passes because all were left out.
FOUND = ("gru", "tanh", "orthogonal", "identity")


def found_of(chain, top, **options):
    """Of a stack (T, m, m)."""
    return values_of(checked(chain)[0], top, EPS, **options)


@pytest.mark.parametrize("name", few(chains.CHAINS, "lstm", "gru", "jordan", "clustered", "orthogonal"))
def test_against_exact_arithmetic(name):
    chain = chains.CHAINS[name](8, 40, 0)
    found = found_of(chain, 2)
    if found is None:
        assert name not in FOUND
        return
    true = reference(chain)
    errors = np.abs(true.log10_errors(np.append(found.log10, np.zeros(len(true.sigma) - 2)))[:2])
    assert (errors <= allowed(chain, errors)).all()
    assert (10 * found.error >= errors).all()
    for lag in (1, 7, 30):
        assert found.lags[lag - 1] == pytest.approx(largest(chain[-lag:]), abs=1e-9)
    assert found.lags[-1] == found.log10[0]


@pytest.mark.parametrize("sizes", [(4, 7), (7, 4)])
def test_of_a_block_against_exact_arithmetic(sizes):
    """The block is smaller than what stands beside it."""
    rng, first = np.random.default_rng(0), sizes[0]
    chain = rng.normal(size=(40, 11, 11)) / np.sqrt(11)
    chain[:, :first, first:] = 0
    chain[:, first:, :first] *= 1e-2
    found = found_of(chain, 3, window=(slice(first, None), slice(first)))
    assert (len(found.left), len(found.right)) == (sizes[1], first)
    for lag in (1, 2, 17, 40):
        masked = chain[-lag:].copy()
        masked[0][:, first:] = 0
        masked[-1][:first] = 0
        exact = reference(masked, vectors=True)
        assert found.lags[lag - 1] == pytest.approx(float(exact.log10()[0]), abs=1e-10)
    np.testing.assert_allclose(found.log10, [float(one) for one in exact.log10()[:3]], rtol=0, atol=1e-10)
    assert abs(exact.right[:first, 0].astype(float) @ found.right) == pytest.approx(1, abs=1e-9)
    assert abs(exact.left[first:, 0].astype(float) @ found.left) == pytest.approx(1, abs=1e-9)


def dying(size):
    """(T, m, m): an orthogonal block beside one that first grows to 2^120, from the end, and then dies."""
    rng, half = np.random.default_rng(0), size // 2
    blocks = [np.linalg.qr(rng.normal(size=(half, half)))[0] for _ in range(2)]
    chain = np.zeros((220, size, size))
    chain[:, :half, :half] = np.multiply.outer(np.append(np.full(100, 1e-3), np.full(120, 2.0)), blocks[0])
    chain[:, half:, half:] = blocks[1]
    return chain


def test_what_later_steps_leave_nothing_of_is_left_to_others():
    chain = dying(64)
    assert found_of(chain, 2) is None
    few_values = gradscope.spectrum(chain, 2, by_lag=True)
    assert few_of_many(64, 2)
    np.testing.assert_allclose(few_values.log10_singular_values, 0, atol=1e-9)


def test_a_product_that_is_zero_at_some_lag_is_left_to_others():
    chain = np.random.default_rng(0).normal(size=(6, 9, 9))
    chain[:, :4, 4:] = chain[-1, 4:, :4] = 0  # nothing of the block at the first lag
    assert found_of(chain, 1, window=(slice(4, None), slice(4))) is None


def test_some_values_of_many_are_those_of_all():
    rng = np.random.default_rng(2)
    chain = rng.normal(size=(30, 70, 70)) / np.sqrt(70)
    some, every = (gradscope.spectrum(chain, top, by_lag=True) for top in (3, None))
    assert some.exact_zeros is None  # it took the other way
    np.testing.assert_allclose(some.log10_singular_values, every.log10_singular_values[:3], atol=1e-10)
    np.testing.assert_allclose(some.log10_norm_by_lag, every.log10_norm_by_lag, atol=1e-10)
    assert abs(some.left @ every.left) == pytest.approx(1, abs=1e-10)


def test_of_a_long_chain_several_values_are_among_the_rows_that_are_left():
    """Q_t+1 D_t Q_t^T: every value is known, whatever is between."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1.1, 0.1, 64)
    turns = np.linalg.qr(rng.normal(size=(151, 64, 64)))[0]
    chain = turns[1:] * sizes @ turns[:-1].transpose(0, 2, 1)
    products = PlainProducts(150, (1, 64))
    for step in chain[::-1]:
        products.times(InColumns([step[None]], 4.0))
    assert products.rows < 64
    found, true = found_of(chain, 2), 150 * np.log10(sizes)
    assert (np.abs(found.log10 - true[:2]) <= found.error).all()
    assert found.error.max() < 1e-9
    assert abs(found.left @ turns[-1][:, 0]) == pytest.approx(1.0, abs=1e-10)
    assert found_of(chain, 5) is None  # next to what rounding leaves beside the first
    few_values = gradscope.spectrum(chain, 5, by_lag=True)
    np.testing.assert_allclose(few_values.log10_singular_values, true[:5], atol=1e-11)
