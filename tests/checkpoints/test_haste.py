"""Arrays under haste's names and under x2h and h2h, against their own equations in NumPy."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
from oracles.models import outputs, read_layer
from safetensors.numpy import save_file

from gradscope import checkpoints
from gradscope.checkpoints.array_map import rules_of
from gradscope.errors import InputError

N, D, T = 5, 3, 6
X = np.random.default_rng(0).normal(size=(T, D))


def drawn(**shapes):
    rng = np.random.default_rng(1)
    return {name.replace("__", "."): rng.normal(size=shape) * 0.4 for name, shape in shapes.items()}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def norm(v, gain):
    return gain * (v - v.mean()) / np.sqrt(v.var() + 1e-5)


def lstm(xs, arrays, normed):
    """What haste's LSTM puts out: gates i, g, f, o in the columns of its matrices."""
    a = {name.rpartition(".")[2]: array for name, array in arrays.items()}
    h, c, out = np.zeros(N), np.zeros(N), []
    for x in xs:
        inner, back = x @ a["kernel"], h @ a["recurrent_kernel"]
        if normed:
            inner, back = norm(inner, a["gamma"][0]), norm(back, a["gamma"][1])
        i, g, f, o = np.split(inner + back + a["bias"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(norm(c, a["gamma_h"]) + a["beta_h"] if normed else c)
        out.append(h)
    return np.array(out)


PLAIN = drawn(rnn__kernel=(D, 4 * N), rnn__recurrent_kernel=(N, 4 * N), rnn__bias=(4 * N,))
NORMED = PLAIN | drawn(rnn__gamma=(2, 4 * N), rnn__gamma_h=(N,), rnn__beta_h=(N,))


def test_a_layer_with_layer_normalisation(tmp_path):
    save_file(NORMED, tmp_path / "x.safetensors")
    layer = read_layer(tmp_path / "x.safetensors")
    assert layer.cell.name == "lstm-layernorm"
    assert any("zoneout" in said for said in layer.assumed)
    np.testing.assert_allclose(outputs(layer, X), lstm(X, NORMED, True), rtol=0, atol=1e-12)


def maps(path):
    """The maps that a refusal offers, by what they are said to be."""
    with pytest.raises(InputError) as refused:
        checkpoints.read(path)
    offers = re.findall(r"(an? [A-Z]+[^']*?) --map ('[^']*')", str(refused.value))
    return {what: rules_of(shlex.split(rules)[0]) for what, rules in offers}


def test_a_plain_layer_is_asked_about_and_its_own_order_is_among_the_choices(tmp_path):
    save_file(PLAIN, tmp_path / "x.safetensors")
    (rules,) = [rules for what, rules in maps(tmp_path / "x.safetensors").items() if "haste" in what]
    (layer,) = checkpoints.read(tmp_path / "x.safetensors", rules=rules).layers
    np.testing.assert_allclose(outputs(layer, X), lstm(X, PLAIN, False), rtol=0, atol=1e-12)


SPELLED = drawn(
    cell__x2h__weight=(3 * N, D),
    cell__x2h__bias=(3 * N,),
    cell__h2h__weight=(3 * N, N),
    cell__h2h__bias=(3 * N,),
)


def gru(xs, a):
    """Gates r, z, n in the rows, as those who write x2h and h2h mostly have them."""
    h, out = np.zeros(N), []
    for x in xs:
        (ir, iz, inner), (hr, hz, hn) = (
            np.split(a[f"cell.{side}.weight"] @ v + a[f"cell.{side}.bias"], 3)
            for side, v in (("x2h", x), ("h2h", h))
        )
        z = sigmoid(iz + hz)
        h = (1 - z) * np.tanh(inner + sigmoid(ir + hr) * hn) + z * h
        out.append(h)
    return np.array(out)


def test_x2h_and_h2h_are_of_one_layer(tmp_path):
    save_file(SPELLED, tmp_path / "x.safetensors")
    offered = maps(tmp_path / "x.safetensors")
    (layer,) = checkpoints.read(
        tmp_path / "x.safetensors", rules=offered["a GRU in the order of PyTorch or Flax"]
    ).layers
    np.testing.assert_allclose(outputs(layer, X), gru(X, SPELLED), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("norm", "shape"), [("cell.ln.weight", 3 * N), ("cell.gamma", (2, 3 * N)), ("cell.norm_x.weight", 3 * N)]
)
def test_no_map_is_offered_that_would_leave_norms_out(tmp_path, norm, shape):
    save_file(SPELLED | {norm: np.ones(shape)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=rf"beside them there are {norm} .*from_torch") as refused:
        checkpoints.read(tmp_path / "x.safetensors")
    assert "--map" not in str(refused.value)


def test_what_a_map_would_leave_out_is_said(tmp_path):
    save_file(SPELLED | {"cell.scale": np.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"beside them there are cell.scale \(2,\): if these are no part"):
        checkpoints.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ({"rnn.gamma": np.ones((2, 3))}, r"expected \(d, 4 n\) and \(2, 4 n\)"),
        ({"rnn.bias": np.ones(3)}, "b has shape"),
        ({"rnn.recurrent_kernel": np.ones((N + 1, 4 * N))}, "R_"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, spoilt, said):
    save_file(NORMED | spoilt, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=said):
        checkpoints.read(tmp_path / "x.safetensors")


def test_a_gru_with_layer_normalisation_is_sent_to_its_own_derivatives(tmp_path):
    arrays = drawn(rnn__kernel=(D, 3 * N), rnn__recurrent_kernel=(N, 3 * N), rnn__bias=(3 * N,))
    arrays |= drawn(rnn__recurrent_bias=(3 * N,), rnn__gamma=(2, 3 * N))
    save_file(arrays, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"a GRU of haste's with layer normalisation.*from_torch"):
        checkpoints.read(tmp_path / "x.safetensors")
