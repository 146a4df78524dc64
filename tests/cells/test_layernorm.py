"""The LSTM with layer normalisation against its equations in NumPy, and from the names of a PyTorch file."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from oracles.driving import D, N, close, path_jacobians
from oracles.equations import H, nudged, sigmoid
from safetensors.numpy import save_file

import gradscope
from gradscope import checkpoints
from gradscope.cells import NORMED, find
from gradscope.errors import InputError

ORDER = "ifzo"


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def norm(v, weight, bias=0.0, epsilon=1e-5):
    """As documented for torch.nn.LayerNorm."""
    return (v - v.mean()) / np.sqrt(((v - v.mean()) ** 2).mean() + epsilon) * weight + bias


def weights(seed=3):
    """Of an LSTMCell, of a LayerNorm on each of its products, and of one on c."""
    rng = np.random.default_rng(seed)
    shapes = {"weight_ih": (4 * N, D), "weight_hh": (4 * N, N), "bias_ih": (4 * N,), "bias_hh": (4 * N,)}
    shapes |= {f"ln_{of}.{role}": (4 * N,) for of in ("ih", "hh") for role in ("weight", "bias")}
    shapes |= {f"ln_ho.{role}": (N,) for role in ("weight", "bias")}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def step(p, x, copies, variant):
    """The equations on a file's arrays; copies : {path: (c, h)}."""
    back = [p["weight_hh"][k * N : (k + 1) * N] @ copies[f"R_{g}"][N:] for k, g in enumerate(ORDER)]
    pre = norm(p["weight_ih"] @ x + p["bias_ih"], p["ln_ih.weight"], p["ln_ih.bias"])
    pre = pre + norm(np.concatenate(back) + p["bias_hh"], p["ln_hh.weight"], p["ln_hh.bias"])
    i, f, z, o = np.split(pre, 4)
    c = sigmoid(f) * copies["carousel"][:N] + sigmoid(i) * np.tanh(z)
    out = c if variant.endswith("gates") else norm(c, p["ln_ho.weight"], p["ln_ho.bias"])
    return np.concatenate([out if variant.endswith("carried") else c, sigmoid(o) * np.tanh(out)])


def file_of(variant, path):
    arrays = weights()
    kept = {k: v for k, v in arrays.items() if "ln_ho" not in k or not variant.endswith("gates")}
    save_file({f"cell.{name}": array for name, array in kept.items()}, path)
    return path, arrays


@pytest.mark.parametrize("variant", NORMED)
def test_cell_and_every_path_follow_the_equations(variant, tmp_path):
    path, arrays = file_of(variant, tmp_path / "x.safetensors")
    (layer,) = checkpoints.read(path, variant).layers
    assert layer.cell is find(variant)
    assert "epsilon is torch's 1e-5" in layer.assumed[-1]
    rng = np.random.default_rng(5)
    x, state = rng.normal(size=D), rng.normal(size=2 * N)
    copies = dict.fromkeys(layer.cell.paths, state)
    close(layer.cell.advance(layer.parameters, x, state), step(arrays, x, copies, variant))
    ours = path_jacobians(layer.cell, layer.parameters, x, state)
    for name in copies:
        theirs = [step(arrays, x, copies | {name: one}, variant).imag / H for one in nudged(state)]
        assert np.abs(theirs).max() > 1e-3
        close(ours[name], np.stack(theirs, axis=1))
    gates = layer.cell.gates(layer.parameters, x, state)
    assert set(gates) == {"i", "f", "o"}


def test_chain_and_loss_over_a_sequence(tmp_path):
    """The gain, and what a loss at the last step sends back, in one go over all steps."""
    path, arrays = file_of("lstm-layernorm", tmp_path / "x.safetensors")
    xs = np.random.default_rng(6).normal(size=(4, D))

    def run(p, state):
        for x in xs:
            state = step(p, x, dict.fromkeys(find("lstm-layernorm").paths, state), "lstm-layernorm")
        return state

    columns = [run(arrays, one).imag / H for one in nudged(np.zeros(2 * N))]
    adjoint = np.random.default_rng(7).normal(size=(4, N)) * np.eye(4)[-1][:, None]
    found = gradscope.analyze(checkpoint=path, cell="lstm-layernorm", inputs=xs, adjoint=adjoint)
    expected = np.log10(np.linalg.norm(np.stack(columns, axis=1), 2))
    assert found.full.spectra[0].log10_singular_values[0] == pytest.approx(expected, abs=1e-10)
    rows = arrays["weight_hh"][N : 2 * N]  # of the forget gate
    gradient = []
    for one in nudged(rows):
        matrix = arrays["weight_hh"].astype(complex)
        matrix[N : 2 * N] = one
        gradient.append(
            adjoint[-1] @ run(arrays | {"weight_hh": matrix}, np.zeros(2 * N, complex))[N:].imag / H
        )
    ours = found.loss.log10_gradients["R_f"]
    assert ours == pytest.approx(np.log10(np.linalg.norm(gradient)), abs=1e-9)


def test_a_file_shows_the_choices_and_is_not_read_as_any(tmp_path):
    path, _ = file_of("lstm-layernorm", tmp_path / "x.safetensors")
    (found,) = checkpoints.read_all(path).layers
    for words in (
        "if cell.ln_ih.weight, cell.ln_hh.weight, cell.ln_ho.weight are LayerNorms of W x + b_ih, of R h",
        "of c on its way to the output alone, add --cell lstm-layernorm; if c is kept as the norm makes it, "
        "--cell lstm-layernorm-carried; if it computes what torch's does all the same, add --cell lstm",
    ):
        assert words in found.open
    with pytest.raises(InputError) as caught:
        checkpoints.read(path)
    assert str(caught.value).endswith(found.open)
    plain = checkpoints.read(path, "lstm").layers[0]
    assert plain.cell.name == "lstm"
    assert not plain.assumed
    given = checkpoints.read(path, "lstm-layernorm=1e-3").layers[0]
    assert given.cell.name == "lstm-layernorm=0.001"
    assert not given.assumed
    with pytest.raises(InputError, match="holds a layer that is lstm, not --cell lstm-layernorm-gates"):
        checkpoints.read(path, "lstm-layernorm-gates")


@pytest.mark.parametrize(
    "change",
    [
        {"cell.ln_ih.weight": np.ones(3)},
        {"cell.ln_ho.weight": np.ones(4 * N)},
        {"cell.other.weight": np.ones(4 * N)},
        {"cell.ln_ih.weight": np.full(4 * N, np.nan)},
        {"cell.layernorm_i.weight": np.ones(4 * N)},  # a second norm of W x
    ],
)
def test_what_are_no_such_norms_offers_none(change, tmp_path):
    save_file(
        {f"cell.{name}": array for name, array in weights().items()} | change, tmp_path / "x.safetensors"
    )
    (found,) = checkpoints.read_all(tmp_path / "x.safetensors").layers
    assert "lstm-layernorm" not in found.open
    assert "which no layer of torch's has" in found.open


def test_a_fresh_one_begins_with_gain_one():
    parameters = gradscope.analyze(cell="lstm-layernorm", hidden=3, steps=2)
    assert parameters.problem["cell"] == "lstm-layernorm"
    drawn = find("lstm-layernorm").initialize(np.random.default_rng(0), 3, 2)
    assert {key[0]: set(np.unique(drawn[key])) for key in drawn if key[0] in "gsb"} == {
        "g": {1.0},
        "s": {0.0},
        "b": {0.0},
    }
    assert drawn.keys() == find("lstm-layernorm").shapes(3, 2).keys()
