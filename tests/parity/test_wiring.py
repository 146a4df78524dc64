"""Which layers a layer reads: chained by what the files say, they give what the whole model gives."""

from __future__ import annotations

import itertools
import json
import warnings

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from oracles.keras_cells import saved
from oracles.models import HIDDEN, INPUT, STEPS, outputs, sequence

import gradscope
from gradscope import checkpoints
from gradscope.checkpoints.keras.config import specs
from gradscope.errors import InputError
from gradscope.report.inspection import inspect
from gradscope.report.inspection_table import render_contents
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
L = keras.layers


def chained(checkpoint, x):
    """The outputs (T, n) of every layer by name, in the order of time, given x (T, d) at the bottom."""
    found = {}
    for layer in checkpoints.read(checkpoint).layers:
        assert layer.below is not None, layer.name
        given = np.concatenate([found[name] for name in layer.below], axis=1) if layer.below else x
        y = outputs(layer, given)
        found[layer.name] = y[::-1] if layer.direction == "backward" else y
    return found


def below(checkpoint):
    return {found.name: found.below for found in checkpoints.read_all(checkpoint).layers}


def depths(checkpoint):
    return {found.name: found.depth for found in checkpoints.read_all(checkpoint).layers}


# Keras


def recurrent(make=L.LSTM, name=None, units=HIDDEN, **options):
    return make(units, return_sequences=True, name=name, **options)


def sequential(x):
    stack = [L.Dropout(0.5), recurrent(name="a"), L.GaussianNoise(1.0), L.SpatialDropout1D(0.5)]
    return keras.Sequential([keras.Input(x.shape), *stack, recurrent(L.GRU, "b")])


def two_directions(x):
    stack = [
        L.Bidirectional(recurrent(name="a"), name="one"),
        L.Bidirectional(recurrent(L.GRU, "b"), name="two"),
    ]
    return keras.Sequential([keras.Input(x.shape), *stack])


def functional(x):
    """Side by side with what it stands on, the first of several outputs, a model in it, stacked cells."""
    given = keras.Input(x.shape)
    both = L.Bidirectional(recurrent(name="a"), name="both")(given)
    first, *_ = recurrent(L.GRU, "first", return_state=True)(both)
    inner_given = keras.Input((x.shape[0], 3 * HIDDEN))
    inner = keras.Model(inner_given, recurrent(L.SimpleRNN, "deep")(inner_given), name="inner")
    deep = inner(L.Concatenate()([both, L.Dropout(0.1)(first)]))
    cells = [L.LSTMCell(HIDDEN, name="low"), L.GRUCell(HIDDEN, name="high")]
    return keras.Model(given, L.RNN(cells, return_sequences=True, name="cells")(deep))


