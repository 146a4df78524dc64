"""The product SVD against exact arithmetic, invariants and closed forms."""

from __future__ import annotations

import math

import flint
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import chains
from oracles.few import few
from oracles.reference import allowed, largest, reference
from scipy.special import polygamma, psi

from gradscope.errors import InputError
from gradscope.product_svd.spectrum import diagonal_spectrum, spectrum
from gradscope.product_svd.steps import _all_row_exponents, row_exponents

EPS = np.finfo(float).eps
SIZES = [(1, 20), (2, 40), (6, 1), (8, 60), (16, 60)]
# The other chains need more than two units.
ANY_SIZE = {"tanh", "gaussian", "scaled", "identity", "orthogonal", "gru"}
# Of the larger ones those run by default; the others take a minute together.
LARGE = {"tanh", "lstm", "gaussian", "jordan"}
CASES = [
    pytest.param(name, m, steps, marks=pytest.mark.slow if m > 8 and name not in LARGE else ())
    for name in chains.CHAINS
    for m, steps in SIZES
    if m > 2 or name in ANY_SIZE
]
MEDIUM = [
    pytest.param("tanh", 40, 60, marks=pytest.mark.slow),
    pytest.param("gru", 48, 60, marks=pytest.mark.slow),
    ("gaussian", 32, 100),
    ("jordan", 8, 200),
]


def check_against_reference(name: str, m: int, steps: int, seed: int = 0) -> None:
    chain = chains.CHAINS[name](m, steps, seed)
    true = reference(chain)
    found = spectrum(chain, by_lag=True)
    assert found.exact_zeros == true.exact_zeros
    rank = m - true.exact_zeros
    assert np.all(np.isneginf(found.log10_singular_values[rank:]))
    if rank == 0:
        return
    errors = np.abs(true.log10_errors(found.log10_singular_values[:rank]))
    # A float64 cannot hold log10 sigma = -600 to 1e-13: half an ulp is not the method's fault.
    ulp = np.spacing(np.abs(found.log10_singular_values[:rank]))
    assert np.all(errors - ulp <= allowed(chain, errors - ulp))
    assert found.log10_error >= errors.max() / 10
    assert found.log10_error <= 1000 * max(errors.max(), EPS * np.sqrt(steps) + ulp.max())
    assert found.log10_norm_by_lag is not None
    assert abs(found.log10_norm_by_lag[-1] - found.log10_singular_values[0]) <= 1e-11
    check_vectors(chain, found)


def check_vectors(chain: np.ndarray, found) -> None:
    """P v = sigma u for unit u and v, with the logarithm of the scale kept apart."""
    x, log_size = found.right, 0.0
    assert abs(np.linalg.norm(x) - 1) < 1e-12
    assert abs(np.linalg.norm(found.left) - 1) < 1e-12
    for a in chain:
        x = a @ x
        size = np.linalg.norm(x)
        x, log_size = x / size, log_size + np.log10(size)
    assert abs(log_size - found.log10_singular_values[0]) < 1e-8
    assert np.linalg.norm(x - found.left) < 1e-6


@pytest.mark.parametrize(("name", "m", "steps"), CASES)
def test_every_singular_value(name: str, m: int, steps: int) -> None:
    check_against_reference(name, m, steps)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "m", "steps"), MEDIUM)
def test_medium_chains(name: str, m: int, steps: int) -> None:
    check_against_reference(name, m, steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", chains.CHAINS)
@pytest.mark.parametrize("seed", [0, 1])
def test_long_chains(name: str, seed: int) -> None:
    check_against_reference(name, 16, 200, seed)


@pytest.mark.slow
# tanh and gru are among the medium ones; of lstm exact arithmetic takes the longest by far.
@pytest.mark.parametrize(
    ("name", "m", "steps"),
    [("lstm", 48, 48), ("relu", 64, 60), ("gaussian", 64, 60), ("integer rank", 64, 60)],
)
def test_wide_chains(name: str, m: int, steps: int) -> None:
    check_against_reference(name, m, steps)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["tanh", "lstm", "gaussian", "jordan", "both-scaled"])
