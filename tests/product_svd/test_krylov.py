"""The top values by block Krylov against exact arithmetic, closed forms and chains of known SVD."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import chains
from oracles.few import few
from oracles.reference import largest, reference

from gradscope.errors import InputError
from gradscope.product_svd.block_krylov import TopTriplets, top_values
from gradscope.product_svd.operator import DenseOperator
from gradscope.product_svd.spectrum import Spectrum, spectrum, top_spectra
from gradscope.product_svd.steps import checked

# Rows or columns of very different size, and Jordan blocks: a method that looks at norms loses digits,
# and has to say so.
HARD = {"both-scaled", "column-scaled", "jordan"}


def operator(chain: np.ndarray) -> DenseOperator:
    return DenseOperator(checked(chain)[0], chain.shape[1])


def top_of(chain: np.ndarray, count: int, width: int | None = None) -> TopTriplets:
    return top_values(operator(chain), count, width)[0]


def top_spectrum(chain: np.ndarray, count: int, **options: float) -> Spectrum:
    return top_spectra(operator(chain), count, **options)[0]


def errors(found: TopTriplets, chain: np.ndarray, count: int) -> np.ndarray:
    expected = np.array([float(x) for x in reference(chain).log10()[:count]])
    error = np.abs(found.log10[:count] - expected)
    assert np.all(error <= found.error + np.spacing(np.abs(expected)))
    return error


def known(sigmas: np.ndarray, steps: int, seed: int = 0) -> np.ndarray:
    """A chain whose product has the given singular values: orthogonal steps around one diagonal."""
    chain = chains.orthogonal(len(sigmas), steps, seed)
    chain[steps // 2] = chain[steps // 2] * sigmas
    return chain


@pytest.mark.parametrize("name", chains.CHAINS)
@pytest.mark.parametrize(
    ("m", "steps", "count"),
    [
        (6, 1, 2),
        (8, 60, 3),
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((16, 60, 3), (20, 30, 2))),
    ],
)
def test_against_exact_arithmetic(name: str, m: int, steps: int, count: int) -> None:
    chain = chains.CHAINS[name](m, steps, 0)
    found = top_of(chain, count, min(m, count + 4))
    rank = min(count, m - reference(chain).exact_zeros)
    assert min(count, len(found.log10)) == rank
    lost = errors(found, chain, count).max()
    if name in HARD:
        assert lost <= max(1e-11, found.error.max())
    else:
        assert lost < 1e-11
        assert found.error.max() < 1e-10
    for vectors in (found.left, found.right):
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "lstm", "gru", "gaussian", "orthogonal", "relu"])
def test_all_values_of_a_chain(name: str) -> None:
    chain = chains.CHAINS[name](8, 60, 0)
    found = top_of(chain, 8)
    assert errors(found, chain, 8).max() < 1e-10


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("cluster", [6, 40])
def test_small_gaps(gap: float, cluster: int) -> None:
    # 3 values are wanted; their neighbours are close, and in the second case more than a block holds.
    sigmas = np.concatenate([1 - gap * np.arange(cluster), np.logspace(-1, -3, 60 - cluster)])
    found = top_of(known(sigmas, 9), 3)
    expected = np.log10(sigmas[:3])
    assert np.all(np.abs(found.log10[:3] - expected) <= found.error)
    assert found.error.max() < 1e-9


def test_estimate_says_so_where_passes_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradscope.product_svd.block_krylov.PASSES", 3)
    sigmas = np.concatenate([1 - 1e-6 * np.arange(200), np.full(56, 0.5)])
    found = top_of(known(sigmas, 5), 3)
    error = np.abs(found.log10[:3] - np.log10(sigmas[:3]))
    assert np.all(error > 1e-9)  # or this test says nothing
    assert np.all(error <= found.error)
    assert np.all(found.error < 0.5)


@pytest.mark.parametrize("scale", [1e-250, 1e-60, 1e60, 1e250])
def test_steps_far_from_one(scale: float) -> None:
    chain = chains.gaussian(12, 40, 1)
    found, plain = top_of(scale * chain, 3), top_of(chain, 3)
    expected = plain.log10[:3] + 40 * np.log10(scale)
    np.testing.assert_allclose(found.log10[:3], expected, rtol=2e-15, atol=1e-12)


def test_values_far_apart() -> None:
    # Values from 1 down to 1e-509 at the end, of which no float64 holds both.
    sigmas = np.logspace(0, -4, 12)
    q = chains.orthogonal(12, 1, 0)[0]
    found = top_of(np.array([q * sigmas @ q.T] * 200), 8)
    np.testing.assert_allclose(found.log10[:8], 200 * np.log10(sigmas[:8]), atol=1e-9)


def test_zero_product_has_no_values() -> None:
    chain = chains.gaussian(10, 12, 0)
    chain[3] = 0
    found = top_spectrum(chain, 2, by_lag=True)
    assert np.all(np.isneginf(found.log10_singular_values))
    assert not found.left.any()
    assert not found.right.any()
    assert found.exact_zeros is None
    assert found.lags is not None
    assert found.log10_norm_by_lag is not None
    np.testing.assert_array_equal(np.isneginf(found.log10_norm_by_lag), found.lags >= 9)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_rank_below_the_values_asked_for(rank: int) -> None:
    rng = np.random.default_rng(rank)
    chain = chains.gaussian(20, 30, 0)
    chain[11] = rng.normal(size=(20, rank)) @ rng.normal(size=(rank, 20))
    found = top_spectrum(chain, 7)
    assert np.isfinite(found.log10_singular_values[:rank]).all()
    assert np.isneginf(found.log10_singular_values[rank:]).all()


def test_overflow_is_refused() -> None:
    with pytest.raises(InputError, match="overflow"):
        top_of(np.full((3, 5, 5), 1e308), 2)


def test_top_vectors() -> None:
    chain = chains.lstm(40, 30, 0)
    found = top_spectrum(chain, 4)
    product = np.linalg.multi_dot(chain[::-1])
    np.testing.assert_allclose(
        product @ found.right / 10 ** found.log10_singular_values[0], found.left, atol=1e-9
    )


def test_a_million_factors_lose_no_digits() -> None:
    # Rotations by different angles in a plane, and a scaling known in closed form.
    steps = 20_000
    angle = np.random.default_rng(0).uniform(0, 7, steps)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    found = top_of(0.9 * rotation, 2)
    assert np.all(np.abs(found.log10 - steps * np.log10(0.9)) <= found.error)
    assert found.error.max() < 1e-9


@pytest.mark.parametrize(
    "name", few(["tanh", "lstm", "gru", "orthogonal", "gaussian", "dead both"], "lstm", "dead both")
)
def test_norm_at_some_lags(name: str) -> None:
    chain = chains.CHAINS[name](16, 40, 3)
    found = top_spectrum(chain, 3, by_lag=True)
    assert found.lags is not None
    assert found.log10_norm_by_lag is not None
    assert set(range(1, 9)) | {40} <= set(found.lags.tolist())
    for lag, norm in zip(found.lags, found.log10_norm_by_lag, strict=True):
        assert abs(norm - largest(chain[40 - lag :])) < 1e-10


def test_lags_whose_vectors_the_whole_does_not_see() -> None:
    """Units that do not meet: at short lags others are largest than over all steps."""
    diagonals = np.random.default_rng(0).uniform(0.5, 1.1, (40, 70))
    found = top_spectrum(np.array([np.diag(d) for d in diagonals]), 3, by_lag=True)
    expected = np.cumsum(np.log10(diagonals[::-1]), axis=0).max(axis=1)
    lags = np.asarray(found.lags)
    assert len(lags) > 10
    np.testing.assert_allclose(np.asarray(found.log10_norm_by_lag), expected[lags - 1], atol=1e-10)


def test_norm_by_lag_finds_the_lag_of_the_fall() -> None:
    chain = 0.9 * chains.orthogonal(12, 100, 0)
    found = top_spectrum(chain, 2, by_lag=True, floor=np.log10(0.9) * 66.5)
    lags = np.asarray(found.lags).tolist()
    assert {66, 67} <= set(lags)
    assert len(lags) < 30
    np.testing.assert_allclose(
        np.asarray(found.log10_norm_by_lag), np.log10(0.9) * np.array(lags), atol=1e-12
    )


def test_a_lag_that_is_not_known_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradscope.product_svd.tail_norms._MOST", 1)
    chain = chains.gaussian(60, 20, 0)
    found = top_spectrum(chain, 2, by_lag=True)
    assert np.asarray(found.lags).tolist() == [20]


@pytest.mark.parametrize("name", ["tanh", "lstm", "gru", "dead unit", "integer rank", "jordan"])
def test_top_of_a_stack_is_the_whole_cut_short(name: str) -> None:
    chain = chains.CHAINS[name](64, 30, 0)
    found = spectrum(chain, top=3)
    assert found.exact_zeros is None  # by blocks
    whole = spectrum(chain)
    np.testing.assert_allclose(found.log10_singular_values, whole.log10_singular_values[:3], atol=1e-11)
    assert found.log10_error < 1e-10


def test_top_of_a_stack_is_computed_whole_where_blocks_are_not_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = chains.gaussian(64, 10, 0)
    chain[4, 1:] = 0
    found = spectrum(chain, top=3)
    assert found.exact_zeros == 63
    assert np.isneginf(found.log10_singular_values[1:]).all()
    monkeypatch.setattr("gradscope.product_svd.spectrum.GOOD_TOP", 1e-16)
    assert spectrum(chains.gaussian(64, 10, 0), top=3).exact_zeros == 0


def test_top_with_lags_is_of_the_plain_product_with_every_lag() -> None:
    """Of blocks each lag takes passes of its own; a plain product knows of no value that is zero."""
    found = spectrum(chains.gaussian(64, 10, 0), top=3, by_lag=True)
    assert found.lags is None
    assert len(found.log10_singular_values) == 3
    assert len(found.log10_norm_by_lag) == 10
    assert found.exact_zeros is None
