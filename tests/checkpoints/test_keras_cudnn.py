"""CuDNNLSTM and CuDNNGRU of old Keras: buffers as cuDNN has them, read as Keras' own loader reads them.

cuDNN takes each gate's matrix as a buffer, row by row, of W (n, d) and R (n, n); the layer keeps that buffer
in the shape (d, n) or (n, n) and writes what it holds. Gates in Keras' order, i f c o and z r h; the
biases of W come first.
"""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.models import outputs, read_layer

from gradscope.errors import InputError

HIDDEN, INPUT, STEPS = 5, 3, 7
KERAS = {"lstm": "ifzo", "gru": "zrh"}
X = np.random.default_rng(3).standard_normal((STEPS, INPUT))


def as_buffers(kind, state):
    """kernel, recurrent_kernel and bias of the layer that computes what PyTorch's does."""
    blocks = {
        role: dict(zip(layouts.GATES[kind], np.split(array, len(layouts.GATES[kind])), strict=True))
        for role, array in state.items()
    }
    kernels = {}
    for name, role in (("kernel", "weight_ih_l0"), ("recurrent_kernel", "weight_hh_l0")):
        columns = [blocks[role][gate].ravel().reshape(-1, HIDDEN) for gate in KERAS[kind]]
        kernels[name] = np.hstack(columns)
    kernels["bias"] = np.concatenate([blocks[f"bias_{r}_l0"][g] for r in ("ih", "hh") for g in KERAS[kind]])
    return kernels


