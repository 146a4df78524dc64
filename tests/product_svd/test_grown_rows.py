"""The largest values of few steps from few rows, against closed forms and exact arithmetic."""

import numpy as np
import pytest
from oracles import chains
from oracles.reference import largest, reference

from gradscope.product_svd.grown_rows import grown
from gradscope.product_svd.plain_product import InColumns
from gradscope.product_svd.plain_values import values_of
from gradscope.product_svd.spectrum import EPS
from gradscope.product_svd.steps import checked


@pytest.fixture(autouse=True)
def few_states(monkeypatch):
    for name in ("FEWEST_STATES", "STEPS_PER_STATE", "_FEWEST"):
        monkeypatch.setattr(f"gradscope.product_svd.grown_rows.{name}", 1)


def beside(*stacks):
    """Steps of stacks (T, m, m) side by side, the last first."""
    return [InColumns([step], 4.0) for step in np.stack(stacks, axis=1)[::-1]]


def test_products_that_are_known_whatever_is_between():
    """Q_t+1 diag(sizes_t) Q_t^T, at 1e3 and 1e-3 a step; of 40 states, so that rows need not be all."""
    rng, steps, m = np.random.default_rng(0), 9, 40
    stacks, sizes = [], []
    for scale in (1e3, 1e-3):
        turns = np.linalg.qr(rng.normal(size=(steps + 1, m, m)))[0]
        each = scale * rng.uniform(0.5, 1, size=(steps, m))
        stacks.append(turns[1:] * each[:, None] @ turns[:-1].transpose(0, 2, 1))
        sizes.append(np.log10(each)[::-1].cumsum(axis=0))
    found = grown(beside(*stacks), (2, m), top=5)
    for p, expected in enumerate(sizes):
        np.testing.assert_allclose([one.log10[p, 0] for one in found], expected.max(axis=1), atol=1e-11)
        np.testing.assert_allclose(found[-1].log10[p], np.sort(expected[-1])[:-6:-1], atol=1e-11)
        assert found[-1].noise[p].max() < 1e-13


@pytest.mark.parametrize("window", [None, (slice(18, None), slice(24))])
def test_a_chain_and_a_block_against_exact_arithmetic(window):
    rng = np.random.default_rng(1)
    chain = rng.normal(size=(7, 40, 40)) / 6
    found = values_of(checked(chain)[0], 3, EPS, window=window)
    assert found is not None
    rows, columns = window or (slice(None), slice(None))
    for lag in (1, 3, 7):
        some = chain[-lag:].copy()
        some[0] = np.where(np.isin(np.arange(40), np.arange(40)[columns]), some[0], 0)
        some[-1] = np.where(np.isin(np.arange(40), np.arange(40)[rows])[:, None], some[-1], 0)
        assert found.lags[lag - 1] == pytest.approx(largest(some), abs=1e-11)
    exact = reference(some, vectors=True)
    np.testing.assert_allclose(found.log10, np.asarray(exact.log10()[:3], float), atol=1e-11)
    for side, true in ((found.right, exact.right[columns, 0]), (found.left, exact.left[rows, 0])):
        np.testing.assert_allclose(np.abs(side), np.abs(true.astype(float)), atol=1e-11)
    assert (found.error < 1e-10).all()


def test_a_value_that_comes_near_and_crosses_is_not_missed():
    """Of two blocks that never meet, one is the larger up to lag 15, the other from there on."""
    sizes = np.concatenate([np.full(15, 0.5), np.full(15, 2.0)])
    found = values_of(checked(chains.two_blocks(sizes, 20))[0], 1, EPS)
    expected = np.maximum(np.cumsum(np.log10(sizes[::-1])), 0.0)
    np.testing.assert_allclose(found.lags, expected, atol=1e-11)
    shorter = values_of(checked(chains.two_blocks(sizes[:-1], 20))[0], 1, EPS)
    assert shorter.log10[0] == pytest.approx(0.0, abs=1e-11)


def test_what_later_steps_leave_nothing_of_is_left_to_others():
    """From the output end the first block grows to 2^120, and then dies: the other was rounded away."""
    sizes = np.concatenate([np.full(20, 2.0**-9), np.full(20, 2.0**6)])
    assert values_of(checked(chains.two_blocks(sizes, 20))[0], 1, EPS) is None


@pytest.mark.parametrize("dies", [0.0, np.nan, 1e200])
def test_products_that_float64_does_not_hold_are_left_to_others(dies):
    chain = np.random.default_rng(0).normal(size=(6, 40, 40))
    chain[2:4] *= dies
    assert grown(beside(chain), (1, 40)) is None


def test_values_that_are_zero_or_many_are_left_to_others():
    rng = np.random.default_rng(0)
    low = rng.normal(size=(5, 40, 2)) @ rng.normal(size=(5, 2, 40))
    assert grown(beside(low), (1, 40), top=3) is None
    found = values_of(checked(rng.normal(size=(3, 40, 40)))[0], 20, EPS)
    assert len(found.log10) == 20
