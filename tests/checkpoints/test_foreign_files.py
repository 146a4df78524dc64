"""Files of DyNet, TensorFlow 1, early Keras 2 and Python 2: what the library's own equations put out.

Those equations, in NumPy: dynet/lstm.cc (VanillaLSTMBuilder; the package nagisa 0.3 has the same in C, with
which its own model agreed to 2e-6), tensorflow/python/ops/rnn_cell_impl.py (GRUCell), madmom/ml/nn/layers.py.
"""

from __future__ import annotations

import json
import re
import zipfile

import h5py
import numpy as np
import pytest
from oracles import layouts
from oracles.foreign import constant, dynet_text, field, frozen_graph, python_2, tensor_proto
from oracles.layouts import drawn
from oracles.models import outputs, read_layer

import gradscope
from gradscope import checkpoints
from gradscope.checkpoints.array_map import rules_of
from gradscope.errors import InputError
from gradscope.formats.frozen_graph import open_frozen

HIDDEN, INPUT, STEPS = 5, 3, 7
X = np.random.default_rng(3).standard_normal((STEPS, INPUT))


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def close(layer, x, expected):
    np.testing.assert_allclose(outputs(layer, x), expected, rtol=0, atol=1e-6)


# DyNet


def dynet_lstm(arrays, x):
    """Gates i f o g; 1 is added to the forget gate."""
    w, r, b = (np.asarray(a, float) for a in arrays)
    n = len(b) // 4
    c, h, result = np.zeros(n), np.zeros(n), []
    for step in x:
        i, f, o, g = np.split(w @ step + r @ h + b, 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        result.append(h)
    return np.array(result)


def builder(name, features, seed):
    shapes = {"_0": (4 * HIDDEN, features), "_1": (4 * HIDDEN, HIDDEN), "_2": (4 * HIDDEN,)}
    return drawn({f"{name}/{key}": shape for key, shape in shapes.items()}, 0.9, seed)


def test_dynet_in_two_directions(tmp_path):
    """Two layers of a BiRNNBuilder, whose builders alternate, and a table of words."""
    names = ["vanilla-lstm-builder", *(f"vanilla-lstm-builder_{k}" for k in (1, 2, 3))]
    parts = [builder(f"/birnn/{n}", INPUT if k < 2 else 2 * HIDDEN, k) for k, n in enumerate(names)]
    arrays = {key: a for part in parts for key, a in part.items()}
    path = tmp_path / "tagger.v1"  # told by its content
    path.write_bytes(dynet_text(arrays) + dynet_text({"/_0": np.ones((2, 9))}, "LookupParameter"))
    found = checkpoints.read_all(path)
    assert found.others == ("/_0",)
    layers = {layer.name: layer for layer in found.layers}
    assert [layer.direction for layer in found.layers] == ["forward", "backward"] * 2
    pair = ("birnn/vanilla-lstm-builder", "birnn/vanilla-lstm-builder_1")
    assert [layer.below for layer in found.layers] == [(), (), pair, pair]
    left = dynet_lstm(parts[0].values(), X)
    close(layers[pair[0]].settle(), X, left)
    right = dynet_lstm(parts[1].values(), X[::-1])
    close(layers[pair[1]].settle(), X, right)
    both = np.hstack([left, right[::-1]])
    close(layers["birnn/vanilla-lstm-builder_2"].settle(), both, dynet_lstm(parts[2].values(), both))


def test_layers_of_one_dynet_builder(tmp_path):
    first, second = builder("/vanilla-lstm-builder", INPUT, 0), builder("/vanilla-lstm-builder", HIDDEN, 1)
    second = {f"{key[:-1]}{int(key[-1]) + 3}": a for key, a in second.items()}
    (tmp_path / "x.model").write_bytes(dynet_text(first | second))
    lower, upper = checkpoints.read_all(tmp_path / "x.model").layers
    assert (lower.below, upper.below) == ((), (lower.name,))
    close(lower.settle(), X, h := dynet_lstm(first.values(), X))
    close(upper.settle(), h, dynet_lstm(second.values(), h))


@pytest.mark.parametrize("name", ["/gru-builder/_0", "/vanilla-lstm-builder/_0"])
def test_other_builders_are_refused_with_a_way_out(name, tmp_path):
    (tmp_path / "x.model").write_bytes(dynet_text({name: np.ones((4, 4))}))
    with pytest.raises(InputError, match="say what its arrays are by --map"):
        checkpoints.read(tmp_path / "x.model")


# TensorFlow 1


def gru_cell(name, features, hidden, seed):
    shapes = {
        "gates/kernel": (features + hidden, 2 * hidden),
        "gates/bias": (2 * hidden,),
        "candidate/kernel": (features + hidden, hidden),
        "candidate/bias": (hidden,),
    }
    return drawn({f"{name}/gru_cell/{key}": shape for key, shape in shapes.items()}, 0.9, seed)


def tensorflow_gru(arrays, x):
    """u h + (1 - u) c with c = tanh of [x, r h]."""
    gates, gates_bias, candidate, candidate_bias = (np.asarray(a, float) for a in arrays)
    h, result = np.zeros(len(candidate_bias)), []
    for step in x:
        r, u = np.split(sigmoid(np.concatenate([step, h]) @ gates + gates_bias), 2)
        c = np.tanh(np.concatenate([step, r * h]) @ candidate + candidate_bias)
        h = u * h + (1 - u) * c
        result.append(h)
    return np.array(result)


def test_a_frozen_graph_of_grus(tmp_path):
    cells = [f"rnn/multi_rnn_cell/cell_{k}" for k in (0, 1)]
    first, second = gru_cell(cells[0], INPUT, HIDDEN, 0), gru_cell(cells[1], HIDDEN, 4, 1)
    path = tmp_path / "x.pb"
    path.write_bytes(frozen_graph(second | first))
    lower, upper = checkpoints.read_all(path).layers
    assert (lower.below, upper.below) == ((), (lower.name,))
    with pytest.raises(InputError, match="if it is TensorFlow's own, tanh, add --cell gru-reset-before"):
        checkpoints.read(path)
    cell = checkpoints.read(path, "gru-reset-before").layers
    close(cell[0], X, h := tensorflow_gru(first.values(), X))
    close(cell[1], h, tensorflow_gru(second.values(), h))


def test_a_basic_rnn_cell(tmp_path):
    arrays = drawn(
        {"rnn/basic_rnn_cell/kernel": (INPUT + HIDDEN, HIDDEN), "rnn/basic_rnn_cell/bias": (HIDDEN,)}, 0.9, 0
    )
    np.savez(tmp_path / "x.npz", **arrays)
    kernel, bias = (a.astype(float) for a in arrays.values())
    h, expected = np.zeros(HIDDEN), []
    for step in X:
        h = np.tanh(np.concatenate([step, h]) @ kernel + bias)
        expected.append(h)
    close(read_layer(tmp_path / "x.npz", activation="tanh"), X, np.array(expected))


def tensorflow_lstm(kernel, bias, x, added):
    """Gates i j f o, with a number added to the forget gate."""
    n = len(bias) // 4
    c, h, result = np.zeros(n), np.zeros(n), []
    for step in x:
        i, j, f, o = np.split(np.concatenate([step, h]) @ kernel.astype(float) + bias, 4)
        c = sigmoid(f + added) * c + sigmoid(i) * np.tanh(j)
        h = sigmoid(o) * np.tanh(c)
        result.append(h)
    return np.array(result)


@pytest.mark.parametrize("constant", ["add/y", "Const_2"])
def test_a_frozen_graph_of_lstms_in_two_directions(constant, tmp_path):
    """The loops of the graph say what they add to the forget gate, and which cell reads from the end."""
    arrays, added = {}, {"fw": 0.5, "bw": 0.25}
    for seed, side in enumerate(added):
        cell, loop = f"both/rnn/{side}/basic_lstm_cell", f"both/rnn/{side}/{side}/while"
        shapes = {f"{cell}/kernel": (INPUT + HIDDEN, 4 * HIDDEN), f"{cell}/bias": (4 * HIDDEN,)}
        arrays |= drawn(shapes, 0.9, seed) | {f"{loop}/add/y": np.float32(1)}
        arrays[f"{loop}/{side}/basic_lstm_cell/{constant}"] = np.float32(added[side])
    (tmp_path / "x.pb").write_bytes(frozen_graph(arrays))
    problems = [layer.problem for layer in checkpoints.read_all(tmp_path / "x.pb").layers]
    maps = [re.search(r"--map '([^']*)'", problem)[1] for problem in problems]
    assert [re.search(r"bias, ([\d.]+) in this graph", problem)[1] for problem in problems] == ["0.5", "0.25"]
    for layer in checkpoints.read(tmp_path / "x.pb", rules=rules_of(maps)).layers:
        side = layer.name.split("/")[2]
        x = X if side == "fw" else X[::-1]
        assert layer.direction == ("forward" if side == "fw" else "backward")
        weights = (arrays[f"{layer.name}/{part}"] for part in ("kernel", "bias"))
        close(layer, X, tensorflow_lstm(*weights, x, added[side]))


def test_constants_of_every_kind(tmp_path):
    a = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    kinds = {
        "bytes": (tensor_proto(a), a),
        "floats": (tensor_proto(a, packed=True), a),
        "one for all": (
            field(1, 1) + field(2, field(2, field(1, 4))) + field(5, a.tobytes()[8:12]),
            np.full(4, 2),
        ),
        "int32": (tensor_proto(a.astype("i4"), dtype=3), a),
        "float64": (tensor_proto(a.astype("f8"), dtype=2), a),
        "text": (tensor_proto(a, dtype=7), None),
    }
    path = tmp_path / "x.pb"
    path.write_bytes(b"".join(constant(name, tensor) for name, (tensor, _) in kinds.items()))
    with open_frozen(path) as tensors:
        assert "text" not in tensors
        for name, (_, values) in kinds.items():
            if values is not None:
                np.testing.assert_array_equal(tensors[name].values(), values)


# Keras 2.0 to 2.2.2


def keras_lstm(kernel, recurrent, bias, x):
    """Gates i f z o of clip(a / 5 + 1 / 2), as Keras made them before 2.3."""
    n = len(recurrent)
    c, h, result = np.zeros(n), np.zeros(n), []
    for step in x:
        a = step @ kernel.astype(float) + h @ recurrent.astype(float) + bias
        i, f, o = (np.clip(a[k * n : (k + 1) * n] / 5 + 0.5, 0, 1) for k in (0, 1, 3))
        c = f * c + i * np.tanh(a[2 * n : 3 * n])
        h = o * np.tanh(c)
        result.append(h)
    return np.array(result)


def test_a_sequential_whose_config_is_a_list(tmp_path):
    """As russtress and shakkala ship them. --cell lstm is no way out of what Keras made by default."""
    both = {"name": "both", "layer": lstm_node("one"), "merge_mode": "concat"}
    inner = {"class_name": "Sequential", "config": [lstm_node("two")]}
    config = [embedding_node(), {"class_name": "Bidirectional", "config": both}, inner]
    shapes = {"kernel:0": 4 * HIDDEN, "recurrent_kernel:0": 4 * HIDDEN, "bias:0": 4 * HIDDEN}
    arrays = {"words/words_1/embeddings:0": np.arange(21.0).reshape(7, INPUT) / 20}
    for seed, (place, features) in enumerate(
        {"both/both/forward_one": INPUT, "both/both/backward_one": INPUT, "inner/two": 2 * HIDDEN}.items()
    ):
        rows = {"kernel:0": (features,), "recurrent_kernel:0": (HIDDEN,), "bias:0": ()}
        arrays |= drawn({f"{place}/{key}": (*rows[key], n) for key, n in shapes.items()}, 0.5, seed)
    with h5py.File(path := tmp_path / "x.h5", "w") as file:
        file.attrs.update({"keras_version": b"2.0.8", "model_config": keras_2(config)})
        for name, array in arrays.items():
            file.create_dataset(f"model_weights/{name}", data=array)
    layers = {layer.name: layer for layer in checkpoints.read_all(path).layers}
    for side in ("forward", "backward"):
        known = layers[f"both/{side}_one"]
        assert (known.label, known.reads, known.problem) == ("lstm-tanh-hard_sigmoid=0.2", "words", "")
    asked = layers["inner"].question  # such a config has no name for the inner model
    assert re.search(r"Keras 2\.0\.8 makes gates of hard_sigmoid, .*: add --cell lstm-tanh-hard_sig", asked)
    backward = read_layer(path, layer="both/backward_one")
    weights = [arrays[f"both/both/backward_one/{key}"] for key in shapes]
    close(backward, X, keras_lstm(*weights, X[::-1]))
    ids = tmp_path / "ids.npy"
    np.save(ids, np.array([1, 4, 2, 6, 3]))
    found = gradscope.analyze(checkpoint=path, layer="both/forward_one", inputs=ids, embedding="words")
    assert found.problem["steps"] == 5


def test_layers_within_others_by_the_names_of_keras_2(tmp_path):
    """A backward layer that is given, and a layer for each part of a sequence, as Keras 2.15 saves them."""
    ahead, back = (lstm_node(name) for name in ("ahead", "back"))
    back["config"]["go_backwards"] = True
    both = {"name": "both", "layer": ahead, "backward_layer": back, "merge_mode": "concat"}
    each = {"name": "each", "layer": lstm_node("part")}
    kinds = [("Bidirectional", both), ("TimeDistributed", each)]
    config = [{"class_name": kind, "config": config} for kind, config in kinds]
    places = [
        "both/both/forward_ahead/lstm_cell",
        "both/both/backward_back/lstm_cell",
        "each/each/lstm_cell",
    ]
    shapes = {"kernel:0": (INPUT, 4 * HIDDEN), "recurrent_kernel:0": (HIDDEN, 4 * HIDDEN)}
    shapes["bias:0"] = (4 * HIDDEN,)
    weights = {place: drawn(shapes, 0.5, seed) for seed, place in enumerate(places)}
    with h5py.File(path := tmp_path / "x.h5", "w") as file:
        file.attrs.update({"keras_version": b"2.15.0", "model_config": keras_2(config)})
        for place, arrays in weights.items():
            for name, array in arrays.items():
                file.create_dataset(f"model_weights/{place}/{name}", data=array)
    names = ("both/forward_ahead", "both/backward_back", "each")
    for name, (place, arrays) in zip(names, weights.items(), strict=True):
        layer = read_layer(path, layer=name)
        assert layer.cell.name == "lstm-tanh-hard_sigmoid=0.2"
        assert layer.direction == ("backward" if "backward" in place else "forward")
        close(layer, X, keras_lstm(*arrays.values(), X[:: -1 if "backward" in place else 1]))


def lstm_node(name):
    gates = {"activation": "tanh", "recurrent_activation": "hard_sigmoid", "return_sequences": True}
    return {"class_name": "LSTM", "config": {"name": name, "units": HIDDEN, **gates}}


def embedding_node():
    return {"class_name": "Embedding", "config": {"name": "words", "mask_zero": False, "input_dim": 7}}


def keras_2(layers):
    return json.dumps({"class_name": "Sequential", "config": layers}).encode()


@pytest.mark.parametrize(
    ("told", "bias", "words"),
    [
        ({}, None, "has use_bias True by its config and False by its weights"),
        ({"use_bias": False}, (3 * HIDDEN,), "has use_bias False by its config and True by its weights"),
        ({"units": 2 * HIDDEN}, (3 * HIDDEN,), f"has units {2 * HIDDEN} by its config and {HIDDEN} by"),
        ({}, (2, 3 * HIDDEN), "has reset_after False by its config and True by its weights"),
        ({"class_name": "SimpleRNN"}, (3 * HIDDEN,), "has gates 1 by its config and 3 by its weights"),
        ({"recurrent_kernel": "lost"}, (3 * HIDDEN,), "lacks its recurrent_kernel: truncated or damaged"),
    ],
)
def test_a_config_that_is_of_another_layer_than_the_weights(told, bias, words, tmp_path):
    """Each was analysed as the weights have it, without a word, or called no layer at all."""
    config = {"name": "gru", "units": HIDDEN, "use_bias": True, "reset_after": False} | told
    shapes = {"kernel:0": (INPUT, 3 * HIDDEN), "recurrent_kernel:0": (HIDDEN, 3 * HIDDEN)}
    if config.pop("recurrent_kernel", ""):
        del shapes["recurrent_kernel:0"]
    node = {"class_name": config.pop("class_name", "GRU"), "config": config}
    with h5py.File(path := tmp_path / "x.h5", "w") as file:
        file.attrs.update({"keras_version": b"2.15.0", "model_config": keras_2([node])})
        for name, array in drawn(shapes | ({"bias:0": bias} if bias else {}), 0.5, 0).items():
            file.create_dataset(f"model_weights/gru/gru/gru_cell/{name}", data=array)
    (found,) = checkpoints.read_all(path).layers
    assert words in found.problem


ODD = {
    "soft link": (
        lambda group, name: group.__setitem__(name, h5py.SoftLink("/bias")),
        "is a link to another",
    ),
    "text": (lambda group, name: group.create_dataset(name, data=b"0"), "holds no real numbers"),
    "complex": (
        lambda group, name: group.create_dataset(name, data=np.ones(2) * 1j),
        "holds no real numbers",
    ),
    "outside": (
        lambda group, name: group.__setitem__(name, h5py.ExternalLink("x", "b")),
        "is HDF5 of a kind",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_bias_that_is_not_read_is_not_left_out(kind, tmp_path):
    """Each was analysed as an LSTM without a bias."""
    write, words = ODD[kind]
    with h5py.File(path := tmp_path / "x.h5", "w") as file:
        group = file.create_group("lstm/lstm/lstm_cell")
        for name, rows in {"kernel:0": INPUT, "recurrent_kernel:0": HIDDEN}.items():
            group.create_dataset(name, data=np.ones((rows, 4 * HIDDEN)))
        write(group, "bias:0")
    with pytest.raises(InputError, match=words):
        read_layer(path, "lstm")


@pytest.mark.parametrize(
    ("gates", "without", "lost"),
    [
        ("ifgo", ["hf"], "hf/bias"),
        ("ifgo", [], ""),
        ("rzn", [], ""),
        ("rzn", ["ir"], "ir/bias"),
    ],
)
def test_a_flax_cell_that_lacks_one_bias_of_several(gates, without, lost, tmp_path):
    """It was analysed with zeros in its place; of a GRU's products with h that of n alone has one."""
    dense = [f"{side}{gate}" for side in "ih" for gate in gates]
    having = [one for one in dense if one[0] == "h" or gates == "rzn"]
    having = ["ir", "iz", "in", "hn"] if gates == "rzn" else having
    shapes = {f"cell/{one}/kernel": (INPUT if one[0] == "i" else HIDDEN, HIDDEN) for one in dense}
    shapes |= {f"cell/{one}/bias": (HIDDEN,) for one in having if one not in without}
    np.savez(tmp_path / "x.npz", **drawn(shapes, 0.5, 0))
    (found,) = checkpoints.read_all(tmp_path / "x.npz").layers
    assert found.problem == (
        f"a Flax cell without {lost}, expected a bias of every gate or of none" if lost else ""
    )


def test_an_archive_with_two_members_of_one_name(tmp_path):
    """Which of them counts, readers of archives disagree on."""
    path = tmp_path / "x.pt"
    path.write_bytes(layouts.torch_bytes(layouts.module(rnn=layouts.recurrent("lstm", 3, 4))))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", archive.read("archive/data/0")[::-1])
    with pytest.raises(InputError, match="holds two arrays of the same name"):
        checkpoints.read_all(path)


# Python 2


def madmom(cell):
    """A GRU of madmom: x W and h R of arrays (inputs, units), the reset after the product, u for the new."""

    def step(x, h):
        r, u = (
            sigmoid(
                x @ cell[f"{g}_gate.weights"]
                + h @ cell[f"{g}_gate.recurrent_weights"]
                + cell[f"{g}_gate.bias"]
            )
            for g in ("reset", "update")
        )
        new = np.tanh(x @ cell["cell.weights"] + cell["cell.bias"] + r * (h @ cell["cell.recurrent_weights"]))
        return u * new + (1 - u) * h

    return step


def test_gates_that_are_modules_of_their_own(tmp_path, run):
    """inspect offers their maps, analyze refuses with the same, and one of them is right."""
    sizes = {"weights": (INPUT, HIDDEN), "recurrent_weights": (HIDDEN, HIDDEN), "bias": (HIDDEN,)}
    shapes = {f"l.{g}.{k}": s for g in ("reset_gate", "update_gate", "cell") for k, s in sizes.items()}
    arrays = drawn({**shapes, "l.hid_init": (HIDDEN,)}, 0.9, 0)
    path = tmp_path / "x.pkl"
    path.write_bytes(python_2(arrays))
    (layer,) = json.loads(run("inspect", path, "--json")[1])["layers"]
    code, _, err = run("analyze", path)
    assert (code, err) == (2, f"gradscope: error: {path}: {layer['problem']}\n")
    maps = re.findall("--map '(.*?)'", layer["problem"])
    assert len(maps) == 2
    step = madmom({key.removeprefix("l."): a.astype(float) for key, a in arrays.items()})
    h, expected = arrays["l.hid_init"].astype(float), []
    for x in X:
        h = step(x, h)
        expected.append(h)
    close(read_layer(path, rules=rules_of(maps[1])), X, np.array(expected))
    with pytest.raises(AssertionError):
        close(read_layer(path, rules=rules_of(maps[0])), X, np.array(expected))


def test_peepholes_and_square_matrices(tmp_path):
    """Of as many inputs as units the shapes do not tell which way the matrices lie."""
    n = HIDDEN
    sizes = {
        "weights": (n, n),
        "recurrent_weights": (n, n),
        "bias": (n,),
        "peephole_weights": (n,),
        "init": (n,),
    }
    arrays = drawn(
        {
            f"l.{g}.{k}": s
            for g in ("input_gate", "forget_gate", "cell", "output_gate")
            for k, s in sizes.items()
            if not (g == "cell" and "peep" in k)
        },
        0.9,
        0,
    )
    np.savez(tmp_path / "x.npz", **arrays)
    (found,) = checkpoints.read_all(tmp_path / "x.npz").layers
    maps = re.findall("--map '(.*?)'", found.problem)
    turned, straight = (read_layer(tmp_path / "x.npz", "lstm-peephole", rules=rules_of(one)) for one in maps)
    np.testing.assert_array_equal(turned.parameters["R_o"], arrays["l.output_gate.recurrent_weights"].T)
    np.testing.assert_array_equal(straight.parameters["W_z"], arrays["l.cell.weights"])
    np.testing.assert_array_equal(turned.parameters["p_f"], arrays["l.forget_gate.peephole_weights"])