KERAS = {
    "sequential": (sequential, ["b"], {"a": 0, "b": 1}),
    "two directions": (
        two_directions,
        ["two/forward_b", "two/backward_b"],
        {"one/forward_a": 0, "one/backward_a": 0, "two/forward_b": 1, "two/backward_b": 1},
    ),
    "functional": (
        functional,
        ["cells/high"],
        {
            "both/forward_a": 0,
            "both/backward_a": 0,
            "first": 1,
            "inner/deep": 2,
            "cells/low": 3,
            "cells/high": 4,
        },
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_keras_layers_stand_upon_each_other(name, tmp_path):
    make, top, expected = KERAS[name]
    x = sequence().astype(np.float32)
    model = make(x)
    rng = np.random.default_rng(5)
    model.set_weights([rng.standard_normal(w.shape) * 0.5 for w in model.get_weights()])
    theirs = np.asarray(model(x[None]))[0]
    path = saved(model, tmp_path / "x.keras")
    for checkpoint in (path, gradscope.from_keras(model)):
        ours = chained(checkpoint, x.astype(float))
        np.testing.assert_allclose(
            np.concatenate([ours[part] for part in top], axis=1), theirs, rtol=0, atol=3e-6
        )
        assert list(depths(checkpoint).items()) == list(expected.items())
    # The other format, where cells have other names.
    whole = chained(saved(model, tmp_path / "x.h5"), x.astype(float))
    (other,) = (y for part, y in whole.items() if part.endswith(top[0].rpartition("/")[2]))
    np.testing.assert_allclose(other, ours[top[0]], rtol=0, atol=1e-12)


def stood_upon(*between, first=None, top=None, shape=(STEPS, INPUT)):
    """What is below a layer that stands upon another, with these layers between."""
    stack = [first or recurrent(name="first"), *between, top or recurrent(name="top")]
    model = keras.Sequential([keras.Input(shape), *stack])
    return below(gradscope.from_keras(model))["top"]


def test_keras_layers_that_read_something_else():
    assert stood_upon(L.Dropout(0.1)) == ("first",)
    for layer in (L.Dense(3), L.BatchNormalization(), L.Activation("relu"), L.TimeDistributed(L.Dense(2))):
        assert stood_upon(layer) is None
    assert stood_upon(L.RepeatVector(3), first=L.LSTM(2, name="first")) is None
    assert stood_upon(first=recurrent(name="first", go_backwards=True)) is None
    for mode in ("sum", "mul", "ave"):
        assert stood_upon(first=L.Bidirectional(recurrent(), merge_mode=mode)) is None
    turned = L.Bidirectional(recurrent(go_backwards=True), backward_layer=recurrent())
    assert stood_upon(first=turned) is None
    assert stood_upon(first=L.TimeDistributed(L.LSTM(2)), shape=(2, STEPS, INPUT)) is None


def test_keras_models_of_several_inputs():
    """What has no one input has no one sequence that would be given to all of it."""
    first, second = keras.Input((STEPS, INPUT)), keras.Input((STEPS, INPUT))
    a, b = recurrent(name="a")(first), recurrent(name="b")(second)
    joined = recurrent(name="joined")(L.Concatenate()([a, b]))
    stacked = recurrent(name="stacked")(L.Concatenate(axis=1)([a, a]))
    model = keras.Model([first, second], [joined, stacked, recurrent(name="last")(b)])
    expected = {"a": (), "b": (), "joined": None, "stacked": None, "last": ("b",)}
    assert below(gradscope.from_keras(model)) == expected


def test_keras_layers_that_are_called_again(tmp_path):
    """One encoder for two inputs, and one that reads the input as well as itself."""
    first, second = keras.Input((STEPS, HIDDEN)), keras.Input((STEPS, HIDDEN))
    encoder = keras.Sequential([recurrent(name="low"), recurrent(name="high")], name="encoder")
    again = recurrent(name="again")
    a, b = encoder(first), encoder(second)
    model = keras.Model(
        [first, second], [recurrent(name="top")(b), recurrent(name="side")(a), again(again(a))]
    )
    expected = {
        "encoder/low": (),
        "encoder/high": ("encoder/low",),
        "top": None,
        "side": ("encoder/high",),
        "again": None,
    }
    for checkpoint in (saved(model, tmp_path / "x.keras"), gradscope.from_keras(model)):
        assert below(checkpoint) == expected


def test_keras_2_calls_and_names():
    """A functional model of Keras 2: calls are lists, a Bidirectional has the one layer it was given."""

    def layer(kind, name, *reads, **config):
        calls = [[[given, 0, 0, {}] for given in reads]] if reads else []
        return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": calls}

    inner = {"class_name": "LSTM", "config": {"name": "lstm", "return_sequences": True}}
    layers = [
        layer("InputLayer", "x"),
        layer("Bidirectional", "both", "x", layer=inner, merge_mode="concat"),
        layer("GRU", "gru", "both", return_sequences=True, reset_after=False),
        layer("Concatenate", "side", "gru", "both", axis=-1),
        layer("SimpleRNN", "top", "side"),
    ]
    config = {"layers": layers, "input_layers": [["x", 0, 0]], "output_layers": [["top", 0, 0]]}
    found = specs(json.dumps({"class_name": "Model", "config": config}))
    both = ("both/forward_lstm", "both/backward_lstm")
    assert {name: spec.below for name, spec in found.items()} == {
        both[0]: (),
        both[1]: (),
        "gru": both,
        "top": ("gru", *both),
    }
    assert [found[name].reverse for name in both] == [False, True]


def given_states(checkpoint):
    return [found.name for found in checkpoints.read_all(checkpoint).layers if found.given_state]


def seq2seq():
    """A decoder and two directions that start where an encoder of masked tokens ends, and a model in it."""
    tokens, given = keras.Input((STEPS,)), keras.Input((STEPS, INPUT))
    embedded = L.Embedding(5, INPUT, mask_zero=True)(tokens)
    out, h, c = recurrent(name="encoder", return_state=True)(embedded)
    decoded = recurrent(name="decoder")(given, initial_state=[h, c])
    both = L.Bidirectional(recurrent(name="a"), name="both")(given, [h, c, h, c])
    inner = [keras.Input((STEPS, HIDDEN)), keras.Input((HIDDEN,))]
    deep = keras.Model(inner, recurrent(L.GRU, "deep")(inner[0], initial_state=inner[1]), name="inner")
    top = recurrent(name="top")(L.Concatenate()([out, out]))
    return keras.Model([tokens, given], [decoded, both, deep([decoded, h]), top])


def test_keras_layers_that_start_from_a_state_of_the_model(tmp_path):
    model = seq2seq()
    expected = {"decoder", "both/forward_a", "both/backward_a", "inner/deep"}
    for checkpoint in (saved(model, tmp_path / "x.keras"), gradscope.from_keras(model)):
        assert set(given_states(checkpoint)) == expected
        assert below(checkpoint)["top"] == ("encoder", "encoder")  # a mask is no output
    path = tmp_path / "x.keras"
    options = {"checkpoint": path, "layer": "decoder", "steps": 3}
    with pytest.raises(
        InputError,
        match=r"^the initial state comes from .*: give decoder\.c0, decoder\.h0 as --initial-state$",
    ):
        gradscope.analyze(**options)
    states = {"decoder.h0": np.ones(HIDDEN), "decoder.c0": np.ones(HIDDEN)}
    started = gradscope.analyze(**options, initial_state=states)
    assert started.problem["initial_state"] == "array"
    assert gradscope.analyze(checkpoint=path, layer="encoder", steps=3).problem["layer"] == "encoder"
    (found,) = (one for one in inspect(path).to_dict()["layers"] if one["name"] == "decoder")
    assert found["open"] == "the initial state comes from elsewhere in the model: add --initial-state"
    assert "decoder: the initial state comes from" in render_contents(inspect(path), Look(Terminal(200)))


def test_keras_configs_that_make_no_sense():
    """Layers that read themselves, what does not exist, or nothing."""
    kinds = {"class_name": "LSTM", "config": {"name": "a", "return_sequences": True}, "name": "a"}
    for calls in ([[["a", 0, 0]]], [[["b", 0, 0]]], [[]], [[["a", 7, 7]], [["a", 0, 0]]], [None], {}):
        config = {"layers": [{**kinds, "inbound_nodes": calls}], "input_layers": [["x", 0, 0]]}
        found = specs(json.dumps({"class_name": "Functional", "config": config}))
        assert all(spec.below is None for spec in found.values())


# ONNX


class Upon(torch.nn.Module):
    """Something between two recurrent layers, and the outputs of the upper one."""

    def __init__(self, first, between, top, batch_first=False):
        super().__init__()
        self.first, self.top = first, top
        self.between = between

    def forward(self, x):
        return self.top(self.between(self.first(x)[0]))[0]


def exported(module, path, dynamo, batch_first=False, dynamic=False):
    example = torch.zeros((2, STEPS, INPUT) if batch_first else (STEPS, 2, INPUT))
    shapes = {"x": {0: torch.export.Dim("first"), 1: torch.export.Dim("second")}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            path,
            dynamo=dynamo,
            verbose=False,
            dynamic_shapes=shapes,
            input_names=["x"],
        )
    return path


EXPORTS = list(itertools.product([False, True], ["torchscript", "dynamo", "dynamic"], [False, True]))
FEW = {
    (True, "torchscript", False),
    (False, "torchscript", True),
    (True, "dynamo", True),
}


@pytest.mark.parametrize(
    ("both", "how", "batch_first"),
    [pytest.param(*export, marks=[] if export in FEW else pytest.mark.slow) for export in EXPORTS],
)
def test_onnx_layers_stand_upon_each_other(both, how, batch_first, tmp_path):
    torch.manual_seed(5)
    options = {"bidirectional": both, "batch_first": batch_first}
    first = torch.nn.LSTM(INPUT, HIDDEN, num_layers=2, dropout=0.3, **options)
    module = Upon(first, torch.nn.Dropout(0.2), torch.nn.GRU(HIDDEN * (1 + both), HIDDEN, **options))
    path = exported(module, tmp_path / "x.onnx", how != "torchscript", batch_first, how == "dynamic")
    x = sequence().astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = np.stack([x, 0 * x], axis=0 if batch_first else 1)
    (theirs,) = session.run(None, {session.get_inputs()[0].name: batch})
    ours = chained(path, x.astype(float))
    assert list(depths(path).values()) == ([0, 0, 1, 1, 2, 2] if both else [0, 1, 2])
    top = np.concatenate(list(ours.values())[-1 - both :], axis=1)
    np.testing.assert_allclose(top, theirs[0] if batch_first else theirs[:, 0], rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    "between",
    [
        torch.relu,
        lambda y: y + 1,
        lambda y: y.flip(0),
        lambda y: y.transpose(0, 1),
        lambda y: y[..., [1, 0, 3, 2]],
    ],
    ids=["relu", "sum", "flip", "transpose", "permute"],
)
def test_onnx_layers_that_read_something_else(between, tmp_path):
    module = Upon(torch.nn.LSTM(INPUT, HIDDEN), between, torch.nn.LSTM(HIDDEN, HIDDEN))
    path = exported(module, tmp_path / "x.onnx", dynamo=False)
    found = checkpoints.read_all(path).layers
    assert [(layer.below, layer.depth) for layer in found] == [((), 0), (None, 1)]


def test_onnx_layers_side_by_side(tmp_path):
    class Side(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.LSTM(INPUT, HIDDEN), torch.nn.GRU(INPUT, HIDDEN)
            self.top = torch.nn.LSTM(2 * HIDDEN, HIDDEN)

        def forward(self, x):
            return self.top(torch.cat([self.a(x)[0], self.b(x)[0]], dim=-1))[0]

    path = exported(Side(), tmp_path / "x.onnx", dynamo=False)
    names = list(below(path))
    assert list(below(path).values()) == [(), (), tuple(names[:2])]


class Started(torch.nn.Module):
    """A GRU from the last state of an LSTM, from zeros, and from a learned one."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(INPUT, HIDDEN, num_layers=2, batch_first=True)
        self.grus = torch.nn.ModuleList(torch.nn.GRU(HIDDEN, HIDDEN, batch_first=True) for _ in range(4))
        self.start = torch.nn.Parameter(torch.ones(1, 1, HIDDEN))

    def forward(self, x):
        y, (h, _) = self.lstm(x)
        zeros, learned = torch.zeros(1, x.shape[0], HIDDEN), self.start.repeat(1, x.shape[0], 1)
        states = (h[:1], zeros, None, learned)
        return [gru(y, state)[0] for gru, state in zip(self.grus, states, strict=True)]


@pytest.mark.parametrize("how", ["torchscript", "dynamo", "dynamic"])
def test_onnx_layers_that_start_from_a_state_of_the_model(how, tmp_path):
    path = exported(Started(), tmp_path / "x.onnx", how != "torchscript", True, how == "dynamic")
    names = [found.name for found in checkpoints.read_all(path).layers]
    # Where the batch is not fixed, or folded away, the graph repeats what is learned for it.
    learned = names[-1:] if how != "dynamo" else []
    assert given_states(path) == [names[2], *learned]
    chosen = [name for name in names if name not in given_states(path)]
    assert gradscope.analyze(checkpoint=path, layer=chosen, steps=3).layers
    with pytest.raises(InputError, match=r"the initial state comes from .*: give .*h0 as --initial-state"):
        gradscope.analyze(checkpoint=path, layer=names[2], steps=3)
    started = gradscope.analyze(
        checkpoint=path, layer=names[2], steps=3, initial_state={f"{names[2]}.h0": np.ones(HIDDEN)}
    )
    assert started.problem["layer"] == names[2]


@pytest.mark.parametrize("fill", [None, 0.0, 1.0])
def test_onnx_states_that_the_graph_makes(fill, tmp_path):
    options = {} if fill is None else {"value": helper.make_tensor("v", TensorProto.FLOAT, [1], [fill])}
    nodes = [
        helper.make_node("Shape", ["R"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["made"], **options),
        helper.make_node(
            "Constant", [], ["zero"], value=helper.make_tensor("z", TensorProto.INT64, [1], [0])
        ),
        helper.make_node("Slice", ["made", "zero", "one", "one"], ["h"]),
        helper.make_node("LSTM", ["X", "W", "R", "", "", "h"], ["Y"], name="lstm", hidden_size=INPUT),
        helper.make_node("LSTM", ["X", "W", "R", "", "", "X"], ["Z"], name="input", hidden_size=INPUT),
    ]
    path = graph_of(nodes, tmp_path / "x.onnx")
    assert given_states(path) == ["input"]
    layer = checkpoints.read(path, layers=["lstm"]).layers[0]
    np.testing.assert_array_equal(layer.state, [0.0] * INPUT + [fill or 0.0] * INPUT)


def node(kind, x, y, *, name="", **options):
    return helper.make_node(kind, [x, "W", "R"], [y], name=name, hidden_size=INPUT, **options)


def graph_of(nodes, path, functions=()):
    """A model of these nodes, whose operators all have the same weights."""
    rng, value = np.random.default_rng(7), helper.make_tensor_value_info
    shapes = {"W": (1, 4 * INPUT, INPUT), "R": (1, 4 * INPUT, INPUT)}
    arrays = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()
    ]
    arrays.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    inputs = [value("X", TensorProto.FLOAT, (STEPS, 1, INPUT)), value("yes", TensorProto.BOOL, ())]
    graph = helper.make_graph(nodes, "g", inputs, [value("Y", TensorProto.FLOAT, None)], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], functions=list(functions))
    onnx.save(model, path)
    return path


def test_onnx_nodes_of_the_same_name_are_told_apart(tmp_path):
    nodes = [
        node("LSTM", "X", "first", name="lstm"),
        helper.make_node("Squeeze", ["first", "one"], ["middle"]),
        node("LSTM", "middle", "Y", name="lstm"),
    ]
    assert below(graph_of(nodes, tmp_path / "x.onnx")) == {"first": (), "Y": ("first",)}


def test_onnx_operators_in_bodies_are_layers(tmp_path):
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = helper.make_graph([node("LSTM", "X", "inner", name="lstm")], "body", [], [value])
    nodes = [helper.make_node("If", ["yes"], ["Y"], name="choice", then_branch=body, else_branch=body)]
    upon = [helper.make_node("Squeeze", ["Y", "one"], ["y"]), node("LSTM", "y", "Z", name="upon")]
    path = graph_of(nodes + upon, tmp_path / "x.onnx")
    assert below(path) == {"choice/then_branch/lstm": (), "choice/else_branch/lstm": (), "upon": None}
    layer = checkpoints.read(path, layers=["choice/else_branch/lstm"]).layers[0]
    assert layer.assumed == ("that else_branch of choice, an If, runs",)


# Strangers


def test_configs_that_double_repeat_and_go_on(tmp_path):
    """What would take for ever, or all memory, if it were followed as it is written."""

    def layer(kind, name, calls, **config):
        calls = [[[given, 0, 0] for given in call] for call in calls]
        return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": calls}

    def read(layers):
        config = {"layers": layers, "input_layers": [["x", 0, 0]], "output_layers": []}
        return specs(json.dumps({"class_name": "Functional", "config": config}))

    first = [layer("InputLayer", "x", []), layer("LSTM", "0", [["x"]], return_sequences=True)]
    doubling = [layer("Concatenate", str(k), [[str(k - 1)] * 2], axis=-1) for k in range(1, 80)]
    assert read([*first, *doubling, layer("LSTM", "top", [["79"]])])["top"].below is None
    many = {"layers": [{"class_name": "LSTM", "config": {"name": str(k)}} for k in range(5000)]}
    repeated = layer("Sequential", "many", [["x"]] * 5000, **many)
    assert len(read([*first, repeated])) == 5001
    with pytest.raises(InputError, match="names of more than 1024 characters"):
        read([*first, layer("LSTM", "x" * 2000, [["x"]])])
    with pytest.raises(InputError, match=r"has a config of .* characters, expected at most"):
        specs(" " * 10**7)