def test_error_estimate_on_many_draws(name: str, seed: int) -> None:
    chain = chains.CHAINS[name](6, 30, seed)
    errors = np.abs(reference(chain).log10_errors(spectrum(chain).log10_singular_values))
    estimate = spectrum(chain).log10_error
    assert errors.max() / 10 <= estimate <= 1000 * max(errors.max(), 3e-15)


def test_error_estimate_covers_rounded_entries() -> None:
    chain = chains.tanh_rnn(12, 50, 0)
    rounded = chain.astype(np.float32).astype(np.float64)
    found = spectrum(rounded, entry_error=2.0**-24)
    error = np.abs(found.log10_singular_values - spectrum(chain).log10_singular_values).max()
    assert error / 10 <= found.log10_error <= 1000 * error


def test_rank_deficient_chain_of_rounded_entries_keeps_its_estimate_small() -> None:
    found = spectrum(chains.integer_rank(12, 30, 0), entry_error=2.0**-24)
    assert found.exact_zeros == 6
    assert found.log10_error < 1e-2


@pytest.mark.parametrize("name", ["tanh", "lstm", "gru", "orthogonal", "gaussian", "dead both"])
@pytest.mark.parametrize("m", few([6, 16], 6))
def test_norm_at_every_lag(name: str, m: int) -> None:
    chain = chains.CHAINS[name](m, 24, 3)
    by_lag = spectrum(chain, by_lag=True).log10_norm_by_lag
    assert by_lag is not None
    assert by_lag.shape == (24,)
    for lag in range(1, 25):
        expected = largest(chain[24 - lag :])
        assert abs(by_lag[lag - 1] - expected) < 1e-10


def test_norm_by_lag_of_a_chain_that_dies_on_the_way() -> None:
    chain = chains.tanh_rnn(5, 10, 0)
    chain[4] = 0
    found = spectrum(chain, by_lag=True)
    assert found.exact_zeros == 5
    assert found.log10_error == 0
    assert found.log10_norm_by_lag is not None
    assert np.all(np.isneginf(found.log10_norm_by_lag[5:]))
    expected = [largest(chain[10 - k :]) for k in range(1, 6)]
    np.testing.assert_allclose(found.log10_norm_by_lag[:5], expected, atol=1e-12)


def test_norm_by_lag_does_not_miss_a_new_top_vector() -> None:
    # Two decoupled halves, of which the second overtakes the first at lag 30.
    q = chains.orthogonal(8, 60, 0)
    chain = np.zeros((60, 16, 16))
    chain[:, :8, :8] = 1.0 * q
    chain[:30, 8:, 8:] = 1.4 * q[:30]
    chain[30:, 8:, 8:] = 0.8 * q[30:]
    by_lag = spectrum(chain, by_lag=True).log10_norm_by_lag
    lag = np.arange(1, 61)
    other = np.where(lag <= 30, lag * np.log10(0.8), 30 * np.log10(0.8) + (lag - 30) * np.log10(1.4))
    np.testing.assert_allclose(by_lag, np.maximum(0, other), atol=1e-12)


sparse = st.builds(
    lambda m, steps, seed, low: np.tril(
        np.random.default_rng(seed).integers(-2, 3, (steps, m, m)), -low if seed % 3 else m
    ).astype(float),
    st.integers(1, 8),
    st.integers(1, 10),
    st.integers(0, 10**6),
    st.integers(-3, 1),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(sparse)
def test_exact_zeros_of_integer_chains(chain: np.ndarray) -> None:
    true = reference(chain)
    found = spectrum(chain, by_lag=True)
    assert found.exact_zeros == true.exact_zeros
    if true.sigma:
        errors = np.abs(true.log10_errors(found.log10_singular_values[: len(true.sigma)]))
        assert errors.max() < 1e-11
        assert found.log10_error >= errors.max() / 10
    assert found.log10_norm_by_lag is not None
    for lag in range(1, len(chain) + 1):
        expected = largest(chain[len(chain) - lag :])
        assert found.log10_norm_by_lag[lag - 1] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e-315])
