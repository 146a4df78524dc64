"""What a loss sends back through units that saturate, against arithmetic of any exponent."""

import jax
import numpy as np
import pytest
from oracles.any_exponent import elasticity, log10_of_loss, stacked, step_of
from oracles.drawn import D, N, T, drawn
from oracles.few import few

import gradscope
from gradscope.cells import find
from gradscope.cells.cell import Member
from gradscope.cells.stack import stacked as stacked_cell
from gradscope.linearize.system import System, cast
from gradscope.linearize.trajectory import Spread, states_of
from gradscope.measure import adjoints


def few_of(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


# States that are 1 in float64, whose rest beside it decides; and slopes that fall below what it holds.
NEAR_1 = {"gru": (30.0, 3.0, 1), "lstm-cifg": (30.0, 3.0, 2)}
# In "lstm-nig" f c and z cancel to 0 as well.
BELOW = {
    "lstm-nig": (30.0, 3.0, 4),
    "lstm": (30.0, 30.0, 2),
    "gru-reset-before": (300.0, 3.0, 2),
    "gru": (300.0, 3.0, 1),
}


def network(cell, weights, size, seed):
    """Weights, inputs, and what the oracle says of a loss of derivatives 1 by the last output."""
    arrays, inputs, states = drawn(cell, weights, size, seed)
    seed = np.concatenate([np.zeros(find(cell).size(N) - N), np.ones(N)])
    return arrays, inputs, log10_of_loss(step_of(cell), arrays, inputs[0], states, seed)


def loss_of(cell, arrays, inputs, path, **more):
    """What gradscope says of it."""
    np.savez(path / "cell.npz", **arrays)
    given = {"checkpoint": path / "cell.npz", "cell": cell, "inputs": inputs}
    return gradscope.analyze(**given, adjoint=np.ones(N), **more).loss


@pytest.mark.parametrize("cell", few(NEAR_1, "gru"))
def test_states_that_are_1_in_float64_have_what_is_left_beside_it(cell, tmp_path, monkeypatch):
    arrays, inputs, (norms, deltas, left) = network(cell, *NEAR_1[cell])
    monkeypatch.setattr(adjoints, "SEGMENT_BYTES", 1)  # what is left goes from segment to segment
    loss = loss_of(cell, arrays, inputs, tmp_path)
    assert loss.unmeasured is None
    np.testing.assert_allclose(loss.log10_norm[0], norms, rtol=1e-12, atol=1e-10)
    for bias, each in deltas.items():
        gate = "d" + bias.removeprefix("b_")
        np.testing.assert_allclose(loss.log10_deltas[gate][0], each, rtol=1e-12, atol=1e-10)
        off = np.abs(loss.log10_deltas[gate][0] - each)
        assert (off <= loss.log10_delta_errors[gate][0]).all()
        assert (loss.log10_delta_errors[gate] < 1e-9).all()
    for name, (norm, *_) in left.items():
        assert loss.log10_gradients[name] == pytest.approx(norm, abs=1e-9), name
        assert abs(loss.log10_gradients[name] - norm) <= loss.log10_gradient_errors[name] < 1e-9, name


@pytest.mark.parametrize("cell", few(BELOW, "lstm-nig"))
def test_what_the_dtype_does_not_hold_is_told_or_said_to_be_missing(cell, tmp_path):
    arrays, inputs, (norms, deltas, left) = network(cell, *BELOW[cell])
    loss = loss_of(cell, arrays, inputs, tmp_path)
    assert "which float64 takes as 0" in loss.unmeasured
    told = [(loss.log10_norm[0], norms)]
    told += [(loss.log10_deltas["d" + bias.removeprefix("b_")][0], each) for bias, each in deltas.items()]
    told += [([loss.log10_gradients[name]], [norm]) for name, (norm, *_) in left.items()]
    lost = 0
    for ours, true in told:
        known = ~np.isnan(ours)
        lost += int((~known).sum())
        np.testing.assert_allclose(np.array(ours)[known], np.array(true)[known], rtol=1e-12, atol=1e-9)
    assert lost


@pytest.mark.parametrize("cell", few(["gru", "lstm-nig", "gru-reset-before"], "gru"))
def test_layers_of_a_stack_have_it_too(cell):
    """The lower layer's states come near levels; the other reads them, and puts out what the loss is of."""
    found, rng = find(cell), np.random.default_rng(4)
    weights = [30.0, 1.0]
    layers = [
        {key: w * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in found.shapes(N, d).items()}
        for w, d in zip(weights, (D, N), strict=True)
    ]
    arrays = {f"layer{k}.{key}": array for k, own in enumerate(layers) for key, array in own.items()}
    inputs = 3.0 * rng.normal(size=(1, T, D))
    members = tuple(Member(found, N, (D, N)[k], k, (((0, D),), (0,))[k]) for k in range(2))
    system = System(stacked_cell(members), N, arrays, inputs, np.zeros((1, 2 * found.size(N))))
    step = stacked([step_of(cell)] * 2, N)
    states = states_of(system, jax.devices()[:1])[0]
    seed = np.concatenate([np.zeros(system.size - N), np.ones(N)])
    norms, _, left = log10_of_loss(step, arrays, inputs[0], states, seed)
    with system.running():
        placed = Spread(tuple(jax.devices()[:1])).replicate(cast(arrays, "float64"))
        one = adjoints.Adjoints(
            system, system.cell.paths, np.ones((1, N)), jax.devices()[0], placed, near=True
        )
        total = adjoints.Total(arrays)
        ours = one.back(total, lambda _: None).log10_norm[::-1]
    np.testing.assert_allclose(ours, norms, rtol=1e-12, atol=1e-9)
    for name, (norm, *_) in left.items():
        array = total.arrays[name]
        size = np.abs(array).max()
        found_ = np.log10(np.linalg.norm(array / size) * size) + total.exponent * np.log10(2.0)
        assert found_ == pytest.approx(norm, abs=1e-9), name


@pytest.mark.slow
def test_so_has_how_the_gain_changes(tmp_path):
    """There is no gain without what states have beside levels."""
    cell = "gru"
    arrays, inputs, _ = drawn(cell, 30.0, 3.0)
    np.savez(tmp_path / "cell.npz", **arrays)
    given = {"checkpoint": tmp_path / "cell.npz", "cell": cell, "inputs": inputs}
    found = gradscope.analyze(**given, only="paths", sensitivity=True).sensitivity
    assert found.unmeasured is None
    start = np.zeros(find(cell).size(N))
    for name in arrays:
        expected = elasticity(step_of(cell), arrays, inputs[0], start, name)
        # Of the oracle's digits a hundred are left.
        off = abs(found.elasticity[name] - expected)
        assert off <= found.errors["total"][name]["elasticity"] + 1e-100 < 1e-9, name


@pytest.mark.parametrize(
    ("cell", "weights", "size", "seed"),
    [("gru", 30.0, 30.0, 1), few_of("gru-reset-before", 3.0, 300.0, 1), few_of("gru", 3.0, 300.0, 1)],
)
def test_terms_that_cancel_are_in_the_estimated_errors(cell, weights, size, seed, tmp_path):
    """dL/db_z is a sum whose terms are 1e33 times as large: of it rounding leaves nothing."""
    arrays, inputs, (norms, deltas, left) = network(cell, weights, size, seed)
    loss = loss_of(cell, arrays, inputs, tmp_path)
    assert np.isnan(loss.log10_gradients["b_z"])
    for bias, each in deltas.items():
        ours, error = (
            of["d" + bias.removeprefix("b_")][0] for of in (loss.log10_deltas, loss.log10_delta_errors)
        )
        there = np.isfinite(ours)
        assert (np.abs(ours[there] - each[there]) <= error[there]).all(), bias
        assert (error[there] < 1).all()
    assert "rounding leaves no digit of" in loss.unmeasured
    for name, (norm, *_) in left.items():
        ours, error = loss.log10_gradients[name], loss.log10_gradient_errors[name]
        assert np.isnan(ours) or abs(ours - norm) <= error, name
    known = ~np.isnan(loss.log10_norm[0])
    off = np.abs(loss.log10_norm[0] - norms)[known]
    assert (off <= loss.log10_norm_error[0][known]).all()


@pytest.mark.parametrize("cell", few(["lstm", "gru", "rnn"]))
def test_the_bias_of_truncation_has_an_error(cell, tmp_path):
    arrays, inputs, (_, _, left) = network(cell, 1.0, 1.0, 1)
    loss = loss_of(cell, arrays, inputs, tmp_path, tbptt=4)
    recurrent = [10.0**each for name, each in left.items() if name.startswith("R")]
    expected = np.sqrt(np.sum(np.square(recurrent), axis=0))
    bias, error = loss.tbptt.at("R")[0], loss.tbptt.error_of("R")
    assert abs(bias - expected[4] / expected[0]) <= error < 1e-12
    assert loss.to_dict(np.arange(1, T + 1))["tbptt"]["bias_error"] == error
    off = np.abs(loss.tbptt.bias["R"][:-1] - expected[1:] / expected[0])
    assert (off <= loss.tbptt.bias_error["R"]).all()
