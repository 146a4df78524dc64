"""LSTM with a projection against torch: outputs, Jacobians, paths, stacks, and its own file format."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from oracles.models import both_directions, log10_values, outputs, read_layer

import gradscope
from gradscope.cells import find
from gradscope.cells.cell import Cell, Member
from gradscope.cells.stack import stacked
from gradscope.errors import InputError

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


def test_paths_stay_in_their_components(tmp_path):
    made, x = module(), sequence()
    found = gradscope.analyze(checkpoint=saved(tmp_path, made), inputs=x)
    w, r, m = (getattr(made, f"weight_{role}_l0").detach().numpy() for role in ("ih", "hh", "hr"))
    b = (made.bias_ih_l0 + made.bias_hh_l0).detach().numpy()
    c, h, carousel, output = np.zeros(N), np.zeros(P), np.ones(N), np.eye(P)
    for step in x:
        i, f, z, o = np.split(w @ step + r @ h + b, 4)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        c = f * c + i * np.tanh(z)
        carousel, slope = f * carousel, o * (1 - o) * np.tanh(c)
        output = m @ (slope[:, None] * r[3 * N :]) @ output
        h = m @ (o * np.tanh(c))
    for name, values in {"carousel": np.sort(carousel)[::-1], "R_o": np.linalg.svd(output)[1]}.items():
        mine = found.chain(name).spectra[0].log10_singular_values
        np.testing.assert_allclose(mine, np.log10(values), rtol=0, atol=1e-9)
    sizes = {chain.name: chain.size for chain in found.chains}
    assert sizes == {"full": N + P, "carousel": N, "R_z": P, "R_i": P, "R_f": P, "R_o": P}


@pytest.mark.slow
def test_top_values_without_jacobians_are_the_same(tmp_path):
    path, x = saved(tmp_path, module()), sequence()
    every, top = (gradscope.analyze(checkpoint=path, inputs=x, top=top) for top in ("all", 1))
    for chain in every.chains:
        few = top.chain(chain.name)
        assert few.size == chain.size
        expected = chain.spectra[0].log10_singular_values[:1]
        np.testing.assert_allclose(few.spectra[0].log10_singular_values, expected, rtol=0, atol=1e-9)


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
        values, expected = found.chain(name).spectra[0].log10_singular_values, log10_values(block)
        some = expected > -13  # what is zero, autograd finds to its rounding
        np.testing.assert_allclose(values[some], expected[some], rtol=0, atol=1e-6)
        assert np.isneginf(values[~some]).all()


def test_native_file_and_fresh_cell(tmp_path):
    layer = read_layer(saved(tmp_path, module()))
    np.savez(tmp_path / "x.npz", **layer.parameters)
    again = read_layer(tmp_path / "x.npz")
    assert again.cell is find("lstm-projected-2")
    np.testing.assert_array_equal(outputs(again, sequence()), outputs(layer, sequence()))
    fresh = gradscope.analyze(cell="lstm-projected-7", hidden=16, steps=5)
    assert fresh.full.size == 16 + 7
    assert list(fresh.matrices) == ["R_z", "R_i", "R_f", "R_o"]
    for matrix in fresh.matrices.values():
        assert (matrix["spectral_radius"], len(matrix["singular_values"])) == (None, 7)


def test_what_is_no_projection_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown cell 'lstm-projected-0'"):
        find("lstm-projected-0")
    state = module().state_dict() | {"weight_hr_l0": torch.zeros(P)}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"weight_hr has shape \(2,\), expected \(P, H\)"):
        read_layer(tmp_path / "x.pt")
    torch.save(module().state_dict() | {"weight_hr_l0": torch.zeros(P, N + 1)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"M has shape \(2, 6\), expected \(2, 5\)"):
        read_layer(tmp_path / "x.pt")
    with pytest.raises(InputError, match="view 'cell' is the chain of an LSTM's cell state"):
        gradscope.analyze(cell="lstm-projected-3", view="cell", steps=3)


def test_gates_are_in_range():
    cell = find("lstm-projected-3")
    parameters = {key: np.ones(shape) for key, shape in cell.shapes(4, 2).items()}
    with jax.enable_x64(True):
        gates = cell.gates(parameters, np.zeros(2), np.zeros(7))
    assert {name: gate.shape for name, gate in gates.items()} == dict.fromkeys("ifo", (4,))
    np.testing.assert_allclose(gates["f"], 1 / (1 + np.exp(-1.0)))
