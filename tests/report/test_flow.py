"""Shares against finite differences, horizons against closed forms, matrices against closed forms."""

from dataclasses import replace

import jax
import mpmath
import numpy as np
import pytest
from oracles.few import few

import gradscope
from gradscope.cells.spectra import recurrent_matrices
from gradscope.linearize.cell_chain import CellChain
from gradscope.linearize.gates import gate_sums
from gradscope.linearize.paths import DensePath
from gradscope.measure.measured import Measured, gate_statistics
from gradscope.measure.shares import error_of_shares, shares
from gradscope.product_svd.spectrum import spectrum
from gradscope.report.chains import chain_of, horizon


def random_paths(names, steps, size, seed=0):
    rng = np.random.default_rng(seed)
    paths = tuple(DensePath(name, rng.normal(size=(steps, size, size)) / np.sqrt(size)) for name in names)
    return CellChain(paths, steps, size)


def log_norm(jacobians, weights):
    """ln sigma_1 of the product of sum_g weights[g, t] J_(g, t), by plain NumPy (few steps)."""
    product = np.eye(jacobians.size)
    for t in range(len(jacobians)):
        product = sum(w[t] * p.stack[t] for w, p in zip(weights, jacobians.paths, strict=True)) @ product
    return np.log(np.linalg.norm(product, 2))


def test_share_is_the_logarithmic_derivative_of_sigma_1():
    steps = 4
    jacobians = random_paths("abc", steps, 5)
    s = spectrum(jacobians)
    found = shares(jacobians, s.left, s.right, s.log10_singular_values[0])
    h = 1e-6
    for g, name in enumerate("abc"):
        for t in range(steps):
            up, down = np.ones((2, 3, steps))
            up[g, t] += h
            down[g, t] -= h
            slope = (log_norm(jacobians, up) - log_norm(jacobians, down)) / (2 * h)
            assert found[name][t] == pytest.approx(slope, abs=1e-8)


def exact_mean_share(jacobians, g):
    """1/T d ln sigma_1 / d ln alpha_g, by central differences of 60 digits."""
    with mpmath.workdps(60):
        logs = []
        for change in (mpmath.mpf(10) ** -20, -(mpmath.mpf(10) ** -20)):
            product = mpmath.eye(jacobians.size)
            for t in range(len(jacobians)):
                steps = [mpmath.matrix(path.stack[t].tolist()) for path in jacobians.paths]
                steps[g] *= 1 + change
                product = sum(steps[1:], steps[0]) * product
            logs.append(mpmath.log(mpmath.svd_r(product, compute_uv=False)[0]))
        return float((logs[0] - logs[1]) * mpmath.mpf(10) ** 20 / 2 / len(jacobians))


@pytest.mark.parametrize("gap", [1e-2, 1e-6, 1e-9])
def test_the_error_of_shares_is_that_of_vectors_that_are_hard_to_tell_apart(gap):
    jacobians = random_paths("ab", 3, 3)
    u, values, _ = np.linalg.svd(jacobians[2] @ jacobians[1] @ jacobians[0])
    # The last step is changed so that the two largest values of the product differ by this much.
    change = u @ np.diag([1.0, values[0] * (1 - gap) / values[1], 1.0]) @ u.T
    for path in jacobians.paths:
        path.stack[2] = change @ path.stack[2]
    jacobians = replace(jacobians)  # one that has formed no step yet
    s = spectrum(jacobians)
    found = shares(jacobians, s.left, s.right, s.log10_singular_values[0])
    error = error_of_shares(s, found)
    off = max(abs(found[name].mean() - exact_mean_share(jacobians, g)) for g, name in enumerate("ab"))
    assert off <= error < 1e-13 / gap


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_shares_sum_to_one_at_every_step_however_long_the_chain(scale):
    jacobians = random_paths("ab", 150, 6)
    for path in jacobians.paths:
        path.stack[...] *= scale  # the product leaves the range of float64
    s = spectrum(jacobians)
    found = shares(jacobians, s.left, s.right, s.log10_singular_values[0])
    np.testing.assert_allclose(found["a"] + found["b"], 1.0, rtol=1e-9)


def test_shares_of_a_dead_chain_are_unknown():
    jacobians = CellChain((DensePath("a", np.zeros((3, 2, 2))),), 3, 2)
    s = spectrum(jacobians)
    assert np.isnan(shares(jacobians, s.left, s.right, s.log10_singular_values[0])["a"]).all()


