"""Runs on changed entries all at once: each finds the values of its own entries, which exact numbers tell."""

import numpy as np
import pytest
from oracles.chains import CHAINS
from oracles.reference import reference

import gradscope
from gradscope.product_svd.error_estimate import GROUPED, draws_side_by_side
from gradscope.product_svd.graded_chain import Way
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.perturbed import Perturbed
from gradscope.product_svd.steps import DenseSteps, checked

# So much the entries are changed: the values of two draws differ in the third digit.
CHANGED = 1e-3
DRAWS = 3


class HalfDiagonal(DenseSteps):
    """Steps whose right half is two diagonals, as c is read by an LSTM's."""

    def parts(self, t):
        a = self[t]
        n = len(a) // 2
        return [a[:, :n], np.array([np.diag(a[:n, n:]), np.diag(a[n:, n:])])]


def half_diagonal(size, steps, seed):
    n, rng = size // 2, np.random.default_rng(seed)
    chain = rng.normal(size=(steps, size, size))
    chain[:, :, n:] *= np.tile(np.eye(n), (2, 1))
    return HalfDiagonal(chain)


def entries(steps, draw):
    """Those that a draw changes steps to, (T, m, m), put together by hand."""
    changed, size = Perturbed(steps, CHANGED, draw), len(steps.weights[0])
    chain = np.zeros((len(steps), size, size))
    for t, step in enumerate(chain):
        left, *diagonals = changed.parts(t)
        step[:, : left.shape[1]] = left
        for both in diagonals:
            n = both.shape[1]
            step[range(n), range(n, 2 * n)] = both[0]
            step[range(n, 2 * n), range(n, 2 * n)] = both[1]
    return chain


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "given", [CHAINS["lstm"](8, 12, 0), CHAINS["row-scaled"](8, 12, 1), half_diagonal(8, 12, 2)]
)
def test_each_draw_finds_the_values_of_its_own_entries(given, reset):
    steps, gaps = checked(given)
    assert not gaps
    way = Way(reset, GROUPED if reset else np.inf)
    found = draws_side_by_side(steps, CHANGED, way, LagNorm(at=range(1, 4)), DRAWS)
    for draw, one in enumerate(found):
        chain = entries(steps, draw)
        assert np.abs(reference(chain).log10_errors(one.log10)).max() < 1e-10
        for lag in (1, 2, 3):
            norm = np.linalg.norm(np.linalg.multi_dot([np.eye(8), *chain[::-1][:lag]]), 2)
            assert one.lags[lag - 1] == pytest.approx(np.log10(norm), abs=1e-12)
    assert np.abs(found[0].log10 - found[1].log10).max() > CHANGED / 10


def test_where_one_leaves_a_direction_out_each_goes_by_itself():
    """Two rows that read one state alone, whatever its entries are: a pivot of 0 that no change undoes."""
    chain = np.random.default_rng(0).normal(size=(6, 3, 3))
    chain[-1] = [[1, 0, 0], [2, 0, 0], [0, 1, 1]]
    steps, gaps = checked(chain)
    assert not gaps
    assert draws_side_by_side(steps, CHANGED, Way(), None, DRAWS) is None
    found = gradscope.spectrum(chain, entry_error=1e-15)
    assert found.exact_zeros == 1
    assert np.abs(reference(chain).log10_errors(found.log10_singular_values[:2])).max() < 1e-12
