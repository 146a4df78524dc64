"""All layers of a file at once are together torch's own Jacobian, and a loss has the gradients of torch."""

from __future__ import annotations

from functools import partial

import jsonschema
import numpy as np
import pytest
import torch
from oracles.agreement import check_stack
from oracles.reference import reference

import gradscope

D, N, T = 3, 4, 6
KINDS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


def saved(folder, module, name="model.pt"):
    torch.save(module.state_dict(), folder / name)
    return folder / name


def made(kind, layers=2, **options):
    torch.manual_seed(7)
    module = KINDS[kind](D, N, num_layers=layers, dtype=torch.float64, **options)
    with torch.no_grad():  # far from zero, so that every block is seen
        for parameter in module.parameters():
            parameter.mul_(1.7)
    return module


def sequences(batch=1, features=D, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, T, features))


def columns(state, like):
    """States of all layers, layer after layer, each (c, h) or h, as torch's (layers, n) of each part."""
    parts = state.reshape(like, -1, N)
    return tuple(parts[:, k, None].contiguous() for k in range(parts.shape[1]))


def whole_jacobian(module, x):
    """d(states of all layers at T)/d(those at 0) by autograd, in the order layer by layer, (c, h)."""
    count, parts = module.num_layers, 2 if isinstance(module, torch.nn.LSTM) else 1

    def run(state):
        given = columns(state, count)  # (c, h) or (h,)
        last = module(torch.from_numpy(x)[:, None], given[::-1] if parts == 2 else given[0])[1]
        ends = last[::-1] if parts == 2 else (last,)
        return torch.stack([end[:, 0] for end in ends], dim=1).reshape(-1)

    return torch.autograd.functional.jacobian(run, torch.zeros(count * parts * N, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "layers"), [("lstm", 2), ("gru", 2), ("rnn", 3)])
def test_a_stack_has_the_jacobian_of_torch(kind, layers, tmp_path):
    module, x = made(kind, layers), sequences()
    path = saved(tmp_path, module)
    analysis = gradscope.analyze(checkpoint=path, inputs=x, cell="rnn" if kind == "rnn" else None)
    check_stack(analysis, whole_jacobian(module, x[0]).numpy(), layers)


def direction_jacobians(module, x, backward):
    """(T, m, m) of the two layers of one direction, what the other direction puts out held as it is."""
    side = "_reverse" if backward else ""
    first, second = torch.nn.LSTMCell(D, N).double(), torch.nn.LSTMCell(2 * N, N).double()
    for k, cell in enumerate((first, second)):
        own = {name: getattr(module, f"{name}_l{k}{side}") for name in dict(cell.named_parameters())}
        cell.load_state_dict(own)
    one = torch.nn.LSTM(D, N, bidirectional=True, dtype=torch.float64)
    one.load_state_dict({k: v for k, v in module.state_dict().items() if "_l0" in k})
    with torch.no_grad():
        other = one(torch.from_numpy(x)[:, None])[0][:, 0, :N] if backward else None
        other = one(torch.from_numpy(x)[:, None])[0][:, 0, N:] if other is None else other

    def step(t, state):
        c0, h0, c1, h1 = state.reshape(4, 1, N)
        h0, c0 = first(torch.from_numpy(x[t : t + 1]), (h0, c0))
        both = (other[t : t + 1], h0) if backward else (h0, other[t : t + 1])
        h1, c1 = second(torch.cat(both, dim=1), (h1, c1))
        return torch.cat([c0, h0, c1, h1]).reshape(-1)

    found, state = [], torch.zeros(4 * N, dtype=torch.float64)
    for t in reversed(range(T)) if backward else range(T):
        found.append(torch.autograd.functional.jacobian(partial(step, t), state).numpy())
        state = step(t, state).detach()
    return np.array(found)


