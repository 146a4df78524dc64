"""What people ask on forums: the answer that is printed is the right one, each by a number of its own."""

import re

import numpy as np
import pytest
from oracles import equations, layouts
from safetensors.numpy import save_file

import gradscope


def words(result):
    """What is printed, in one line."""
    return " ".join(str(result).split())


# keras 16151: why is nothing left of dc_t/dc_0 after some steps?


@pytest.mark.slow
def test_the_default_forget_bias_and_the_one_that_is_wanted():
    """f = sigmoid(1) = .73; for 200 steps -ln(expm1(ln(1 / gain) / 200)): 3.35 at 1e-3, 5.30 at 1/e."""
    found = gradscope.suggest(
        cell="lstm", init="keras", hidden=2, input_size=1, steps=200, horizon=200, knob="b_f"
    )
    page = words(found)
    assert "b_f is 1.00 in the median: alone it holds 0.73 of a state per step, halved every 2.21" in page
    assert "it would have to be 3.35 at a gain of 0.001, 5.30 at 1/e" in page
    (one,) = found.suggestions
    assert one.reaches
    assert one.horizon == 200


# pytorch 20102, 750: does a forget bias of 1 or of 5 help at 500 steps?


@pytest.mark.parametrize(("bias", "horizon"), [(1.0, 22), (5.0, 500)])
def test_a_forget_bias_of_one_or_of_five(bias, horizon):
    """The carousel alone keeps sigmoid(b)^k above 1e-3 for 22 steps at b = 1, for all 500 at b = 5."""
    cut = ["R_z", "R_i", "R_f", "R_o"]  # and R_f at 0, so that f is sigmoid(b) at every step
    options = {"cell": "lstm", "hidden": 1, "input_size": 1, "steps": 500, "inputs": "zeros", "gain": 0.0}
    found = gradscope.analyze(**options, biases={"b_f": bias}, cut=cut, only="gain")
    assert found.full.horizon.median == horizon
    assert horizon == min(500, int(np.log(1e-3) / np.log(equations.sigmoid(bias))))
    assert found.full.log10_norm.median == pytest.approx(500 * np.log10(equations.sigmoid(bias)), abs=0.1)


# keras 20276: a GRU with recurrent_dropout of 0.5 blows up at 100 steps


def test_recurrent_dropout_is_a_factor_on_every_step(run):
    """Of a linear cell a unit that is kept is doubled at every step: 2^T, or 0."""
    found = gradscope.analyze(
        cell="linear", hidden=1, input_size=1, steps=100, init="identity", recurrent_dropout=0.5, masks=40
    )
    gains = sorted({round(float(one.log10_singular_values[0]), 6) for one in found.masks.drawn.spectra})
    assert gains == [-np.inf, pytest.approx(100 * np.log10(2))]
    assert found.masks.mean.log10_norm.median == pytest.approx(0)
    assert "Gain with recurrent dropout of probability 0.5" in str(found)


# lstmp.pytorch 2: clipping at 5 did not help, at 1 it did


@pytest.mark.slow
def test_clipping_a_projected_lstm(tmp_path):
    """A threshold above the gradient's norm leaves all, one at half of it the half: no lag gets more."""
    state = layouts.recurrent("lstm", 2, 4, projection=2, dtype="float64")
    save_file(state, tmp_path / "m.safetensors")
    x = np.random.default_rng(0).standard_normal((9, 2))
    options = {"checkpoint": tmp_path / "m.safetensors", "inputs": x, "adjoint": np.ones(2)}
    loose = gradscope.analyze(**options, clip=1e3)
    norm = 10 ** loose.loss.clip.log10_norm[0]
    tight = gradscope.analyze(**options, clip=norm / 2)
    assert "It does not act on the sequence: |G| is at most" in words(loose)
    assert tight.loss.clip.factor[0] == pytest.approx(0.5, rel=1e-5)
    assert "It acts on the sequence: factor 0.5" in str(tight)
    assert "it bounds the step, and cannot cure vanishing" in words(tight)


# keras 2194, 3687; tsgm 59: LSTM(activation="relu") is NaN


@pytest.mark.slow
def test_an_lstm_with_relu():
    """From which lag float32 has no number, which path carries it, and what tanh would do, verified."""
    options = {"hidden": 8, "input_size": 2, "steps": 70, "gain": 40.0, "biases": {"b_f": 2.0}}
    found = gradscope.suggest(cell="lstm-relu", **options, knob="activation")
    page = words(found)
    assert re.search(r"In float32 a gradient of size 1 overflows from lag \d+ on", page)
    assert "activation tanh in place of relu" in page
    assert any("carries" in reason or "R_" in reason for reason in found.analysis.verdict.reasons)
    verified = gradscope.analyze(cell="lstm", **options, only="gain").full.log10_norm.median
    assert found.suggestions[0].verified_log10 == pytest.approx(verified, abs=1e-9)


# prog_models 334, shubble 353: inputs of about 1000 (tests of saturated gates in test_suggest.py)
# tensorflow 2803, keras 8945: how long must truncated BPTT be?


def test_the_length_of_truncated_backpropagation(tmp_path):
    """h_t = w h_(t-1) + 1, L = h_T: dL/dw by lag k is w^k (1 - w^(T-1-k)) / (1 - w), all of one sign."""
    w, steps = 0.8, 60
    np.savez(tmp_path / "s.npz", W=np.zeros((1, 1)), R=np.full((1, 1), w), b=np.ones(1))
    found = gradscope.analyze(
        checkpoint=tmp_path / "s.npz",
        cell="linear",
        inputs=np.zeros((steps, 1)),
        adjoint=np.ones(1),
        tbptt=10,
    )
    lags = np.arange(steps)
    parts = w**lags * (1 - w ** (steps - 1 - lags)) / (1 - w)
    bias = 1 - np.cumsum(parts) / parts.sum()  # after so many steps and one
    length = int(np.argmax(bias <= 0.01)) + 1
    assert found.loss.tbptt.needs("R") == length
    assert found.loss.tbptt.at("R")[0] == pytest.approx(bias[9], rel=1e-9)
    said = f"{100 * bias[9]:.3g} %"
    assert any(said in line and f" {length} " in line for line in str(found).splitlines())


# two LSTMs, long lags are not learnt: which layer, which gate, what to do


@pytest.mark.slow
def test_two_lstms(run, tmp_path):
    state = layouts.recurrent("lstm", 2, 4, layers=2, dtype="float64")
    path = layouts.saved(state, tmp_path / "two.safetensors")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((60, 2)))
    code, out, _ = run("analyze", path, "--inputs", tmp_path / "x.npy", "--suggest")
    assert code == 0
    for said in ("layer0", "layer1", "Without: the whole chain but for one path", "Settings that reach"):
        assert said in out
    command = re.search(r"--knob '(.*)'", out)
    new = tmp_path / "new.safetensors"
    code, out, _ = run(
        "repair", path, "-o", new, "--knob", command[1], "--inputs", tmp_path / "x.npy", "--json"
    )
    assert code == 0
    assert gradscope.analyze(checkpoint=new, inputs=tmp_path / "x.npy").verdict.level == "stable"


# An explosion of which every path alone vanishes: tests/measure/test_without.py