@pytest.mark.parametrize(("w", "steps"), [(0.99, 2000), (0.9, 200), (0.5, 50), (1.0, 30), (1.01, 200)])
def test_horizon_of_a_scalar(w, steps):
    expected = steps if w >= 1 else min(steps, int(np.floor(np.log(1e-3) / np.log(w))))
    chain = chain_of("full", [spectrum(np.full((steps, 1, 1), w), by_lag=True)], 1e-3)
    assert chain.horizons == (expected,)
    assert chain.rate.median == pytest.approx(np.log(w), abs=1e-14)
    assert chain.log10_norm.median == pytest.approx(steps * np.log10(w), rel=1e-13, abs=1e-15)
    assert chain.log10_rms == chain.log10_norm


def test_horizon_ends_at_the_first_lag_below_even_if_it_recovers():
    assert horizon(np.array([0.0, -4.0, 5.0]), 1e-3) == 1
    assert horizon(np.array([-4.0, 5.0]), 1e-3) == 0
    assert horizon(np.array([-np.inf]), 1e-3) == 0


@pytest.mark.parametrize("only_first", [False, True])
@pytest.mark.parametrize("m", [8, 40])
@pytest.mark.parametrize("turned", [False, True])
def test_a_chain_that_keeps_lengths_is_not_below_a_threshold_of_one(m, turned, only_first):
    """Rounding alone brings its norms below; and the first lag is its peak."""
    step = np.linalg.qr(np.random.default_rng(0).normal(size=(m, m)))[0] if turned else np.eye(m)
    found = spectrum([step] * 40, by_lag=True, floor=0.0, only_first=only_first)
    chain = chain_of("full", [found], 1.0)
    assert chain.horizons == (40,)
    assert chain.peak_lag.median == 1


