"""The light probe: gain and horizon by power iteration, against every value by the product SVD."""

import math
from dataclasses import replace

import numpy as np
import pytest
from oracles import layouts

import gradscope
from gradscope.api import analyze_light
from gradscope.errors import InputError
from gradscope.linearize.leading_vector import leading_vectors
from gradscope.machine import find_devices
from gradscope.measure.light import LightProbe, measure_side_by_side
from gradscope.problem.problem import make_problem
from gradscope.settings import Settings

SIZE = {"hidden": 8, "input_size": 3, "steps": 40}
CASES = [
    {"cell": "lstm"},
    {"cell": "lstm", "biases": {"b_f": 3.0}, "batch": 3},
    {"cell": "gru", "gain": 2.0, "cut": ("R_h",)},
    {"cell": "rnn", "init": "gaussian", "gain": 1.5},
    {"cell": "rnn", "gain": 0.01},
    {"cell": "lstm-peephole", "scale": {"R_*": 0.5}},
    {"cell": "gru-reset-before"},
    {"cell": "linear", "init": "identity", "gain": 1.5},
]


def light(probe=None, **given):
    return analyze_light(Settings(**given), probe or LightProbe())


def close(probed, whole):
    """The gain to a millionth of a decade, from below; horizon and verdict the same."""
    gains = [[s.log10_singular_values[0] for s in one.full.spectra] for one in (probed, whole)]
    np.testing.assert_allclose(*gains, atol=1e-6, rtol=0)
    assert np.all(np.array(gains[0]) <= np.array(gains[1]) + 1e-11)
    assert probed.full.horizons == whole.full.horizons
    assert probed.verdict.level == whole.verdict.level
    assert probed.full.log10_norm_error < 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["cell"])
def test_it_is_what_the_whole_analysis_finds(case):
    whole = gradscope.analyze(**SIZE, **case, only="gain")
    close(light(**SIZE, **case), whole)


def test_lower_bounds_at_every_lag():
    given = {**SIZE, "cell": "lstm", "biases": {"b_f": 1.0}, "batch": 2}
    bounds, exact = light(**given).full.by_lag, gradscope.analyze(**given, only="gain").full.by_lag
    assert np.all(bounds <= exact + 1e-10)
    assert np.abs(bounds - exact).max() < 0.5


def test_the_largest_gain_on_the_way_decides():
    """A gain that is past the threshold at some lag is exploding, whatever the last lag has."""
    given = {"cell": "lstm", "hidden": 6, "input_size": 3, "steps": 60, "gain": 12.0, "seed": 3}
    whole = gradscope.analyze(**given, only="gain")
    policy = {"exploding_above": 10 ** (whole.full.log10_peak.median - 0.01)}
    assert light(**given, **policy).verdict.level == "exploding"


def test_sequences_of_their_own_length():
    x = np.random.default_rng(0).normal(size=(3, 20, 3))
    given = {"cell": "gru", "hidden": 8, "inputs": x, "lengths": np.array([20, 7, 13])}
    close(light(**given), gradscope.analyze(**given, only="gain"))


def test_layers_and_their_stack(tmp_path):
    path = tmp_path / "model.npz"
    tensors = layouts.recurrent("lstm", 3, 4, layers=2)
    layouts.saved(tensors, path)
    given = {"checkpoint": path, "steps": 30}
    probed, whole = light(**given), gradscope.analyze(**given, only="gain")
    close(probed, whole)
    for one, other in zip(probed.layers, whole.layers, strict=True):
        close(one, other)


def native(path, matrix):
    n = len(matrix)
    np.savez(path, W=np.zeros((n, 1)), R=matrix, b=np.zeros(n))
    return path


def test_a_kept_vector_does_not_hide_the_leading_one(tmp_path):
    """The leading direction of the second is what the first left nothing of: its vector is no start alone."""
    probe = LightProbe()
    for number, matrix in enumerate(([2.0, 1.0], [1.0, 2.0], [0.5, 0.25])):
        path = native(tmp_path / f"{number}.npz", np.diag(matrix))
        found = light(probe, checkpoint=path, cell="linear", steps=12)
        assert found.full.log10_norm.median == pytest.approx(12 * math.log10(max(matrix)), abs=1e-8)


def test_an_exact_zero(tmp_path):
    path = native(tmp_path / "zero.npz", np.array([[0.0, 1.0], [0.0, 0.0]]))
    found = light(checkpoint=path, cell="linear", steps=5)
    assert found.full.log10_norm.median == -math.inf
    assert (found.full.horizon.median, found.verdict.level) == (1, "vanishing")


