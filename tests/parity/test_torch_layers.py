"""Layers from PyTorch's state dicts: the same outputs as torch's own."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from oracles.models import read_layer

from gradscope.errors import InputError
from gradscope.linearize.trajectory import forward

HIDDEN, INPUT, STEPS = 5, 3, 7


def outputs(layer, x):
    """h_1 ... h_T of a layer on x (T, d): the last component of the state, in float64."""
    with jax.enable_x64(True):
        states = np.asarray(forward(layer.cell, layer.parameters, jax.numpy.asarray(x), layer.state))
    return states[1:, -layer.hidden :]


TORCH = {
    "lstm": (torch.nn.LSTM, torch.nn.LSTMCell, {}),
    "gru": (torch.nn.GRU, torch.nn.GRUCell, {}),
    "rnn": (torch.nn.RNN, torch.nn.RNNCell, {}),
    "rnn-relu": (torch.nn.RNN, torch.nn.RNNCell, {"nonlinearity": "relu"}),
}


class Model(torch.nn.Module):
    """A layer under a name, with other tensors around it, some of them no numbers for us."""

    def __init__(self, layer):
        super().__init__()
        self.encoder = torch.nn.ModuleDict({"recurrent": layer})
        self.fc = torch.nn.Linear(HIDDEN, 2)
        self.norm = torch.nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf))
        self.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))


def saved(folder, module):
    path = folder / "model.safetensors"
    safetensors.torch.save_file(module.state_dict(), path)
    return path


def given_cell(name):
    """Torch's file does not say which of the two RNNs it is; the rest needs no --cell."""
    return name if name.startswith("rnn") else None


def sequence():
    return torch.as_tensor(np.random.default_rng(3).standard_normal((STEPS, INPUT)))


def run_cell(cell, x):
    state, hs = None, []
    for step in x:
        state = cell(step, state)
        hs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(hs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", TORCH)
def test_torch_layer_gives_torch_outputs(name, bias, tmp_path):
    torch.manual_seed(0)
    module = TORCH[name][0](INPUT, HIDDEN, bias=bias, dtype=torch.float64, **TORCH[name][2])
    expected = module(sequence())[0].detach().numpy()
    layer = read_layer(saved(tmp_path, module), given_cell(name))
    assert (layer.cell.name, layer.name, layer.hidden, layer.input_size) == (name, "", HIDDEN, INPUT)
    np.testing.assert_allclose(outputs(layer, sequence().numpy()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TORCH)
def test_torch_layer_inside_a_model(name, tmp_path):
    torch.manual_seed(1)
    module = TORCH[name][0](INPUT, HIDDEN, dtype=torch.float64, **TORCH[name][2])
    expected = module(sequence())[0].detach().numpy()
    layer = read_layer(saved(tmp_path, Model(module)), name)
    assert layer.name == "encoder.recurrent"
    np.testing.assert_allclose(outputs(layer, sequence().numpy()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", TORCH)
def test_torch_cell_gives_torch_outputs(name, bias, tmp_path):
    torch.manual_seed(2)
    cell = TORCH[name][1](INPUT, HIDDEN, bias=bias, dtype=torch.float64, **TORCH[name][2])
    expected = run_cell(cell, sequence()).detach().numpy()
    layer = read_layer(saved(tmp_path, cell), given_cell(name))
    np.testing.assert_allclose(outputs(layer, sequence().numpy()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TORCH)
def test_torch_layer_in_lower_precision_is_read_exactly(name, dtype, tmp_path):
    torch.manual_seed(3)
    module = TORCH[name][0](INPUT, HIDDEN, dtype=dtype, **TORCH[name][2])
    path = saved(tmp_path, module)
    expected = module.double()(sequence())[0].detach().numpy()
    layer = read_layer(path, given_cell(name))
    np.testing.assert_allclose(outputs(layer, sequence().numpy()), expected, rtol=0, atol=1e-12)


def test_one_unit_with_one_input(tmp_path):
    module = torch.nn.LSTM(1, 1, dtype=torch.float64)
    layer = read_layer(saved(tmp_path, module))
    expected = module(sequence()[:, :1])[0].detach().numpy()
    np.testing.assert_allclose(outputs(layer, sequence().numpy()[:, :1]), expected, rtol=0, atol=1e-12)


def test_spectral_norm_is_no_plain_layer(tmp_path):
    module = torch.nn.utils.parametrizations.spectral_norm(torch.nn.LSTM(INPUT, HIDDEN), "weight_hh_l0")
    with pytest.raises(InputError, match=r"keeps weight_hh_l0 as parametrizations\.weight_hh_l0"):
        read_layer(saved(tmp_path, module))