def test_entries_near_the_ends_of_float64(scale: float) -> None:
    chain = scale * chains.gaussian(6, 20, 0)
    errors = reference(chain).log10_errors(spectrum(chain).log10_singular_values)
    assert np.abs(errors).max() < 2e-12  # an ulp of 6000


@pytest.mark.slow
@pytest.mark.parametrize("scaled", ["rows", "columns"])
def test_a_step_of_more_decades_than_float64_can_carry(scaled: str) -> None:
    sizes = 10.0 ** np.random.default_rng(3).uniform(-280, 280, size=(20, 6, 1))
    chain = chains.gaussian(6, 20, 0) * (sizes if scaled == "rows" else sizes.swapaxes(1, 2))
    found = spectrum(chain, by_lag=True)
    assert np.abs(reference(chain).log10_errors(found.log10_singular_values)).max() <= found.log10_error * 10
    assert found.log10_error < 1e-11
    assert found.log10_norm_by_lag is not None
    for lag in range(1, 21):
        expected = largest(chain[20 - lag :])
        assert found.log10_norm_by_lag[lag - 1] == pytest.approx(expected, abs=1e-10)


def random_chain_of_noise(family: str, seed: int) -> np.ndarray:
    """Small chains whose rank hangs on the last bit of their entries."""
    rng = np.random.default_rng(seed)
    m, steps = int(rng.integers(2, 6)), int(rng.integers(1, 13))
    k = max(1, m - 1 - int(rng.integers(0, 2)))
    low = rng.normal(size=(m, k)) @ rng.normal(size=(k, m))
    match family:
        case "low rank":
            return np.array([rng.normal(size=(m, k)) @ rng.normal(size=(k, m)) for _ in range(steps)])
        case "low rank, scaled rows":
            return rng.normal(size=(steps, m, 1)) * low
        case "projector":
            q = np.linalg.qr(rng.normal(size=(m, m)))[0][:, :k]
            return np.repeat([q @ q.T], steps, axis=0)
        case "outer products":
            return rng.normal(size=(steps, m, 1)) * rng.normal(size=(steps, 1, m))
        case "equal rows":
            low = rng.normal(size=(m, m))
            low[-1] = low[0]
            return rng.normal(size=(steps, m, 1)) * low
        case "decimals":
            return np.round(rng.integers(0, 4, (steps, m, 1)) * rng.integers(1, 9, (steps, 1, m)) * 0.1, 1)
        case "nearly singular":
            return np.repeat([np.eye(m) + 1e10], steps, axis=0)
    raise AssertionError(family)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "family",
    [
        "low rank",
        "low rank, scaled rows",
        "projector",
        "outer products",
        "equal rows",
        "decimals",
        "nearly singular",
    ],
)
def test_chains_whose_rank_hangs_on_the_last_bit(family: str, seed: int) -> None:
    chain = random_chain_of_noise(family, seed)
    found, expected = spectrum(chain), reference(chain)
    assert found.exact_zeros == expected.exact_zeros
    errors = np.abs(expected.log10_errors(found.log10_singular_values[: len(expected.sigma)]))
    assert errors.max(initial=0) <= 10 * found.log10_error
    assert found.log10_error < 1e-11


