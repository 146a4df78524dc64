"""LSTM with a projection against torch: outputs, Jacobians and stacks."""

from __future__ import annotations

import numpy as np
import torch
from oracles.models import both_directions, log10_values, read_layer

import gradscope
from gradscope.cells.cell import Cell, Member
from gradscope.cells.stack import stacked

D, N, P, T = 3, 5, 2, 6


def module(layers=1, **options):
    torch.manual_seed(5)
    made = torch.nn.LSTM(D, N, num_layers=layers, proj_size=P, dtype=torch.float64, **options)
    with torch.no_grad():  # far from zero, or the smallest values would be lost
        for parameter in made.parameters():
            parameter.mul_(2)
    return made


def saved(folder, made):
    torch.save(made.state_dict(), folder / "x.pt")
    return folder / "x.pt"


def sequence():
    return np.random.default_rng(4).standard_normal((T, D))


def jacobian(made, x):
    """d(all states at T)/d(those at 0), layer by layer, each (c, h)."""
    count = made.num_layers

    def run(state):
        c, h = torch.split(state.reshape(count, 1, N + P), [N, P], dim=2)
        _, (h, c) = made(torch.from_numpy(x)[:, None], (h.contiguous(), c.contiguous()))
        return torch.cat([c, h], dim=2).reshape(-1)

    start = torch.zeros(count * (N + P), dtype=torch.float64)
    return torch.autograd.functional.jacobian(run, start).numpy()


def test_outputs_of_two_layers_in_both_directions(tmp_path):
    made, x = module(2, bidirectional=True), sequence()
    path = saved(tmp_path, made)
    layers = {name: read_layer(path, layer=name) for name in ("l0", "l0_reverse", "l1", "l1_reverse")}
    assert {layer.cell.name for layer in layers.values()} == {"lstm-projected-2"}
    assert (layers["l1"].hidden, layers["l1"].input_size) == (N, 2 * P)
    below = both_directions(layers["l0"], layers["l0_reverse"], x)
    ours = both_directions(layers["l1"], layers["l1_reverse"], below)
    np.testing.assert_allclose(ours, made(torch.from_numpy(x))[0].detach(), rtol=0, atol=1e-12)


def test_singular_values_are_those_of_autograd(tmp_path):
    made, x = module(), sequence()
    found = gradscope.analyze(checkpoint=saved(tmp_path, made), inputs=x)
    expected = log10_values(jacobian(made, x))
    np.testing.assert_allclose(found.full.spectra[0].log10_singular_values, expected, rtol=0, atol=1e-6)
    assert found.full.size == N + P
    np.testing.assert_allclose(sum(found.shares.values()), 1, rtol=0, atol=1e-9)


def test_a_stack_has_the_jacobian_of_torch(tmp_path):
    made, x = module(2), sequence()[:2]  # over more, autograd's product loses the smallest
    layers = [read_layer(saved(tmp_path, made), layer=f"l{k}") for k in (0, 1)]
    first, second = (layer.cell for layer in layers)
    cell = stacked((Member(first, N, D, 0, ((0, D),)), Member(second, N, P, 1, (0,))))
    arrays = {f"layer{k}.{key}": a for k, layer in enumerate(layers) for key, a in layer.parameters.items()}
    fields = {name: getattr(cell, name) for name in cell.__dataclass_fields__}
    brought = Cell(**{**fields, "initialize": lambda *_: arrays})
    found = gradscope.analyze(cell=brought, hidden=1, inputs=x)
    whole = jacobian(made, x)
    for name, block in {
        "full": whole,
        "layer1": whole[N + P :, N + P :],
        "0->1": whole[N + P :, : N + P],
    }.items():
        (spectrum,) = found.chain(name).spectra
        values, expected = spectrum.log10_singular_values, log10_values(block)
        some = expected > -13  # what is zero, autograd finds to its rounding
        np.testing.assert_allclose(values[some], expected[some], rtol=0, atol=1e-6)
        # Zero, or lost: rounded entries do not say which. No more than these are.
        assert not (values[~some] > -np.inf).any()
        assert spectrum.lost + spectrum.exact_zeros == (~some).sum()
