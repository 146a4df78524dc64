"""Networks whose states leave float64: their chain against arithmetic that holds them."""

from __future__ import annotations

from dataclasses import replace

import mpmath
import numpy as np
import pytest

import gradscope
from gradscope.api import analyze_light
from gradscope.cells import find
from gradscope.errors import InputError
from gradscope.measure.light import LightProbe
from gradscope.settings import Settings

N, D, T = 3, 2, 150
# Of each activation, mpmath's value and slope.
ACTIVATIONS = {
    "linear": lambda a: (a, 1),
    "rnn-relu": lambda a: (a, 1) if a > 0 else (0, 0),
    "rnn-elu": lambda a: (a, 1) if a > 0 else (mpmath.expm1(a), mpmath.exp(a)),
}


def weights(seed):
    """Of size 1000, on inputs of a million: states grow by three decades a step."""
    rng = np.random.default_rng(seed)
    shapes = {"W": (N, D), "R": (N, N), "b": (N,)}
    arrays = {key: 1e3 * rng.normal(size=shape) for key, shape in shapes.items()}
    return arrays, 1e6 * rng.normal(size=(1, T, D))


def log10_values(cell, arrays, inputs):
    """Of the whole chain, in numbers of two thousand digits; None where they are zero."""
    with mpmath.workdps(2000):
        w, r, b = (mpmath.matrix(arrays[key].tolist()) for key in ("W", "R", "b"))
        h, product = mpmath.zeros(N, 1), mpmath.eye(N)
        for x in inputs[0]:
            pairs = [ACTIVATIONS[cell](a) for a in w * mpmath.matrix(x.tolist()) + r * h + b]
            h = mpmath.matrix([value for value, _ in pairs])
            product = mpmath.diag([slope for _, slope in pairs]) * r * product
        values = mpmath.svd_r(product, compute_uv=False)
        lost = values[0] * mpmath.mpf(10) ** -1900
        return [float(mpmath.log10(value)) if value > lost else -np.inf for value in values]


def lstm(p, x, state):
    """A step of lstm-elu in mpmath, from the equations."""
    c, h = state[:N], state[N:]
    z, i, f, o = (p["W_" + gate] * x + p["R_" + gate] * h + p["b_" + gate] for gate in "zifo")
    c = [sigmoid(f[k]) * c[k] + sigmoid(i[k]) * elu(z[k]) for k in range(N)]
    return mpmath.matrix([*c, *(sigmoid(o[k]) * elu(c[k]) for k in range(N))])


def gru(p, x, h):
    """The same of gru-relu."""
    r, z, n = (p["W_" + gate] * x + p["b_" + gate] for gate in "rzh")
    r, z, inner = r + p["R_r"] * h, z + p["R_z"] * h, p["R_h"] * h + p["c_h"]
    n = [max(n[k] + sigmoid(r[k]) * inner[k], 0) for k in range(N)]
    return mpmath.matrix([(1 - sigmoid(z[k])) * n[k] + sigmoid(z[k]) * h[k] for k in range(N)])


def cho(p, x, h):
    """The same of gru-reset-before-relu, which has no per-unit form."""
    r, z, n = (p["W_" + gate] * x + p["b_" + gate] for gate in "rzh")
    r, z = r + p["R_r"] * h, z + p["R_z"] * h
    n += p["R_h"] * mpmath.matrix([sigmoid(r[k]) * h[k] for k in range(N)])
    return mpmath.matrix([(1 - sigmoid(z[k])) * max(n[k], 0) + sigmoid(z[k]) * h[k] for k in range(N)])


def sigmoid(a):
    return 1 / (1 + mpmath.exp(-a))


def elu(a):
    return a if a > 0 else mpmath.expm1(a)


def by_differences(step, arrays, inputs):
    """log10 of the chain's values, by difference quotients in 1500 digits: the slopes of the left."""
    with mpmath.workdps(1500):
        p = {key: mpmath.matrix(array.tolist()) for key, array in arrays.items() if "0" not in key}
        state = mpmath.matrix([*arrays.get("c0", []), *arrays["h0"]])
        product = mpmath.eye(len(state))
        for x in inputs[0]:
            x = mpmath.matrix(x.tolist())
            new, jacobian = step(p, x, state), mpmath.zeros(len(state))
            for j in range(len(state)):
                moved, by = state.copy(), max(abs(state[j]), 1) * mpmath.mpf(10) ** -500
                moved[j] -= by
                jacobian[:, j] = (new - step(p, x, moved)) / by
            state, product = new, jacobian * product
        values = mpmath.svd_r(product, compute_uv=False)
        lost = values[0] * mpmath.mpf(10) ** -450
        return [float(mpmath.log10(value)) if value > lost else -np.inf for value in values]


