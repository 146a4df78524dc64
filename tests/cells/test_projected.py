"""LSTM with a projection against its equations: outputs, Jacobian, paths, and its own file format."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.models import log10_values, outputs, read_layer

import gradscope
from gradscope.cells import find
from gradscope.errors import InputError

D, N, P, T = 3, 5, 2, 6


def state_dict():
    # Far from zero, or the smallest values would be lost.
    return layouts.recurrent("lstm", D, N, projection=P, scale=2, seed=5, dtype="float64")


def saved(folder, state):
    return layouts.saved(state, folder / "x.pt")


def sequence():
    return np.random.default_rng(4).standard_normal((T, D))


def run(state, x, start):
    """States (c, h) from 0 to T: h = M (o tanh(c)), Sak, Senior and Beaufays 2014 without peepholes."""
    w, r, m = (state[f"weight_{role}_l0"] for role in ("ih", "hh", "hr"))
    b = state["bias_ih_l0"] + state["bias_hh_l0"]
    states = [start]
    for step in x:
        c, h = states[-1][:N], states[-1][N:]
        i, f, z, o = np.split(w @ step + r @ h + b, 4)
        c = equations.sigmoid(f) * c + equations.sigmoid(i) * np.tanh(z)
        states.append(np.concatenate([c, m @ (equations.sigmoid(o) * np.tanh(c))]))
    return np.array(states)


def test_outputs_follow_the_equations(tmp_path):
    state, x = state_dict(), sequence()
    layer = read_layer(saved(tmp_path, state))
    assert (layer.cell.name, layer.hidden) == ("lstm-projected-2", N)
    expected = run(state, x, np.zeros(N + P))[1:, N:]
    np.testing.assert_allclose(outputs(layer, x), expected, rtol=0, atol=1e-12)


def test_singular_values_are_those_of_complex_steps(tmp_path):
    state, x = state_dict(), sequence()[:3]
    found = gradscope.analyze(checkpoint=saved(tmp_path, state), inputs=x)
    columns = [run(state, x, one)[-1].imag / equations.H for one in equations.nudged(np.zeros(N + P))]
    expected = log10_values(np.stack(columns, axis=1))
    np.testing.assert_allclose(found.full.spectra[0].log10_singular_values, expected, rtol=0, atol=1e-6)
    assert found.full.size == N + P
    np.testing.assert_allclose(sum(found.shares.values()), 1, rtol=0, atol=1e-9)


def test_paths_stay_in_their_components(tmp_path):
    state, x = state_dict(), sequence()
    found = gradscope.analyze(checkpoint=saved(tmp_path, state), inputs=x)
    w, r, m = (state[f"weight_{role}_l0"] for role in ("ih", "hh", "hr"))
    b = state["bias_ih_l0"] + state["bias_hh_l0"]
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
@pytest.mark.usefixtures("paths_alone")
def test_top_values_without_jacobians_are_the_same(tmp_path):
    path, x = saved(tmp_path, state_dict()), sequence()
    every, top = (gradscope.analyze(checkpoint=path, inputs=x, top=top) for top in ("all", 1))
    for chain in every.chains:
        few = top.chain(chain.name)
        assert few.size == chain.size
        expected = chain.spectra[0].log10_singular_values[:1]
        np.testing.assert_allclose(few.spectra[0].log10_singular_values, expected, rtol=0, atol=1e-9)


def test_native_file_and_fresh_cell(tmp_path):
    layer = read_layer(saved(tmp_path, state_dict()))
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
    saved(tmp_path, state_dict() | {"weight_hr_l0": np.zeros(P)})
    with pytest.raises(InputError, match=r"weight_hr has shape \(2,\), expected \(P, H\)"):
        read_layer(tmp_path / "x.pt")
    saved(tmp_path, state_dict() | {"weight_hr_l0": np.zeros((P, N + 1))})
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
