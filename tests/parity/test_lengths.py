"""Sequences of different length are those that torch packs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.asking import make_problem
from oracles.models import compiled, log10_values, read_layer
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradscope

X = np.random.default_rng(8).standard_normal((4, 7, 3))
# Short, or the framework's product of float64 has no digits left of the smallest values.
SHORT = (4, 1, 3, 2)


def torch_model():
    torch.manual_seed(0)
    module = torch.nn.LSTM(3, 4, bidirectional=True, batch_first=True, dtype=torch.float64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def packed(x):
    return pack_padded_sequence(torch.as_tensor(x), SHORT, batch_first=True, enforce_sorted=False)


def torch_jacobian(module, number, direction):
    """d(c, h)_last / d(c, h)_first of one sequence of the packed batch, by autograd."""

    def run(state):
        start = [torch.zeros(2, len(X), 4, dtype=torch.float64) for _ in range(2)]
        for part, given in zip(start, state.chunk(2), strict=True):
            part[direction, number] = given
        _, (h, c) = module(packed(X), (start[1], start[0]))
        return torch.cat([c[direction, number], h[direction, number]])

    return torch.autograd.functional.jacobian(run, torch.zeros(8, dtype=torch.float64)).numpy()


@pytest.mark.parametrize("direction", [0, 1], ids=["forward", "backward"])
def test_packed_sequences_of_torch(direction, tmp_path):
    module = torch_model()
    torch.save(module.state_dict(), tmp_path / "x.pt")
    name = ("l0", "l0_reverse")[direction]
    layer = read_layer(tmp_path / "x.pt", layer=name)
    problem = make_problem(layer=layer, inputs=X, lengths=SHORT)
    expected = pad_packed_sequence(module(packed(X))[0], batch_first=True)[0].detach().numpy()
    found = gradscope.analyze(checkpoint=tmp_path / "x.pt", layer=name, inputs=X, lengths=SHORT)
    for number, length in enumerate(SHORT):
        system = problem.system
        x = system.inputs[number, :length]
        states = np.asarray(compiled("lstm")(system.parameters, x, system.state[number]))[1:, 4:]
        ours = states[::-1] if direction else states
        theirs = expected[number, :length, 4 * direction : 4 * direction + 4]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
        jacobian = torch_jacobian(module, number, direction)
        ours = found.full.spectra[number].log10_singular_values
        np.testing.assert_allclose(ours, log10_values(jacobian), rtol=0, atol=1e-6)


H, C = np.random.default_rng(12).standard_normal((2, 4, 4, 2))


def stack_of_torch(folder):
    """Two layers of two directions."""
    torch.manual_seed(0)
    module = torch.nn.LSTM(3, 2, 2, bidirectional=True, batch_first=True, dtype=torch.float64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(module.state_dict(), folder / "m.pt")
    return module, folder / "m.pt"


@pytest.mark.slow
def test_packed_sequences_through_a_stack_of_torch(tmp_path):
    """Every layer and direction, each from an initial state of its own, which upper layers see too."""
    module, path = stack_of_torch(tmp_path)

    def jacobian(number, layer):
        def run(state):
            h, c = torch.as_tensor(H).clone(), torch.as_tensor(C).clone()
            c[layer, number], h[layer, number] = state.chunk(2)
            _, (h, c) = module(packed(X[:, :4]), (h, c))
            return torch.cat([c[layer, number], h[layer, number]])

        start = torch.as_tensor(np.concatenate([C[layer, number], H[layer, number]]))
        return torch.autograd.functional.jacobian(run, start).numpy()

    state = {"h0": H, "c0": C}
    analysis = gradscope.analyze(checkpoint=path, inputs=X[:, :4], lengths=SHORT, initial_state=state)
    assert [one.problem["layer"] for one in analysis.layers] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    for layer, one in enumerate(analysis.layers):
        for number, spectrum in enumerate(one.full.spectra):
            expected = log10_values(jacobian(number, layer))
            np.testing.assert_allclose(spectrum.log10_singular_values, expected, rtol=0, atol=1e-6)