# Signs of R by which the gates let states grow.
GATED = {
    "lstm-elu": (lstm, {"R_z": 1, "R_i": 1, "R_f": 1, "R_o": 1}),
    "gru-relu": (gru, {"R_r": 1, "R_z": -1, "R_h": 1}),
    "gru-reset-before-relu": (cho, {"R_r": 1, "R_z": -1, "R_h": 1}),
}


@pytest.mark.slow
@pytest.mark.parametrize("cell", GATED)
def test_gates_beside_states_of_any_size(cell, tmp_path):
    step, signs = GATED[cell]
    rng, found = np.random.default_rng(0), find(cell)
    arrays = {key: 1e16 * rng.normal(size=shape) for key, shape in found.shapes(N, D).items()}
    arrays |= {key: sign * np.abs(arrays[key]) for key, sign in signs.items()}
    arrays |= {f"{part}0": np.full(N, 1e3) for part in found.components}
    inputs = rng.normal(size=(1, 25, D))
    path = written(tmp_path / "cell.npz", arrays)
    expected = by_differences(step, arrays, inputs)
    assert expected[0] > 310
    analysis = gradscope.analyze(checkpoint=path, cell=cell, inputs=inputs)
    (ours,) = analysis.full.spectra
    np.testing.assert_allclose(ours.log10_singular_values, expected, atol=1e-9)
    assert ours.lost == 0
    top = gradscope.analyze(checkpoint=path, cell=cell, inputs=inputs, top=1, only="gain")
    assert top.full.log10_norm.median == pytest.approx(expected[0], abs=1e-9)


def written(path, arrays):
    np.savez(path, **arrays)
    return path


@pytest.fixture
def given(tmp_path):
    """What to analyse of a cell with such weights."""

    def make(cell="rnn-relu", seed=0):
        arrays, inputs = weights(seed)
        return {"checkpoint": written(tmp_path / "cell.npz", arrays), "cell": cell, "inputs": inputs}

    return make


@pytest.mark.parametrize("cell", ACTIVATIONS)
def test_all_values_are_those_of_numbers_of_any_size(given, cell):
    found = gradscope.analyze(**given(cell))
    expected = log10_values(cell, *weights(0))
    assert expected[0] > 400
    np.testing.assert_allclose(found.full.spectra[0].log10_singular_values, expected, atol=1e-9)
    assert found.full.by_lag.shape == (1, T)
    assert any("It leaves float64 (1.8e308) at step" in note for note in found.verdict.notes)


def test_in_float32_it_goes_on_too(tmp_path):
    arrays = {"W": np.zeros((1, 1)), "R": np.full((1, 1), 4.0), "b": np.zeros(1), "h0": np.ones(1)}
    path = written(tmp_path / "cell.npz", arrays)
    given = {"checkpoint": path, "cell": "rnn-relu", "inputs": np.zeros((1, 90, 1))}
    found = gradscope.analyze(**given, dtype="float32")
    assert found.full.log10_norm.median == pytest.approx(90 * np.log10(4.0), abs=1e-5)
    # 4^64 = 2^128; what float64 holds is of no interest to who asks for float32.
    assert any("at step 64:" in note and "any size" in note for note in found.verdict.notes)
    assert not any("leaves float64" in note for note in found.verdict.notes)


@pytest.mark.slow
def test_without_jacobians_and_by_the_light_probe_the_gain_is_the_same(given):
    (expected, *_) = log10_values("rnn-relu", *weights(0))
    top = gradscope.analyze(**given(), top=1).full
    assert top.log10_norm.median == pytest.approx(expected, abs=1e-9)
    light = analyze_light(replace(Settings(), **given()), LightProbe())
    assert light.full.log10_norm.median == pytest.approx(expected, abs=1e-6)


def test_a_unit_far_below_another_keeps_its_slope(tmp_path):
    # One exponent for both would make the second unit zero, and its slope with it.
    arrays = {"W": np.zeros((2, 1)), "R": np.diag([1e3, 0.5]), "b": np.zeros(2), "h0": np.ones(2)}
    path = written(tmp_path / "cell.npz", arrays)
    found = gradscope.analyze(checkpoint=path, cell="rnn-relu", inputs=np.zeros((1, 400, 1)))
    values = found.full.spectra[0].log10_singular_values
    np.testing.assert_allclose(values, [1200, 400 * np.log10(0.5)], rtol=1e-12)


@pytest.mark.parametrize("top", [None, 1])
def test_rounding_that_decides_a_trajectory_is_told_and_growth_alone_is_not(top, tmp_path):
    def notes(cell, r):
        path = written(
            tmp_path / "cell.npz", {"W": np.zeros((2, 1)), "R": r, "b": np.zeros(2), "h0": np.ones(2)}
        )
        given = {"checkpoint": path, "cell": cell, "inputs": np.zeros((1, 400, 1)), "top": top}
        return [
            note for note in gradscope.analyze(**given).verdict.notes if "forward pass's rounding" in note
        ]

    # What the two have in common grows 10 times a step, and they do not differ: that would grow 100 times.
    assert not notes("rnn-relu", 100 * np.eye(2))
    assert notes("linear", 55 * np.eye(2) - 45 * (1 - np.eye(2)))