def test_what_does_not_settle_says_so(tmp_path):
    """Two singular values a part in ten thousand apart, over few steps: passes tell them apart but slowly."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 40)))[0]
    path = native(tmp_path / "close.npz", turn @ np.diag(np.linspace(1, 0.9, 40)))
    found = light(checkpoint=path, cell="linear", steps=1)
    assert 0 <= 0 - found.full.log10_norm.median <= found.full.log10_norm_error
    assert found.full.log10_norm_error > 1e-8


@pytest.mark.parametrize("seed", range(6))
def test_what_has_settled_is_right_and_what_has_not_is_within_its_error(tmp_path, seed):
    """Singular values that stand close together, at the lag where the horizon ends too."""
    rng = np.random.default_rng(seed)
    matrix = np.linalg.qr(rng.normal(size=(12, 12)))[0] @ np.diag(np.linspace(1, rng.uniform(0.9, 1), 12))
    path = native(tmp_path / "close.npz", matrix * rng.uniform(0.3, 0.95))
    given = {"checkpoint": path, "cell": "linear", "steps": 40}
    probed, whole = light(**given), gradscope.analyze(**given, only="gain")
    missed = whole.full.log10_norm.median - probed.full.log10_norm.median
    assert -1e-11 <= missed <= probed.full.log10_norm_error
    assert probed.full.log10_norm_error > 1e-6 or probed.full.horizons == whole.full.horizons


def test_one_program_serves_all_checkpoints_of_a_shape(tmp_path):
    rng, probe = np.random.default_rng(0), LightProbe()
    paths = [native(tmp_path / f"{number}.npz", rng.normal(size=(5, 5))) for number in range(4)]
    light(probe, checkpoint=paths[0], cell="rnn", steps=9)
    before = leading_vectors._cache_size()
    for path in paths[1:]:
        light(probe, checkpoint=path, cell="rnn", steps=9)
    assert leading_vectors._cache_size() == before


def test_what_it_does_not_measure_is_refused():
    with pytest.raises(InputError, match="leave view out, or leave light out"):
        light(**SIZE, view="cell")
    with pytest.raises(InputError, match=r"keeps all steps in memory .* give steps of at most \d+"):
        light(cell="lstm", hidden=512, steps=100_000)
    settings = replace(Settings(), cell="rnn-exponential", gain=1e3, hidden=8, steps=400)
    with pytest.raises(InputError, match="the state is infinite or NaN in float64 after step"):
        analyze_light(settings, LightProbe())


# -- many problems of one shape -----------------------------------------------------------------------


def problem(**given):
    return make_problem(Settings(**{**SIZE, "cell": "rnn", "init": "gaussian", **given}, only="gain", top=1))


def beside(problems):
    device, count = find_devices()[0], len(problems)
    return measure_side_by_side(problems, [-3.0] * count, [3.0] * count, device)


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_many_side_by_side_are_what_each_is_alone(monkeypatch, at_once):
    """As batches of an accelerator too, the last of which is filled up; of two shapes, in their order."""
    monkeypatch.setattr("gradscope.measure.light._at_once", lambda *_: at_once)
    asked = [{"gain": gain, "steps": steps} for steps in (12, 7) for gain in (0.3, 1.0, 1.7, 2.5)]
    asked[2]["cell"] = asked[6]["cell"] = "linear"
    for given, (found,) in zip(asked, beside([problem(**one) for one in asked]), strict=True):
        whole = gradscope.analyze(**{**SIZE, "cell": "rnn", "init": "gaussian", **given}, only="gain").full
        assert found.full.log10_singular_values[0] == pytest.approx(whole.log10_norm.median, abs=1e-8)
        assert len(found.full.log10_norm_by_lag) == given["steps"]
        np.testing.assert_array_less(found.full.log10_norm_by_lag, whole.by_lag[0] + 1e-10)


def test_a_problem_depends_on_none_beside_it(monkeypatch):
    problems = [problem(gain=gain, steps=12) for gain in (0.5, 1.0, 3.0)]
    each = [beside([one])[0][0].full for one in problems]
    monkeypatch.setattr("gradscope.measure.light._at_once", lambda *_: 3)
    for (found,), alone in zip(beside(problems), each, strict=True):
        np.testing.assert_allclose(found.full.log10_norm_by_lag, alone.log10_norm_by_lag, atol=1e-13)
        assert found.full.log10_norm_error == pytest.approx(alone.log10_norm_error, rel=1e-3, abs=1e-15)


@pytest.mark.parametrize("cell", [pytest.param("rnn-relu", marks=pytest.mark.slow), "rnn-exponential"])
def test_what_leaves_float64_leaves_the_others_alone(monkeypatch, cell):
    """Of a relu it is measured along given slopes, of an exponential there is nothing to be measured."""
    monkeypatch.setattr("gradscope.measure.light._at_once", lambda *_: 4)
    gains = (1e-9, 1e3, 2e-9)
    found = beside([problem(cell=cell, gain=gain, steps=400) for gain in gains])
    if cell == "rnn-exponential":
        assert "infinite or NaN in float64 after step" in str(found[1])
    for one, gain in zip(found, gains, strict=True):
        if not isinstance(one, InputError):
            given = {**SIZE, "cell": cell, "init": "gaussian", "gain": gain, "steps": 400}
            whole = gradscope.analyze(**given, only="gain").full.log10_norm.median
            assert one[0].full.log10_singular_values[0] == pytest.approx(whole, abs=1e-6)
        else:
            assert (cell, gain) == ("rnn-exponential", 1e3)


def test_one_program_serves_a_whole_grid():
    beside([problem(gain=0.5, steps=9)])
    before = leading_vectors._cache_size()
    beside([problem(gain=gain, seed=seed, steps=9) for gain in (0.5, 1.0) for seed in (1, 2)])
    assert leading_vectors._cache_size() == before