def saved(path, layers, **attributes):
    """{name: weights} as Keras 2 writes them."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for name, weights in layers.items():
            for role, values in weights.items():
                file[f"{name}/{name}/{role}:0"] = values
    return path


def expected(kind, state):
    start = np.zeros(HIDDEN * (1 + (kind == "lstm")))
    states, _ = equations.trajectory_jacobian(kind, layouts.equations_of(kind, state), X, start)
    return states[:, -HIDDEN:]


@pytest.mark.parametrize("kind", KERAS)
def test_both_layouts(kind, tmp_path):
    state = layouts.recurrent(kind, INPUT, HIDDEN, dtype="float64", scale=2)
    path = saved(tmp_path / "x.h5", {"rnn_1": as_buffers(kind, state)}, keras_version="2.1.5")
    layer = read_layer(path, layout="cudnn")
    np.testing.assert_allclose(outputs(layer, X), expected(kind, state), rtol=0, atol=1e-12)
    assert any("--layout cudnn" in said for said in layer.assumed)
    plain = {
        "kernel": np.hstack(
            [state["weight_ih_l0"][g * HIDDEN : (g + 1) * HIDDEN].T for g in range(4 - (kind == "gru"))]
        ),
        "recurrent_kernel": state["weight_hh_l0"].T,
        "bias": np.concatenate([state["bias_ih_l0"], state["bias_hh_l0"]]),
    }
    if kind == "gru":  # r z h of PyTorch
        order = np.concatenate([np.arange(k * HIDDEN, (k + 1) * HIDDEN) for k in (1, 0, 2)])
        plain = {n: a[..., order] for n, a in plain.items() if n != "bias"} | {
            "bias": np.concatenate([state["bias_ih_l0"][order], state["bias_hh_l0"][order]])
        }
    path = saved(tmp_path / "y.h5", {"rnn_1": plain})
    for choice in ({"cell": kind}, {"layout": "keras"}):
        layer = read_layer(path, **choice)
        np.testing.assert_allclose(outputs(layer, X), expected(kind, state), rtol=0, atol=1e-12)
        assert any("--layout keras" in said for said in layer.assumed)


@pytest.mark.parametrize("kind", KERAS)
def test_the_config_of_a_whole_model_decides(kind, tmp_path):
    """Of CuDNNLSTM as of LSTM, into which Keras' loader turns such weights."""
    state = layouts.recurrent(kind, INPUT, HIDDEN, dtype="float64")
    for name in (f"CuDNN{kind.upper()}", kind.upper()):
        inside = {
            "name": "rnn_1",
            "units": HIDDEN,
            "return_sequences": True,
            "recurrent_activation": "sigmoid",
            "reset_after": True,
        }
        layer = {
            "class_name": name,
            "config": inside if name == kind.upper() else {k: inside[k] for k in ("name", "units")},
        }
        config = {"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}}
        path = saved(
            tmp_path / f"{name}.h5",
            {"rnn_1": as_buffers(kind, state)},
            model_config=json.dumps(config),
            keras_version="2.2.0",
        )
        found = read_layer(path)
        np.testing.assert_allclose(outputs(found, X), expected(kind, state), rtol=0, atol=1e-12)
        assert found.assumed == ()


def test_inspect_and_analyze_ask_in_the_same_words(tmp_path, run):
    state = layouts.recurrent("lstm", INPUT, HIDDEN)
    path = saved(tmp_path / "x.h5", {"rnn_1": as_buffers("lstm", state)})
    asked = json.loads(run("inspect", path, "--json")[1])["layers"][0]["open"]
    assert "--layout cudnn" in asked
    assert "--cell lstm" in asked
    code, _, err = run("analyze", path)
    assert (code, err) == (2, f"gradscope: error: {path}: {asked}\n")


def test_a_config_beside_weights(tmp_path, run):
    """What to_json() writes says what weights alone do not: direction, activations, reset form."""
    state = layouts.recurrent("lstm", INPUT, HIDDEN, dtype="float64")
    weights = as_buffers("lstm", state)
    path = saved(tmp_path / "x.h5", {"rnn_1": weights})
    inside = {"name": "rnn_1", "units": HIDDEN, "go_backwards": True}
    layer = {"class_name": "CuDNNLSTM", "config": inside}
    text = json.dumps({"class_name": "Sequential", "config": {"layers": [layer]}, "keras_version": "2.2.0"})
    (tmp_path / "x.json").write_text(text)
    found = read_layer(path, config=tmp_path / "x.json")
    assert (found.direction, found.assumed) == ("backward", ())
    np.testing.assert_allclose(outputs(found, X[::-1]), expected("lstm", state), rtol=0, atol=1e-12)
    (asked,) = json.loads(run("inspect", path, "--config", tmp_path / "x.json", "--json")[1])["layers"]
    assert (asked["direction"], asked["open"]) == ("backward", None)
    np.save(tmp_path / "x.npy", X)
    assert run("analyze", path, "--inputs", tmp_path / "x.npy", "--config", tmp_path / "x.json", "-q")[0] == 0

    (tmp_path / "other.json").write_text(text.replace("rnn_1", "another"))
    (tmp_path / "list.json").write_text("[]")
    whole = saved(tmp_path / "w.h5", {"rnn_1": weights}, model_config=text)
    np.savez(tmp_path / "y.npz", W=X)
    refused = {
        "has weights of rnn_1, and --config .*other.json says nothing of these": (path, "other.json"),
        "list.json: holds no config of a model, expected what model.to_json": (path, "list.json"),
        "absent.json: No such file": (path, "absent.json"),
        "holds the config of its model: leave out --config": (whole, "x.json"),
        "is about weights of Keras": (tmp_path / "y.npz", "x.json"),
    }
    for words, (file, config) in refused.items():
        with pytest.raises(InputError, match=words):
            read_layer(file, config=tmp_path / config)


def test_a_layout_that_does_not_fit(tmp_path):
    state = layouts.recurrent("lstm", INPUT, HIDDEN)
    weights = as_buffers("lstm", state)
    plain = weights | {"bias": weights["bias"][: 4 * HIDDEN]}
    both = {"a": weights, "b": plain}
    refused = {
        "does not leave open how its arrays lie": (
            saved(tmp_path / "x.h5", {"a": plain}),
            {"layout": "cudnn"},
        ),
        "layout is 'fortran', expected one of cudnn, keras": (
            saved(tmp_path / "y.h5", {"a": weights}),
            {"layout": "fortran"},
        ),
        "layer b: holds weights without the config": (saved(tmp_path / "z.h5", both), {"layout": "cudnn"}),
        "holds a layer that is lstm, not --cell gru": (
            saved(tmp_path / "v.h5", {"a": weights}),
            {"cell": "gru"},
        ),
    }
    for words, (path, choice) in refused.items():
        with pytest.raises(InputError, match=words):
            read_layer(path, **choice)
    assert read_layer(tmp_path / "z.h5", "lstm", layer="b", layout=None).hidden == HIDDEN