@pytest.mark.parametrize("only_first", [False, True])
def test_a_bound_is_not_taken_for_a_norm_that_rounding_brought_below(only_first):
    """From lag 20 on the Frobenius norm is next to 1, and the norm next to 1 / 8."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
    found = spectrum(
        [turn] * 20 + [turn / 8 * (1 - 1e-12)] + [turn] * 19, by_lag=True, floor=0.0, only_first=only_first
    )
    assert chain_of("full", [found], 1.0).horizons == (19,)


def test_rms_gain_is_the_frobenius_norm():
    rng = np.random.default_rng(3)
    stack = rng.normal(size=(3, 4, 4))
    product = stack[2] @ stack[1] @ stack[0]
    chain = chain_of("full", [spectrum(stack, by_lag=True)], 1e-3)
    assert chain.log10_rms.median == pytest.approx(np.log10(np.linalg.norm(product) / 2), abs=1e-12)


def test_batch_median_and_extremes():
    spectra = [spectrum(np.full((10, 1, 1), w), by_lag=True) for w in (0.1, 10.0, 1.0)]
    norm = chain_of("full", spectra, 1e-3).log10_norm
    assert (norm.median, norm.min, norm.max) == pytest.approx((0.0, -10.0, 10.0))


def test_gate_statistics():
    parts = [
        {"f": np.array([[0.04, 0.5], [0.96, 0.5]]), "i": np.array([[0.1]])},
        {"f": np.array([[0.5]] * 4), "i": np.array([[0.9]])},
    ]
    bars = {"f": np.zeros(20), "i": np.zeros(20)}
    bars["f"][[0, 10, 19]] = 1 / 8, 6 / 8, 1 / 8
    bars["i"][[2, 18]] = 0.5  # 0.1 and 0.9 are not saturated, and may be by a rounding
    each = {"f": ([0.5, 0.0], 0.0), "i": ([0.0, 0.0], 1.0)}
    assert gate_statistics([Measured({}, {}, gates=gate_sums(part)) for part in parts]) == {
        name: {
            "mean": pytest.approx(0.5),
            "saturated": np.mean(saturated),
            "histogram": bars[name].tolist(),
            "sequences": {"saturated": saturated},
            "saturated_error": error,
        }
        for name, (saturated, error) in each.items()
    }


def test_activations_beyond_0_and_1_are_in_the_bars_at_the_ends():
    (gate,) = gate_statistics(
        [Measured({}, {}, gates=gate_sums({"u": np.array([-3.0, 7.0, 1.0, 0.0])}))]
    ).values()
    assert gate["histogram"] == [0.5, *[0.0] * 18, 0.5]


def test_recurrent_matrices():
    """A cycle of weights has them as singular values; each eigenvalue is of their geometric mean in size."""
    weights = np.array([3.0, 0.5, 2.0, 1.25, 4.0, 0.1])
    cycle = np.roll(np.diag(weights), 1, axis=0)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    parameters = {
        "R_f": rotation @ cycle @ rotation.T,
        "W_f": np.ones((6, 6)),
        "R_z": np.diag([3.0, 1, 1, 1, 1, -4]),
    }
    found = recurrent_matrices(parameters, all_values=True)
    assert list(found) == ["R_f", "R_z"]
    values = {"R_f": (weights, np.prod(weights) ** (1 / 6)), "R_z": (np.array([3.0, 1, 1, 1, 1, 4]), 4.0)}
    for name, (singular, radius) in values.items():
        assert found[name]["spectral_norm"] == pytest.approx(singular.max(), rel=1e-13)
        assert found[name]["spectral_radius"] == pytest.approx(radius, rel=1e-12)
        np.testing.assert_allclose(found[name]["singular_values"], np.sort(singular)[::-1], rtol=1e-12)
    # The cycle's are the sixth roots of the product of its weights.
    roots = found["R_f"]["eigenvalues"] @ [1, 1j]
    np.testing.assert_allclose(roots**6, np.prod(weights), rtol=1e-11)
    assert len({round(float(np.angle(root)), 6) for root in roots}) == 6
    np.testing.assert_allclose(found["R_z"]["eigenvalues"][:, 0], [-4.0, 3, 1, 1, 1, 1], atol=1e-12)


def test_a_dead_sequence_does_not_hide_the_shares_of_the_others():
    rng = np.random.default_rng(0)
    alive = np.abs(rng.normal(size=(12, 3))) + 1
    analysis = gradscope.analyze(
        cell=two_way_relu(), hidden=3, input_size=3, inputs=np.stack([alive, -alive])
    )
    assert analysis.full.exact_zeros[1] == 3 > analysis.full.exact_zeros[0]
    assert sum(analysis.mean_shares.values()) == pytest.approx(1, abs=1e-9)


def two_way_relu():
    """h = relu(x + R h) with R h on two paths: dead where x is very negative."""

    def step(parameters, x, copies):
        drive = 10 * x + 0.1 * parameters["R_a"] @ copies["R_a"] + 0.1 * parameters["R_b"] @ copies["R_b"]
        return jax.nn.relu(drive)

    return gradscope.Cell(
        "two-way", lambda n, d: {"W": (n, d), "R_a": (n, n), "R_b": (n, n)}, step, paths=("R_a", "R_b")
    )


@pytest.mark.parametrize("gain", [1e-200, 1e160])
def test_shares_of_gains_whose_squares_do_not_fit(gain):
    analysis = gradscope.analyze(cell="linear", hidden=4, input_size=2, steps=10, gain=gain)
    assert analysis.mean_shares["R"] == pytest.approx(1, abs=1e-9)
    assert analysis.full.rate.median == pytest.approx(np.log(gain), abs=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"cell": "lstm-nog"},
        {"cut": "R_o"},
        {"cell": "lstm-peephole", "cut": "R_o"},
        {"cell": "lstm-nog", "dtype": "float32"},
        {"biases": {"b_o": 40.0}},
    ],
)
@pytest.mark.parametrize("hidden", few([4, 24, 64], 4))
def test_an_output_that_follows_the_cell_leaves_rank_n(settings, hidden):
    """h_t is a function of c_t alone: n of the 2 n singular values are zero.

    But for 1e-17 of it: then they are known of small chains, and of larger ones lost.
    """
    analysis = gradscope.analyze(hidden=hidden, input_size=3, steps=60, **settings)
    (spectrum,) = analysis.full.spectra
    zeros, lost = (0, hidden * (hidden > 4)) if "biases" in settings else (hidden, 0)
    assert (spectrum.exact_zeros, spectrum.lost) == (zeros, lost)
    values = spectrum.log10_singular_values
    if not zeros + lost:
        assert (values[hidden:] < values[0] - 16).all()
    assert spectrum.log10_error < (1e-2 if "dtype" in settings else 1e-6)


@pytest.mark.slow
def test_pivots_near_the_noise_do_not_end_in_an_overflow():
    """A GRU in deep saturation: x grows by ten decades a step unless it is made orthonormal again."""
    analysis = gradscope.analyze(cell="gru", hidden=64, input_size=8, steps=120, gain=100.0)
    assert np.isfinite(analysis.full.log10_norm.median)
    assert analysis.full.log10_norm_error < 1e-9