def test_what_needs_the_states_themselves_is_refused_or_left_out(given):
    with pytest.raises(InputError, match=r"infinite or NaN in float64 after step \d+"):
        gradscope.analyze(**given(), adjoint=np.ones(N))
    found = gradscope.analyze(**given(), sensitivity=True)
    assert found.sensitivity is None
    assert any("it is differentiated along states" in note for note in found.verdict.notes)


@pytest.mark.parametrize("top", [None, 1])
def test_a_function_that_leaves_float64_itself_is_refused(top, tmp_path):
    arrays = {"W": np.zeros((1, 1)), "R": np.full((1, 1), 4.0), "b": np.zeros(1), "h0": np.full(1, 4.0)}
    path = written(tmp_path / "cell.npz", arrays)
    with pytest.raises(InputError, match=r"infinite or NaN in float64 after step 2, .* fewer than 2"):
        gradscope.analyze(checkpoint=path, cell="rnn-exponential", inputs=np.ones((1, 9, 1)), top=top)
    # exp(exp(4.5)) is 1e39.
    path = written(tmp_path / "less.npz", arrays | {"R": np.ones((1, 1)), "h0": np.full(1, 4.5)})
    given = {"checkpoint": path, "cell": "rnn-exponential", "inputs": np.ones((1, 2, 1)), "top": top}
    with pytest.raises(InputError, match=r"in float32 after step 2, .* smaller, or dtype float64"):
        gradscope.analyze(**given, dtype="float32")
    found = gradscope.analyze(**given).full.log10_norm.median
    assert found == pytest.approx((4.5 + np.exp(4.5)) * np.log10(np.e))


def two(path, growing):
    """Two layers of one unit, one of which doubles its state at every step, in torch's names."""
    rates = {0: 0.5, 1: 0.5} | {growing: 8.0}
    arrays = {}
    for layer, rate in rates.items():
        arrays |= {f"weight_ih_l{layer}": [[1.0]], f"weight_hh_l{layer}": [[rate]]}
        arrays |= {f"bias_{kind}_l{layer}": [1.0] for kind in ("ih", "hh")}
    return written(path, arrays)


@pytest.mark.slow
def test_the_layers_of_a_stack_go_on_where_one_above_leaves_float64(tmp_path):
    path = two(tmp_path / "two.npz", growing=1)
    found = gradscope.analyze(checkpoint=path, cell="rnn-relu", inputs=np.ones((1, 400, 1)))
    assert found.full.log10_norm.median == pytest.approx(400 * np.log10(8.0), abs=0.1)
    below, above = (layer.full.log10_norm.median for layer in found.layers)
    assert (below, above) == (pytest.approx(400 * np.log10(0.5)), pytest.approx(400 * np.log10(8.0)))
    # The block of the product: sum over k of 8^(400-k) .5^(k-1) .5 = 8^400 / 15 + ...
    between = found.chain("0->1").log10_norm.median
    assert between == pytest.approx(np.log10(0.5 / 7.5) + 400 * np.log10(8.0), abs=1e-9)


def test_a_layer_above_reads_all_digits_of_the_one_below(tmp_path):
    # Its second unit reads 0.7 - (0.7 - 1e-10), which in float32's digits is below zero: it would be shut.
    arrays = {"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]], "bias_ih_l0": [0.0], "bias_hh_l0": [0.0]}
    arrays |= {"weight_ih_l1": np.ones((2, 1)), "weight_hh_l1": np.diag([8.0, 0.5])}
    arrays |= {"bias_ih_l1": [0.0, 1e-10 - 0.7], "bias_hh_l1": np.zeros(2)}
    path = written(tmp_path / "two.npz", arrays)
    found = gradscope.analyze(checkpoint=path, cell="rnn-relu", inputs=np.full((1, 400, 1), 0.7))
    values = found.full.spectra[0].log10_singular_values
    np.testing.assert_allclose(values, [400 * np.log10(8.0), 400 * np.log10(0.5), -np.inf], rtol=1e-12)


def test_what_a_layer_cannot_read_names_the_one_to_choose(tmp_path):
    path = two(tmp_path / "two.npz", growing=0)
    given = {"checkpoint": path, "cell": "rnn-relu", "inputs": np.ones((1, 400, 1))}
    with pytest.raises(InputError, match=r"layer l0: .* after step 342, .* choose it alone with layer l0"):
        gradscope.analyze(**given)
    found = gradscope.analyze(**given, layer="l0")
    assert found.full.log10_norm.median == pytest.approx(400 * np.log10(8.0))
