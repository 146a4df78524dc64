"""The forward pass by segment is that of PyTorch."""

import math

import jax
import numpy as np
import pytest
import torch

from gradscope.cells import find
from gradscope.linearize.system import System, precise
from gradscope.linearize.trajectory import Segments, Spread, Trajectory

N, D, T, B = 5, 3, 23, 3


def torch_lstm():
    torch.manual_seed(0)
    model = torch.nn.LSTM(D, N, batch_first=True).double()
    parameters = {}
    for kind, name in (("W", "weight_ih_l0"), ("R", "weight_hh_l0")):
        chunks = getattr(model, name).detach().numpy().reshape(4, N, -1)
        parameters |= {f"{kind}_{gate}": chunk for gate, chunk in zip("ifzo", chunks, strict=True)}
    biases = (model.bias_ih_l0 + model.bias_hh_l0).detach().numpy().reshape(4, N)
    return model, parameters | {f"b_{gate}": bias for gate, bias in zip("ifzo", biases, strict=True)}


@pytest.mark.parametrize("length", [1, 7, 23, 32])
def test_starts_are_the_states_that_torch_has_there(length):
    model, parameters = torch_lstm()
    rng = np.random.default_rng(0)
    inputs, state = rng.normal(size=(B, T, D)), rng.normal(size=(B, 2 * N))
    segments = Segments(T, length, math.ceil(T / length))
    with precise("float64"):
        spread = Spread((jax.devices()[0],))
        trajectory = Trajectory(System(find("lstm"), N, parameters, inputs, state), segments, spread)
        for i in reversed(range(segments.count)):
            here = i * length
            c, h = (torch.tensor(part)[None] for part in np.split(state, 2, axis=1))
            if here:
                _, (h, c) = model(torch.tensor(inputs[:, :here]), (h.contiguous(), c.contiguous()))
            expected = torch.cat([c[0], h[0]], dim=1).detach().numpy()
            np.testing.assert_allclose(trajectory.start(i), expected, rtol=1e-12, atol=1e-14)
            shown = np.asarray(trajectory.inputs(i))
            assert shown.shape == (B, length, D)
            valid = trajectory.valid(i)
            np.testing.assert_array_equal(shown[:, :valid], inputs[:, here : here + valid])
            assert not shown[:, valid:].any()
