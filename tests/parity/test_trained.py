"""The trained LSTM on its real series, against PyTorch's own Jacobians in high precision."""

from pathlib import Path

import numpy as np
import torch
from oracles.agreement import check_every_value
from safetensors.torch import load_file

import gradscope

FIXTURE = Path(__file__).parents[2] / "examples" / "sunspots"


def torch_jacobians(steps):
    """d(c_t, h_t)/d(c_(t-1), h_(t-1)) by autograd through torch.nn.LSTM, float64, (T, 2n, 2n)."""
    weights = {k[5:]: v.double() for k, v in load_file(FIXTURE / "lstm.safetensors").items() if "lstm." in k}
    n = weights["weight_hh_l0"].shape[1]
    lstm = torch.nn.LSTM(1, n).double()
    lstm.load_state_dict(weights)

    def step(state, x):
        c, h = state.reshape(2, 1, 1, n)
        _, (h, c) = lstm(x.reshape(1, 1, 1), (h, c))
        return torch.cat([c.flatten(), h.flatten()])

    state, found = torch.zeros(2 * n, dtype=torch.float64), []
    for x in torch.tensor(np.load(FIXTURE / "sunspots.npy")[:steps], dtype=torch.float64):
        found.append(torch.autograd.functional.jacobian(lambda s, x=x: step(s, x), state).numpy())
        state = step(state, x).detach()
    return np.array(found)


def test_singular_values_of_the_trained_lstm_are_those_of_torch():
    """The whole series, against the equations by complex steps, is in tests/whole/test_trained.py."""
    steps, decades = 60, 350
    analysis = gradscope.analyze(
        checkpoint=FIXTURE / "lstm.safetensors", inputs=FIXTURE / "sunspots.npy", steps=steps
    )
    check_every_value(analysis, torch_jacobians(steps), decades)