def test_two_directions_stand_side_by_side(tmp_path):
    module, x = made("lstm", bidirectional=True), sequences()
    analysis = gradscope.analyze(checkpoint=saved(tmp_path, module), inputs=x)
    steps = [direction_jacobians(module, x[0], backward) for backward in (False, True)]
    # Multiplied in high precision: a product in float64 means nothing below 1e-13.
    expected = np.sort(np.concatenate([np.array(reference(one).log10(), float) for one in steps]))[::-1]
    spectrum = analysis.full.spectra[0]
    np.testing.assert_allclose(spectrum.log10_singular_values, expected, rtol=0, atol=1e-6)
    assert [layer.problem["layer"] for layer in analysis.layers] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert list(analysis.shares) == ["layer0", "layer1", "layer2", "layer3", "0->2", "1->3"]
    np.testing.assert_allclose(sum(analysis.shares.values()), 1, rtol=0, atol=1e-9)
    # The top vectors are of the whole, block diagonal Jacobian, the forward layers first.
    top = np.zeros(8 * N)
    sides = [np.linalg.multi_dot(one[::-1]) for one in steps]
    top[: 4 * N], top[4 * N :] = sides[0] @ spectrum.right[: 4 * N], sides[1] @ spectrum.right[4 * N :]
    np.testing.assert_allclose(top, 10 ** spectrum.log10_singular_values[0] * spectrum.left, atol=1e-12)
    assert "side by side" in analysis.verdict.reasons[-1]


def test_a_loss_of_a_stack_has_the_gradients_of_torch(tmp_path):
    module, x = made("lstm", batch_first=True), sequences(2)
    head = torch.nn.Linear(N, 2, dtype=torch.float64)
    path = saved(tmp_path, torch.nn.ModuleDict({"rnn": module, "fc": head}))
    loss = gradscope.analyze(checkpoint=path, inputs=x, readout="fc").loss
    states = torch.zeros(2, 2, N, dtype=torch.float64, requires_grad=True)
    cells = torch.zeros_like(states, requires_grad=True)
    head(module(torch.from_numpy(x), (states, cells))[0][:, -1]).sum().backward()
    for k in range(2):
        for ours, theirs in (("R", "weight_hh"), ("W", "weight_ih")):
            gradients = getattr(module, f"{theirs}_l{k}").grad.chunk(4)
            for gate, gradient in zip("ifzo", gradients, strict=True):
                expected = np.log10(torch.linalg.norm(gradient).item())
                assert loss.log10_gradients[f"layer{k}.{ours}_{gate}"] == pytest.approx(expected, abs=1e-9)
    at_start = torch.cat([states.grad, cells.grad], dim=2).square().sum(dim=(0, 2)).sqrt()
    np.testing.assert_allclose(loss.log10_norm[:, -1], np.log10(at_start.numpy()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_loss_of_two_directions_is_followed_back_in_each(layers, tmp_path):
    module, x = made("lstm", layers, batch_first=True, bidirectional=True), sequences(2)
    head = torch.nn.Linear(2 * N, 3, dtype=torch.float64)
    path = saved(tmp_path, torch.nn.ModuleDict({"rnn": module, "fc": head}))
    head(module(torch.from_numpy(x))[0]).sum().backward()
    analysis = gradscope.analyze(checkpoint=path, inputs=x, readout="fc", readout_at="every")
    adjoint = np.broadcast_to(head.weight.detach().numpy().sum(axis=0), (2, T, 2 * N))
    again = gradscope.analyze(checkpoint=path, inputs=x, adjoint=adjoint)
    tops = [k for k, layer in enumerate(analysis.layers) if layer.loss]
    assert tops == [2 * layers - 2, 2 * layers - 1]
    assert analysis.loss is None
    for k, side in zip(tops, ("", "_reverse"), strict=True):
        gradients = getattr(module, f"weight_hh_l{layers - 1}{side}").grad.chunk(4)
        for gate, gradient in zip("ifzo", gradients, strict=True):
            expected = pytest.approx(np.log10(torch.linalg.norm(gradient).item()), abs=1e-9)
            assert analysis.layers[k].loss.log10_gradients[f"R_{gate}"] == expected
            assert again.layers[k].loss.log10_gradients[f"R_{gate}"] == expected
    jsonschema.validate(analysis.to_dict(), gradscope.schema())
    with pytest.raises(gradscope.InputError, match="the first of the other: say --readout-at every"):
        gradscope.analyze(checkpoint=path, inputs=x, readout="fc")
    with pytest.raises(gradscope.InputError, match=r"adjoint has shape \(8,\), expected \(2, 6, 8\)"):
        gradscope.analyze(checkpoint=path, inputs=x, adjoint=np.ones(8))
