"""Slopes too small for float64: chains of saturated units against arithmetic that holds them."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
from oracles.any_exponent import log10_norms, stacked, step_of
from oracles.drawn import D, N, T, drawn
from oracles.few import few

import gradscope
from gradscope.api import analyze_light
from gradscope.cells import find
from gradscope.cells.cell import Member
from gradscope.cells.stack import stacked as stacked_cell
from gradscope.linearize.system import System
from gradscope.linearize.trajectory import states_of
from gradscope.measure import batch
from gradscope.measure.light import LightProbe
from gradscope.product_svd import more_digits
from gradscope.report.html_page import html_page
from gradscope.settings import Settings

CELLS = ["rnn", "rnn-sigmoid", "gru", "gru-reset-before", "lstm", "lstm-peephole", "lstm-cifg", "lstm-noaf"]


@pytest.mark.parametrize("size", [1e3, 1e6])
@pytest.mark.parametrize("cell", few(CELLS, "rnn"))
def test_the_gain_is_that_of_numbers_of_any_size(cell, size, tmp_path):
    arrays, inputs, states = drawn(cell, 3.0, size, seed=2 if cell == "gru-reset-before" else 1)
    np.savez(tmp_path / "cell.npz", **arrays)
    found = gradscope.analyze(checkpoint=tmp_path / "cell.npz", cell=cell, inputs=inputs, only="gain").full
    expected = log10_norms(step_of(cell), arrays, inputs[0], states)
    assert expected[-1] < -200
    error = found.spectra[0].log10_norm_error
    assert error < 1e-3
    np.testing.assert_allclose(found.by_lag[0], expected, rtol=1e-14, atol=10 * error)
    assert found.log10_norm.median == pytest.approx(expected[-1], abs=error)


def test_a_gain_that_entries_of_16_digits_do_not_hold_is_lost_where_more_are_too_dear(tmp_path, monkeypatch):
    """From lag 6 on terms cancel to 1e-31 of their size, of which Jacobians right to 1e-13 know nothing."""
    monkeypatch.setattr(more_digits, "MOST_OPERATIONS", 0)
    arrays, inputs, states = drawn("gru-reset-before", 3.0, 1e3)
    np.savez(tmp_path / "cell.npz", **arrays)
    given = {"checkpoint": tmp_path / "cell.npz", "cell": "gru-reset-before", "inputs": inputs}
    expected = log10_norms(step_of("gru-reset-before"), arrays, inputs[0], states)
    for only in ("gain", "all"):
        analysis = gradscope.analyze(**given, only=only)
        full = analysis.full
        (spectrum,) = full.spectra
        assert np.isnan(spectrum.log10_singular_values[0])
        assert spectrum.log10_norm_error > 1  # no 0, as if it were known
        errors = spectrum.log10_norm_error_by_lag
        assert (errors[:5] < 1e-10).all()
        np.testing.assert_allclose(full.by_lag[0, :5], expected[:5], rtol=1e-14, atol=1e-10)
        # What it had from rounding was decades off.
        assert np.isnan(full.by_lag[0, 5:]).all()
        assert (errors[5:] > 1).all()
    # Every view says so: there null stands for 0 too.
    told = analysis.to_dict()
    for norms in (told["profile"], told["chains"][0]["by_lag"]):
        assert norms["lost"] == [6, 7, 8, 9, 10]
    assert "the gain at 5 of the lags is lost" in told["chains"][0]["unmeasured"]
    assert "the gain at 5 of the lags is lost" in " ".join(str(analysis).split())
    page = html_page(json.loads(analysis.to_json()))
    assert "lost in rounding" in re.findall(r"<tr>\s*<t[hd][^>]*>6</t[hd]>\s*<td[^>]*>([^<]*)</td>", page)
    assert told["chains"][0]["horizon"]["median"] == int(np.argmax(expected < -3))
    # With more digits all of it is known.
    monkeypatch.undo()
    full = gradscope.analyze(**given, only="gain").full
    np.testing.assert_allclose(full.by_lag[0], expected, rtol=1e-14, atol=1e-13)
    assert full.spectra[0].log10_norm_error < 1e-9


BESIDE_1 = {"gru": 3.0, "gru-reset-before": 30.0, "lstm-cifg": 3.0}


@pytest.mark.parametrize("cell", few(BESIDE_1, "gru"))
def test_slopes_have_what_is_left_of_states_that_are_1_in_float64(cell, tmp_path):
    arrays, inputs, states = drawn(cell, 30.0, BESIDE_1[cell])
    assert (np.abs(states[1:, :N]) == 1).any()
    np.savez(tmp_path / "cell.npz", **arrays)
    found = gradscope.analyze(checkpoint=tmp_path / "cell.npz", cell=cell, inputs=inputs, only="gain").full
    expected = log10_norms(step_of(cell), arrays, inputs[0], states)
    np.testing.assert_allclose(
        found.by_lag[0], expected, rtol=1e-14, atol=10 * found.spectra[0].log10_norm_error
    )


@pytest.mark.slow
def test_lags_have_what_f_c_and_i_z_leave_of_each_other(tmp_path):
    arrays, inputs, states = drawn("lstm-nig", 1e3, 1.0, seed=6)
    c = states[:, :N]
    assert ((np.abs(c[1:]) < 1e-12) & (np.abs(c[:-1]) > 0.9)).any()
    np.savez(tmp_path / "cell.npz", **arrays)
    given = {"checkpoint": tmp_path / "cell.npz", "cell": "lstm-nig", "inputs": inputs, "only": "gain"}
    found = gradscope.analyze(**given).full
    expected = log10_norms(step_of("lstm-nig"), arrays, inputs[0], states)
    error = found.spectra[0].log10_norm_error
    assert error < 1e-10
    np.testing.assert_allclose(found.by_lag[0], expected, rtol=1e-14, atol=10 * error)


def test_every_value_path_and_share_of_such_a_chain_is_measured(tmp_path):
    arrays, inputs, states = drawn("rnn", 3.0, 1e4)
    np.savez(tmp_path / "cell.npz", **arrays)
    found = gradscope.analyze(checkpoint=tmp_path / "cell.npz", cell="rnn", inputs=inputs)
    (spectrum,) = found.full.spectra
    assert (spectrum.exact_zeros, spectrum.lost) == (0, 0)
    # All of them together are the determinants', whose slopes sech^2 a are 4 exp(-2 |a|) far out.
    a = np.abs(inputs[0] @ arrays["W"].T + states[:-1] @ arrays["R"].T + arrays["b"])
    assert a.min() > 20
    _, log_determinant = np.linalg.slogdet(arrays["R"])
    expected = (T * log_determinant + (np.log(4.0) - 2 * a).sum()) / np.log(10)
    assert spectrum.log10_singular_values.sum() == pytest.approx(expected, rel=1e-12)
    assert found.shares == {"R": pytest.approx(1.0, abs=1e-6)}
    assert not any("are 0 in float64" in note for note in found.verdict.notes)


def test_units_that_are_dead_have_no_slope_however_small(tmp_path):
    arrays = {"W": np.full((1, 1), -1.0), "R": np.ones((1, 1)), "b": np.zeros(1)}
    np.savez(tmp_path / "cell.npz", **arrays)
    given = {"checkpoint": tmp_path / "cell.npz", "inputs": np.full((1, T, 1), 1e4)}
    dead = gradscope.analyze(**given, cell="rnn-relu").full
    assert (dead.log10_norm.median, dead.spectra[0].exact_zeros) == (-np.inf, 1)
    # At a = -(1e4 + h) the slope of elu is exp(a), and h is -1.
    falling = gradscope.analyze(**given, cell="rnn-elu").full
    assert falling.log10_norm.median == pytest.approx(-(T * 1e4 + T - 1) / np.log(10), rel=1e-12)


def test_layers_that_read_each_other_have_such_slopes_between_them_too(tmp_path):
    sizes, rng = (D, N), np.random.default_rng(2)
    shapes = {f"layer{k}.{key}": one for k in (0, 1) for key, one in find("rnn").shapes(N, sizes[k]).items()}
    arrays = {key: 300.0 * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in shapes.items()}
    inputs = rng.normal(size=(1, T, D))
    np.savez(tmp_path / "two.npz", **arrays)
    given = {"map": {name: name for name in arrays}, "reads": "layer1=layer0", "only": "gain"}
    found = gradscope.analyze(checkpoint=tmp_path / "two.npz", cell="rnn", inputs=inputs, **given).full
    members = tuple(Member(find("rnn"), N, sizes[k], k, (((0, D),), (0,))[k]) for k in (0, 1))
    system = System(stacked_cell(members), N, arrays, inputs, np.zeros((1, 2 * N)))
    states = states_of(system, jax.devices()[:1])[0]
    expected = log10_norms(stacked([step_of("rnn")] * 2, N), arrays, inputs[0], states)
    assert expected[-1] < -320
    np.testing.assert_allclose(
        found.by_lag[0], expected, rtol=1e-14, atol=10 * found.spectra[0].log10_norm_error
    )


@pytest.mark.parametrize("cell", few(["rnn", "gru", "lstm"], "rnn"))
def test_shares_are_how_the_gain_answers_to_a_factor_on_a_path(cell, tmp_path):
    arrays, inputs, _ = drawn(cell, 3.0, 1e4)
    np.savez(tmp_path / "cell.npz", **arrays)
    given = {"checkpoint": tmp_path / "cell.npz", "cell": cell, "inputs": inputs}
    found = gradscope.analyze(**given)
    gain = found.full.log10_norm.median
    assert gain < -1000
    assert sum(found.mean_shares.values()) == pytest.approx(1, abs=1e-6)
    nothing = dict.fromkeys(found.mean_shares, 1.0)  # of all paths, so that one program has them all
    for path, share in found.mean_shares.items():
        more, less = (
            gradscope.analyze(**given, scale=nothing | {path: factor}, only="gain").full.log10_norm.median
            for factor in (1.01, 1 / 1.01)
        )
        assert (more - less) / 2 == pytest.approx(T * share * np.log10(1.01), abs=1e-6)
    (back,) = found.returning.values()
    sizes = np.max(back["log10"], axis=0)  # of the largest unit, at every step
    assert -0.5 < sizes[-1] <= 0  # |b_T| = 1
    # They are told to two places.
    assert (sizes[-2::-1] <= found.full.by_lag[0, : T - 1] + 0.0051).all()


def test_what_is_differentiated_in_float64_says_that_it_ends(tmp_path):
    arrays, inputs, _ = drawn("rnn", 3.0, 1e4)
    np.savez(tmp_path / "cell.npz", **arrays)
    given = {"checkpoint": tmp_path / "cell.npz", "cell": "rnn", "inputs": inputs}
    found = gradscope.analyze(**given, adjoint=np.ones(N), sensitivity=True)
    loss = found.loss
    assert loss.log10_norm[0, 0] == pytest.approx(np.log10(N) / 2)
    assert np.isnan(loss.log10_norm[0, 1:]).all()
    assert np.isnan(list(loss.log10_gradients.values())).all()
    assert "slopes below 2e-308" in found.to_dict()["loss"]["unmeasured"]
    assert found.sensitivity is None
    assert any(note.startswith("No sensitivity: the gain hangs on slopes") for note in found.verdict.notes)
    assert "exactly 0" not in str(found)
    assert "nan" not in str(found)


@pytest.mark.parametrize("depth", [1, 2])
def test_no_zero_is_exact_of_slopes_beyond_every_exponent(depth, tmp_path):
    """sech^2 of 1e20 is none: it is exp(-2e20), which nothing here holds, of a layer or below another."""
    arrays, inputs, _ = drawn("rnn", 3.0, 1e20)
    above = {"weight_ih_l1": arrays["R"], "weight_hh_l1": arrays["R"]} if depth > 1 else {}
    np.savez(tmp_path / "layers.npz", weight_ih_l0=arrays["W"], weight_hh_l0=arrays["R"], **above)
    found = gradscope.analyze(checkpoint=tmp_path / "layers.npz", cell="rnn", inputs=inputs)
    assert any("may be a number too small for it" in note for note in found.verdict.notes)
    assert not any("singular values are zero" in reason for reason in found.verdict.reasons)
    told = found.to_dict()
    assert not any(chain.get("exact_zeros", [0])[0] for chain in told["chains"])
    assert "exact_zeros" not in told["chains"][0]
    for text in (str(found), html_page(told)):
        assert "0 from lag 1 on" in text
        assert "exactly 0" not in text
        # Which a heatmap says of what is empty.
        assert "lost in rounding" not in text.replace("zero, lost in rounding or beyond", "")


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "scale"), [(1, 40.0), (2, 1e3)])
def test_top_values_of_saturated_layers_are_those_of_their_steps(depth, scale, tmp_path, monkeypatch):
    """Beside blocks that are made orthonormal slopes drown, of a small value or of a layer below another."""
    rng = np.random.default_rng(1)
    names = [f"weight_{kind}_l{layer}" for layer in range(depth) for kind in ("ih", "hh")]
    np.savez(tmp_path / "layers.npz", **{name: rng.uniform(-0.5, 0.5, (4, 4)) for name in names})
    given = {"checkpoint": tmp_path / "layers.npz", "cell": "rnn", "inputs": scale * rng.normal(size=(6, 4))}
    whole = gradscope.analyze(**given)
    monkeypatch.setattr(batch, "sooner_without_jacobians", lambda problem: True)
    for ours in gradscope.analyze(**given, top=4).chains:
        values = ours.spectra[0].log10_singular_values
        known = whole.chain(ours.name).spectra[0].log10_singular_values[: len(values)]
        np.testing.assert_allclose(values, known, rtol=1e-9, atol=1e-9)


def test_the_light_probe_leaves_such_a_chain_to_the_analysis(tmp_path):
    arrays, inputs, _ = drawn("rnn", 3.0, 1e4)
    np.savez(tmp_path / "cell.npz", **arrays)
    given = {"checkpoint": tmp_path / "cell.npz", "cell": "rnn", "inputs": inputs}
    whole = gradscope.analyze(**given, only="gain").full
    light = analyze_light(Settings(**given), LightProbe()).full
    np.testing.assert_array_equal(light.by_lag, whole.by_lag)
    (row,) = gradscope.sweep(**given, grid={"input_scale": [1.0]}).points
    assert row["log10_norm"] == whole.log10_norm.median
