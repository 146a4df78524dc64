"""The trained LSTM on its real series, against Jacobians by complex steps, in high precision."""

from pathlib import Path

import numpy as np
import pytest
from oracles import equations, layouts
from oracles.agreement import check_every_value
from safetensors.numpy import load_file

import gradscope

FIXTURE = Path(__file__).parents[2] / "examples" / "sunspots"


def jacobians(steps):
    """d(c_t, h_t)/d(c_(t-1), h_(t-1)) by complex steps over the equations of an LSTM, (T, 2n, 2n)."""
    state = {k[5:]: v for k, v in load_file(FIXTURE / "lstm.safetensors").items() if "lstm." in k}
    p = layouts.equations_of("lstm", state)
    state, found = np.zeros(2 * len(p["b_z"])), []
    for x in np.load(FIXTURE / "sunspots.npy")[:steps].astype(float):
        found.append(equations.jacobian("lstm", p, x, state))
        state = equations.advance("lstm", p, x, state)
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "decades"), [(60, 350), pytest.param(309, 1250, marks=pytest.mark.slow)])
def test_singular_values_of_the_trained_lstm(steps, decades):
    analysis = gradscope.analyze(
        checkpoint=FIXTURE / "lstm.safetensors", inputs=FIXTURE / "sunspots.npy", steps=steps
    )
    check_every_value(analysis, jacobians(steps), decades)


@pytest.mark.slow
def test_what_training_did():
    """The figures that the example's README quotes."""
    inputs = np.load(FIXTURE / "sunspots.npy")
    before = gradscope.analyze(checkpoint=FIXTURE / "untrained.safetensors", inputs=inputs)
    after = gradscope.analyze(checkpoint=FIXTURE / "lstm.safetensors", inputs=inputs)
    assert (before.full.horizon.median, after.full.horizon.median) == (20, 89)
    assert (before.full.rate.median, after.full.rate.median) == pytest.approx((-0.370, -0.097), abs=5e-4)
    assert after.chain("carousel").horizon.median == 43
    assert 10 ** after.full.by_lag[0, [10, 21]] == pytest.approx([1.2, 0.31], abs=0.03)
    shares = before.mean_shares | {f"{k} after": v for k, v in after.mean_shares.items()}
    quoted = {"carousel": 0.80, "R_z": 0.19, "carousel after": 0.48, "R_z after": 0.43}
    assert {k: round(shares[k], 2) for k in quoted} == quoted
