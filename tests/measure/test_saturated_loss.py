"""What a loss sends back through units that saturate, against arithmetic of any exponent."""

import jax
import numpy as np
import pytest
from oracles.any_exponent import log10_of_loss, step_of
from oracles.few import few

import gradscope
from gradscope.cells import find
from gradscope.linearize.system import System
from gradscope.linearize.trajectory import states_of
from gradscope.measure import adjoints

N, D, T = 3, 2, 10
# States that are 1 in float64, whose rest beside it decides; and slopes that fall below what it holds.
NEAR_1 = {"gru": (30.0, 3.0, 1), "lstm-cifg": (30.0, 3.0, 2)}
BELOW = {"lstm": (30.0, 30.0, 2), "gru-reset-before": (300.0, 3.0, 2), "gru": (300.0, 3.0, 1)}


def network(cell, weights, size, seed):
    """Weights, inputs, and what the oracle says of a loss of derivatives 1 by the last output."""
    rng, found = np.random.default_rng(seed), find(cell)
    shapes = found.shapes(N, D).items()
    arrays = {key: weights * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in shapes}
    inputs = size * rng.normal(size=(1, T, D))
    m = found.size(N)
    states = states_of(System(found, N, arrays, inputs, np.zeros((1, m))), jax.devices()[:1])[0]
    seed = np.concatenate([np.zeros(m - N), np.ones(N)])
    return arrays, inputs, log10_of_loss(step_of(cell), arrays, inputs[0], states, seed)


def loss_of(cell, arrays, inputs, path):
    """What gradscope says of it."""
    np.savez(path / "cell.npz", **arrays)
    given = {"checkpoint": path / "cell.npz", "cell": cell, "inputs": inputs}
    return gradscope.analyze(**given, adjoint=np.ones(N)).loss


@pytest.mark.parametrize("cell", few(NEAR_1, "gru"))
def test_states_that_are_1_in_float64_have_what_is_left_beside_it(cell, tmp_path, monkeypatch):
    arrays, inputs, (norms, deltas, whole) = network(cell, *NEAR_1[cell])
    monkeypatch.setattr(adjoints, "SEGMENT_BYTES", 1)  # what is left goes from segment to segment
    loss = loss_of(cell, arrays, inputs, tmp_path)
    assert loss.unmeasured is None
    np.testing.assert_allclose(loss.log10_norm[0], norms, rtol=1e-12, atol=1e-10)
    for bias, each in deltas.items():
        gate = "d" + bias.removeprefix("b_")
        np.testing.assert_allclose(loss.log10_deltas[gate][0], each, rtol=1e-12, atol=1e-10)
    for name, norm in whole.items():
        assert loss.log10_gradients[name] == pytest.approx(norm, abs=1e-9), name


@pytest.mark.parametrize("cell", few(BELOW, "lstm"))
def test_what_the_dtype_does_not_hold_is_told_or_said_to_be_missing(cell, tmp_path):
    arrays, inputs, (norms, deltas, whole) = network(cell, *BELOW[cell])
    loss = loss_of(cell, arrays, inputs, tmp_path)
    assert "which float64 takes as 0" in loss.unmeasured
    told = [(loss.log10_norm[0], norms)]
    told += [(loss.log10_deltas["d" + bias.removeprefix("b_")][0], each) for bias, each in deltas.items()]
    told += [([loss.log10_gradients[name]], [norm]) for name, norm in whole.items()]
    lost = 0
    for ours, true in told:
        known = ~np.isnan(ours)
        lost += int((~known).sum())
        np.testing.assert_allclose(np.array(ours)[known], np.array(true)[known], rtol=1e-12, atol=1e-9)
    assert lost
