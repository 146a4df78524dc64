"""Repaired files in PyTorch: load_state_dict takes them, and its own Jacobian has the gain that was said."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import gradscope

pytestmark = pytest.mark.parity

N, D, T = 4, 3, 8


class Net(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = getattr(torch.nn, kind)(D, N, batch_first=True)
        self.head = torch.nn.Linear(N, 2)


@pytest.mark.parametrize(("kind", "knob"), [("LSTM", "b_f+=1.5"), ("GRU", "b_z=2"), ("GRU", "R_h=x0.5")])
def test_a_repaired_state_dict_loads_and_has_the_gain(kind, knob, tmp_path):
    torch.manual_seed(0)
    net = Net(kind).double()
    torch.save({"epoch": 3, "state_dict": net.state_dict(), "optimizer": {}}, tmp_path / "m.pt")
    x = np.random.default_rng(0).standard_normal((T, D))
    found = gradscope.repair(
        checkpoint=tmp_path / "m.pt", output=tmp_path / "n.safetensors", knob=knob, inputs=x
    )
    new = Net(kind).double()
    new.load_state_dict(load_file(tmp_path / "n.safetensors"))
    rows = {"b_f+=1.5": (N, 2 * N), "b_z=2": (N, 2 * N), "R_h=x0.5": (2 * N, 3 * N)}[knob]
    old, now = net.state_dict(), new.state_dict()
    if knob == "R_h=x0.5":
        assert torch.equal(
            now["rnn.weight_hh_l0"][rows[0] : rows[1]], 0.5 * old["rnn.weight_hh_l0"][rows[0] : rows[1]]
        )
    else:
        b = now["rnn.bias_ih_l0"] + now["rnn.bias_hh_l0"]
        was = old["rnn.bias_ih_l0"] + old["rnn.bias_hh_l0"]
        expected = was + 1.5 if kind == "LSTM" else torch.full_like(was, 2.0)
        assert torch.allclose(b[rows[0] : rows[1]], expected[rows[0] : rows[1]])

    def last(state):
        h = state[-N:].reshape(1, 1, N)
        start = (h, state[:N].reshape(1, 1, N)) if kind == "LSTM" else h
        _, end = new.rnn(torch.tensor(x)[None], start)
        return torch.cat([end[1].flatten(), end[0].flatten()]) if kind == "LSTM" else end.flatten()

    size = 2 * N if kind == "LSTM" else N
    jacobian = torch.autograd.functional.jacobian(last, torch.zeros(size, dtype=torch.float64))
    gain = float(torch.linalg.matrix_norm(jacobian, 2).log10())
    assert found.after.full.log10_norm.median == pytest.approx(gain, abs=1e-9)