@pytest.mark.parametrize("m", [16, 64, 130])
def test_values_of_which_only_rounding_is_left_are_lost(m: int) -> None:
    """Rows of h that follow those of c, as in an LSTM without output gate: rank n but for rounding."""
    rng = np.random.default_rng(m)
    top = rng.normal(size=(40, m // 2, m)) / np.sqrt(m)
    chain = np.concatenate([top, rng.normal(size=(40, m // 2, 1)) * top], axis=1)
    found = spectrum(chain, entry_error=4 * EPS)
    assert (found.lost, found.exact_zeros) == (m // 2, 0)  # that they are zero nobody said
    assert np.isnan(found.log10_singular_values[m // 2 :]).all()
    assert found.log10_error < 1e-6
    inner = [
        top[0],
        *(
            t @ np.vstack([np.eye(m // 2), np.diag(b[m // 2 :, 0] / b[: m // 2, 0])])
            for t, b in zip(top[1:], chain[:-1], strict=True)
        ),
    ]
    log_det = sum(np.linalg.slogdet(a)[1] for a in inner[1:]) / np.log(10)
    outer = np.log10(np.linalg.svd(top[0], compute_uv=False)).sum()
    last = np.vstack([np.eye(m // 2), np.diag(chain[-1, m // 2 :, 0] / top[-1, :, 0])])
    outer += np.log10(np.linalg.svd(last, compute_uv=False)).sum()
    assert found.log10_singular_values[: m // 2].sum() == pytest.approx(log_det + outer, abs=1e-6)


# --- invariants -------------------------------------------------------------------------------

ordinary = st.builds(
    lambda name, m, steps, seed: chains.CHAINS[name](m, steps, seed),
    st.sampled_from(["tanh", "gru", "gaussian"]),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(0, 10**6),
)
few = settings(max_examples=30, deadline=None)


def tolerance(chain: np.ndarray) -> float:
    """Sampled chains can be ill-conditioned: their own estimate says by how much."""
    return max(1e-10, 20 * spectrum(chain).log10_error)


@few
@given(ordinary)
def test_sum_is_the_log_determinant(chain: np.ndarray) -> None:
    expected = np.linalg.slogdet(chain)[1].sum() / np.log(10)
    total = spectrum(chain).log10_singular_values.sum()
    assert abs(total - expected) < len(chain[0]) * tolerance(chain)


@few
@given(ordinary, st.sampled_from([1e-3, 0.5, 3.0, 1e4]))
def test_scaling_adds_its_logarithm(chain: np.ndarray, scale: float) -> None:
    difference = spectrum(scale * chain).log10_singular_values - spectrum(chain).log10_singular_values
    np.testing.assert_allclose(difference, len(chain) * np.log10(scale), atol=tolerance(chain), rtol=0)


@few
@given(ordinary)
def test_reversed_transposed_chain_agrees(chain: np.ndarray) -> None:
    other = spectrum(chain[::-1].transpose(0, 2, 1))
    here = spectrum(chain)
    np.testing.assert_allclose(
        other.log10_singular_values, here.log10_singular_values, atol=tolerance(chain), rtol=0
    )


@few
@given(ordinary, st.integers(0, 10**6))
def test_permuting_the_units_changes_nothing(chain: np.ndarray, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(chain.shape[1])
    other = spectrum(chain[:, order][:, :, order])
    np.testing.assert_allclose(
        other.log10_singular_values,
        spectrum(chain).log10_singular_values,
        atol=tolerance(chain),
        rtol=0,
    )


@few
@given(ordinary)
def test_a_step_split_in_two_changes_nothing(chain: np.ndarray) -> None:
    # The halves of a QR factorisation are as good as the step itself.
    q, r = np.linalg.qr(chain)
    split = np.stack([r, q], axis=1).reshape(-1, *chain.shape[1:])
    np.testing.assert_allclose(
        spectrum(split).log10_singular_values,
        spectrum(chain).log10_singular_values,
        atol=5 * tolerance(chain),
        rtol=0,
    )


@few
@given(st.integers(1, 16), st.integers(1, 60), st.integers(0, 10**6))
def test_orthogonal_chain_has_gain_one(m: int, steps: int, seed: int) -> None:
    values = spectrum(chains.orthogonal(m, steps, seed)).log10_singular_values
    np.testing.assert_allclose(values, 0, atol=1e-13)


@pytest.mark.parametrize(("m", "steps"), [(128, 60), (200, 20)])
def test_large_chain_keeps_the_determinant(m: int, steps: int) -> None:
    chain = chains.tanh_rnn(m, steps, 0)
    found = spectrum(chain)
    expected = np.linalg.slogdet(chain)[1].sum() / np.log(10)
    assert abs(found.log10_singular_values.sum() - expected) < 1e-9
    check_vectors(chain, found)


# --- closed forms: formulas 6, 7, 8 of the notes on theory ------------------------------------


def test_non_normal_chain_is_far_from_its_spectral_radius() -> None:
    found = spectrum(np.array([[[0.95, 1.0], [0, 0.95]]] * 40))
    b = 40 * 0.95**39
    root = np.sqrt(b * b + 4 * 0.95**80)
    expected = np.log10([(root + b) / 2, 0.95**80 / ((root + b) / 2)])
    np.testing.assert_allclose(found.log10_singular_values, expected, atol=1e-13)
    np.testing.assert_allclose(10**found.log10_singular_values, [5.41409, 3.05044e-3], rtol=1e-5)


@pytest.mark.parametrize(("w", "power"), [(0.99, 0.13398), (1.01, 7.3160)])
def test_scalar_chain_is_a_power(w: float, power: float) -> None:
    assert 10 ** spectrum(np.full((200, 1, 1), w)).log10_singular_values[0] == pytest.approx(power, rel=1e-4)


def test_gaussian_chain_has_the_exponents_of_newman() -> None:
    n, steps = 8, 2000
    rates = spectrum(chains.gaussian(n, steps, 5)).log10_singular_values * np.log(10) / steps
    i = np.arange(1, n + 1)
    expected = 0.5 * (np.log(2 / n) + psi((n - i + 1) / 2))
    spread = np.sqrt(0.25 * polygamma(1, (n - i + 1) / 2) / steps)
    assert np.all(np.abs(rates - expected) < 4 * spread + 3 / steps)


# --- diagonal chains --------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [False, True])
def test_diagonal_chain_agrees_with_the_dense_one(zero: bool) -> None:
    d = np.random.default_rng(0).normal(size=(30, 5))
    d[10, 3] = 0 if zero else d[10, 3]
    dense = spectrum(np.array([np.diag(row) for row in d]), by_lag=True)
    closed = diagonal_spectrum(d, by_lag=True)
    assert closed.exact_zeros == dense.exact_zeros == int(zero)
    np.testing.assert_allclose(closed.log10_singular_values, dense.log10_singular_values, atol=1e-13)
    np.testing.assert_allclose(closed.log10_norm_by_lag, dense.log10_norm_by_lag, atol=1e-13)
    check_vectors(np.array([np.diag(row) for row in d]), closed)


def test_diagonal_chain_of_any_length_keeps_its_digits() -> None:
    found = diagonal_spectrum(np.full((100_000, 2), [0.5, 2.0**-9]))
    np.testing.assert_allclose(found.log10_singular_values, -1e5 * np.log10(2) * np.array([1, 9]), rtol=1e-15)


# --- what is refused, what is kept ------------------------------------------------------------


def test_top_keeps_the_largest_and_counts_all_zeros() -> None:
    chain = chains.dead_unit(8, 30, 0)
    everything, top = spectrum(chain), spectrum(chain, top=3)
    np.testing.assert_array_equal(top.log10_singular_values, everything.log10_singular_values[:3])
    assert top.exact_zeros == everything.exact_zeros == 2


def test_lazy_sequence_of_steps() -> None:
    chain = chains.tanh_rnn(8, 20, 0)

    class Lazy:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, t: int) -> np.ndarray:
            return chain[t]

    np.testing.assert_array_equal(
        spectrum(Lazy()).log10_singular_values, spectrum(chain).log10_singular_values
    )


def test_repeated_call_gives_the_same_numbers() -> None:
    chain = chains.lstm(16, 40, 0)
    assert spectrum(chain).log10_error == spectrum(chain).log10_error


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (np.zeros((0, 3, 3)), "0 steps"),
        (np.zeros((4, 2, 3)), "square"),
        (np.zeros((4, 0, 0)), "square"),
        (np.zeros((3, 3)), "square"),
        (np.full((2, 2, 2), np.nan), "NaN"),
        (np.full((2, 2, 2), np.inf), "NaN"),
        (np.ones((2, 2, 2), complex), "real"),
        ([np.eye(2), np.eye(3)], "one size"),
        (3.0, "shape"),
        (np.array(3.0), "shape"),
        (np.array([["a"]]), "square"),
    ],
)
def test_bad_chains_are_refused_on_one_line(bad: object, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        spectrum(bad)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("top", [0, -1, 9])
def test_top_out_of_range_is_refused(top: int) -> None:
    with pytest.raises(InputError, match="top"):
        spectrum(chains.tanh_rnn(8, 3, 0), top=top)


@pytest.mark.parametrize(
    "bad", [np.zeros(3), np.zeros((0, 3)), np.full((2, 2), np.nan), np.ones((2, 2), complex)]
)
def test_bad_diagonals_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="diagonals"):
        diagonal_spectrum(bad)


@pytest.mark.parametrize("m", [12, 24])
def test_powers_of_a_jordan_block(m):
    """Entries of J^T are binomial(T, j - i) 0.9^(T - j + i), in exact rationals.

    Only the exact product finds the small values: QR and LU are wrong in the first digit from m = 32 on.
    """
    steps, eigenvalue = 200, flint.fmpq(*(0.9).as_integer_ratio())
    entries = [
        flint.fmpq(math.comb(steps, j - i)) * eigenvalue ** (steps - j + i) if j >= i else flint.fmpq(0)
        for i in range(m)
        for j in range(m)
    ]
    precision, flint.ctx.prec = flint.ctx.prec, 3000
    try:
        power = flint.arb_mat(flint.fmpq_mat(m, m, entries))
        eigenvalues = flint.acb_mat(power.transpose() * power).eig(algorithm="approx")
        expected = sorted(
            (float(e.real.mid().log() / flint.arb(100).log()) for e in eigenvalues), reverse=True
        )
    finally:
        flint.ctx.prec = precision
    block = 0.9 * np.eye(m) + np.diag(np.ones(m - 1), 1)
    found = spectrum(np.broadcast_to(block, (steps, m, m)))
    errors = np.abs(found.log10_singular_values - expected) * np.log(10)
    assert errors.max() <= 1e-11
    assert errors.max() <= 10 * found.log10_error * np.log(10)


@pytest.mark.parametrize("name", ["tanh", "lstm", "gru", "dead both"])
def test_lags_below_the_floor_are_upper_bounds(name: str) -> None:
    chain = chains.CHAINS[name](16, 80, 1)
    floor = -3.0
    exact = spectrum(chain, by_lag=True).log10_norm_by_lag
    bounded = spectrum(chain, by_lag=True, floor=floor).log10_norm_by_lag
    assert exact is not None
    assert bounded is not None
    np.testing.assert_array_equal(bounded >= floor, exact >= floor)
    np.testing.assert_allclose(bounded[exact >= floor], exact[exact >= floor], atol=1e-10)
    assert bounded.argmax() == exact.argmax()
    assert (bounded >= exact - 1e-10).all()
    assert (bounded[:-1] > exact[:-1] + 0.1).any(), "the shortcut was never taken"


def test_exponents_of_all_rows_are_those_of_each() -> None:
    """With steps whose rows are all near one, and such as span more than is kept."""
    sizes = np.array([[1.0, 2.0, 0.5], [1e-3, 4.0, 1e3], [1e-300, 1e300, 1.0], [2.0**-6, 1.0, 1.0]])
    for row, found in zip(sizes, _all_row_exponents(sizes), strict=True):
        np.testing.assert_array_equal(found, row_exponents(np.diag(row)))


@pytest.mark.parametrize("name", ["tanh", "lstm"])
def test_the_error_at_some_lags_covers_what_rounding_the_entries_does(name: str) -> None:
    """Against plain products of the entries before they were rounded to float32."""
    chain = np.asarray(chains.CHAINS[name](8, 40, 0))
    unit = float(np.finfo(np.float32).eps) / 2
    found = spectrum(chain.astype(np.float32).astype(float), by_lag=True, entry_error=unit)
    errors, norms = found.log10_norm_error_by_lag, found.log10_norm_by_lag
    assert errors is not None
    assert norms is not None
    product, known = np.eye(8), np.isfinite(errors)
    for lag, step in enumerate(chain[::-1], 1):
        product = product @ step
        if known[lag - 1]:
            assert abs(np.log10(np.linalg.norm(product, 2)) - norms[lag - 1]) <= errors[lag - 1]
    assert (known.sum(), known[0], errors[-1]) == (11, True, found.log10_norm_error)
    assert errors[0] < errors[-1] < 1e-4
    assert spectrum(chain, by_lag=True, floor=-3.0).log10_norm_error_by_lag is None
