"""ONNX graphs as they are found, against onnxruntime: bodies, functions, made weights, whole numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from oracles.models import HIDDEN, INPUT, STEPS, both_directions, outputs, read_layer, sequence

import gradscope
from gradscope import checkpoints
from gradscope.errors import InputError

RNG = np.random.default_rng(11)
W = RNG.standard_normal((1, 4 * HIDDEN, INPUT)).astype(np.float32)
R = RNG.standard_normal((1, 4 * HIDDEN, HIDDEN)).astype(np.float32)
X = sequence().astype(np.float32)
value, make = helper.make_tensor_value_info, helper.make_node


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def lstm(x="X", y="Y", w="W", r="R", **options):
    return make("LSTM", [x, w, r], [y], hidden_size=HIDDEN, **options)


def model_of(nodes, path, constants=(), functions=(), inputs=(), given="Y"):
    """A model with W, R and X, checked as ONNX has it."""
    stored = [constant("W", W), constant("R", R), *constants]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("X", TensorProto.FLOAT, (STEPS, 1, INPUT)), *inputs],
        [value(given, TensorProto.FLOAT, None)],
        stored,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)
    onnx.save(model, path)
    return path


def run(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"X": X[:, None]} | inputs)[0]


def close(layer, expected):
    np.testing.assert_allclose(outputs(layer, X.astype(float)), expected, rtol=0, atol=2e-6)


def test_layers_in_the_branches_of_an_if(tmp_path):
    """Weights of outside and of the branch; one stands upon another within it."""
    own = constant("V", 2 * R)
    yes = helper.make_graph([lstm(y="a")], "yes", [], [value("a", TensorProto.FLOAT, None)])
    nodes = [
        lstm(y="low", r="V", name="low"),
        make("Squeeze", ["low", "one"], ["low1"]),
        make("LSTM", ["low1", "U", "R"], ["b"], name="high", hidden_size=HIDDEN),
    ]
    no = helper.make_graph(nodes, "no", [], [value("b", TensorProto.FLOAT, None)], [own])
    choice = make("If", ["which"], ["Y"], name="choice", then_branch=yes, else_branch=no)
    constants = [constant("one", np.array([1])), constant("U", R / 2)]
    flag = value("which", TensorProto.BOOL, ())
    path = model_of([choice], tmp_path / "x.onnx", constants, inputs=[flag])
    found = {one.name: one for one in checkpoints.read_all(path).layers}
    assert {name: one.below for name, one in found.items()} == {"low": (), "high": ("low",), "a": ()}
    assert found["a"].assumed == ("that then_branch of choice, an If, runs",)
    close(read_layer(path, layer="a"), run(path, which=np.array(True))[:, 0, 0])
    low, high = (read_layer(path, layer=name) for name in ("low", "high"))
    np.testing.assert_allclose(
        outputs(high, outputs(low, X.astype(float))), run(path, which=np.array(False))[:, 0, 0], atol=2e-6
    )
    assert gradscope.analyze(checkpoint=path, layer="high", inputs=X).problem["layer"] == "high"


def test_a_layer_in_a_loop_reads_what_every_pass_gives_it(tmp_path):
    """The state goes round, so it is to be given; what stands outside is no sequence of the loop's."""
    body = helper.make_graph(
        [
            make("Identity", ["go"], ["on"]),
            make("Gather", ["X", "i"], ["x"], axis=0),
            make("Unsqueeze", ["x", "zero"], ["x1"]),
            make("LSTM", ["x1", "W", "R", "", "", "h"], ["y", "h2"], name="inner", hidden_size=HIDDEN),
        ],
        "body",
        [
            value("i", TensorProto.INT64, ()),
            value("go", TensorProto.BOOL, ()),
            value("h", TensorProto.FLOAT, None),
        ],
        [value("on", TensorProto.BOOL, ()), value("h2", TensorProto.FLOAT, None)],
    )
    constants = [constant("zero", np.array([0])), constant("h0", np.zeros((1, 1, HIDDEN), np.float32))]
    constants += [constant("T", np.array(STEPS)), constant("go0", np.array(True))]
    loop = make("Loop", ["T", "go0", "h0"], ["Y"], name="loop", body=body)
    path = model_of([loop], tmp_path / "x.onnx", constants)
    assert run(path).shape == (1, 1, HIDDEN)
    (found,) = checkpoints.read_all(path).layers
    assert (found.name, found.below, found.reads, found.given_state) == ("inner", None, "x1", True)
    assert found.assumed == (
        "that every pass of loop, a Loop, is a step of what it is given",
        "that a pass starts from the state in which the one before ended, whatever the loop makes of it",
    )
    with pytest.raises(InputError, match="layer inner reads x1, which gradscope does not compute: give that"):
        gradscope.analyze(checkpoint=path, inputs=X)


def test_functions_are_layers_wherever_they_are_called(tmp_path):
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inside = [
        make("LSTM", ["x", "w", "r"], ["y0"], name="core"),
        make("Squeeze", ["y0", "axes"], ["y"]),
    ]
    inside[0].attribute.append(onnx.AttributeProto(name="hidden_size", ref_attr_name="size", type=2))
    axes = make("Constant", [], ["axes"], value_ints=[1])
    inner = helper.make_function("own", "Inner", ["x", "w", "r"], ["y"], [axes, *inside], opsets, ["size"])
    call = make("Inner", ["a", "b", "c"], ["d"], domain="own", size=HIDDEN)
    outer = helper.make_function("own", "Outer", ["a", "b", "c"], ["d"], [call], opsets)
    nodes = [
        make("Outer", ["X", "W", "R"], ["low"], name="first", domain="own"),
        make("Outer", ["low", "U", "R"], ["Y"], name="second", domain="own"),
    ]
    path = model_of(nodes, tmp_path / "x.onnx", [constant("U", R / 2)], [inner, outer])
    first, second = checkpoints.read_all(path).layers
    assert (first.name, second.name) == ("first/d/core", "second/d/core")
    assert (first.below, second.below) == ((), ("first/d/core",))
    low, high = first.settle(), second.settle()
    np.testing.assert_allclose(outputs(high, outputs(low, X.astype(float))), run(path)[:, 0], atol=2e-6)


# Chains of operators that end in W, from constants; and nothing of what they begin with is W itself.
TURNED = np.ascontiguousarray(W[0].T)
MADE = {
    "Unsqueeze": ([make("Unsqueeze", ["a", "i0"], ["W2"])], {"a": W[0]}),
    "Squeeze": ([make("Squeeze", ["a", "i0"], ["W2"])], {"a": W[None]}),
    "Identity": ([make("Identity", ["a"], ["b"]), make("Identity", ["b"], ["W2"])], {"a": W}),
    "Transpose": (
        [make("Transpose", ["a"], ["b"], perm=[2, 1, 0]), make("Reshape", ["b", "s"], ["W2"])],
        {"a": W.T, "s": np.array([0, -1, INPUT])},
    ),
    "Concat": ([make("Concat", ["a", "b"], ["W2"], axis=1)], {"a": W[:, :HIDDEN], "b": W[:, HIDDEN:]}),
    "Slice": (
        [make("Slice", ["a", "i0", "end"], ["W2"])],
        {"a": np.concatenate([W, W]), "end": np.array([1])},
    ),
    "Slice of steps": (
        [make("Slice", ["a", "start", "end", "axes", "steps"], ["W2"])],
        {
            "a": W[:, ::-1],
            "start": np.array([-1]),
            "end": np.array([-(2**31)]),
            "axes": np.array([1]),
            "steps": np.array([-1]),
        },
    ),
    "Split": (
        [make("Split", ["a", "s"], ["no", "W2"], axis=1)],
        {"a": np.concatenate([R[..., :INPUT], W], 1), "s": np.array([4 * HIDDEN, 4 * HIDDEN])},
    ),
    "Split in halves": (
        [make("Split", ["a"], ["W2", "no"], axis=1)],
        {"a": np.concatenate([W, W[:, ::-1]], 1)},
    ),
    "Gather": (
        [make("Gather", ["a", "k"], ["W2"], axis=0)],
        {"a": np.concatenate([-W, W]), "k": np.array([-1])},
    ),
    "Cast": ([make("Cast", ["a"], ["W2"], to=1)], {"a": W.astype(np.float64)}),
    "Flatten": ([make("Flatten", ["a"], ["b"], axis=2), make("Unsqueeze", ["b", "i0"], ["W2"])], {"a": W}),
    "Expand": (
        [make("Expand", ["a", "s"], ["b"]), make("Mul", ["b", "c"], ["W2"])],
        {"a": np.ones((1, 1), np.float32), "s": np.array(W.shape), "c": W},
    ),
    "ConstantOfShape": (
        [
            make("Shape", ["c"], ["s"]),
            make("ConstantOfShape", ["s"], ["b"], value=helper.make_tensor("v", 1, [1], [0.5])),
            make("Add", ["b", "c"], ["W2"]),
        ],
        {"c": W},
    ),
    "Constant": (
        [make("Constant", [], ["b"], value_float=2.0), make("Mul", ["a", "b"], ["W2"])],
        {"a": W / 2},
    ),
    "DequantizeLinear": (
        [make("DequantizeLinear", ["q", "d", "z"], ["W2"])],
        {"q": np.rint(W * 40).astype(np.int8), "d": np.float32(0.025), "z": np.int8(3)},
    ),
    "DequantizeLinear of rows": (
        [make("DequantizeLinear", ["q", "d", "z"], ["W2"], axis=1)],
        {
            "q": np.rint(W * 40 + 128).astype(np.uint8),
            "d": np.linspace(0.01, 0.03, 4 * HIDDEN).astype(np.float32),
            "z": np.arange(120, 120 + 4 * HIDDEN).astype(np.uint8),
        },
    ),
    "QuantizeLinear": (
        [make("QuantizeLinear", ["a", "d", "z"], ["q"]), make("DequantizeLinear", ["q", "d", "z"], ["W2"])],
        {"a": W, "d": np.float32(0.025), "z": np.uint8(128)},
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_weights_are_made_of_constants_as_onnxruntime_makes_them(name, tmp_path):
    nodes, arrays = MADE[name]
    constants = [constant(n, a) for n, a in arrays.items()] + [constant("i0", np.array([0]))]
    path = model_of([*nodes, lstm(w="W2")], tmp_path / "x.onnx", constants, given="W2")
    expected = run(path)[0]
    (found,) = checkpoints.read_all(path).layers
    ours = np.concatenate([found.arrays[f"W_{gate}"] for gate in "iofz"])
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert "R" in found.keys
    assert "W2" not in found.keys


def test_weights_that_the_graph_computes_are_said_to_be(tmp_path):
    path = model_of([make("Softmax", ["W"], ["S"]), lstm(w="S")], tmp_path / "x.onnx")
    with pytest.raises(
        InputError, match=r"has weights that the graph computes \('S' by Softmax\), expected co"
    ):
        read_layer(path)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_dynamically_quantised_lstm(kind, per_channel, tmp_path):
    """Weights within half a unit of the last of the 8 bits; outputs as far as such weights and inputs go."""
    rng, sides = np.random.default_rng(5), 2
    arrays = {"W": (sides, 4 * HIDDEN, INPUT), "R": (sides, 4 * HIDDEN, HIDDEN), "B": (sides, 8 * HIDDEN)}
    stored = {name: rng.uniform(-0.7, 0.7, shape).astype(np.float32) for name, shape in arrays.items()}
    node = make("LSTM", ["X", *stored], ["Y"], name="op", hidden_size=HIDDEN, direction="bidirectional")
    graph = helper.make_graph(
        [node],
        "g",
        [value("X", TensorProto.FLOAT, (STEPS, 1, INPUT))],
        [value("Y", TensorProto.FLOAT, None)],
        [constant(name, array) for name, array in stored.items()],
    )
    plain, path = tmp_path / "plain.onnx", tmp_path / "x.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), plain)
    quantize_dynamic(plain, path, weight_type=kind, per_channel=per_channel)
    assert onnx.load(path).graph.node[0].op_type == "DynamicQuantizeLSTM"
    kept = next(
        str(numpy_helper.to_array(t).dtype) for t in onnx.load(path).graph.initializer if "R_q" in t.name
    )
    layers = [found.settle() for found in checkpoints.read_all(path).layers]
    for side, layer in enumerate(layers):
        rows = dict(zip("iofz", np.split(stored["R"][side], 4), strict=True))
        for gate, expected in rows.items():
            assert np.abs(layer.parameters[f"R_{gate}"] - expected).max() < 0.7 / 254 * 1.01
        assert layer.dtype == kept
        assert "whole numbers of 8 bits" in layer.assumed[0]
        assert "rounds inputs and outputs to 8 bits" in layer.not_applied[0]
    expected = run(path)[:, :, 0].reshape(STEPS, 2 * HIDDEN)
    np.testing.assert_allclose(both_directions(*layers, X.astype(float)), expected, atol=0.02)
    analysis = gradscope.analyze(checkpoint=path, inputs=X)
    assert "assumed" in analysis.to_dict()["layers"][0]["problem"]


def test_operators_of_onnxruntime_without_a_cell_are_named(tmp_path):
    node = make("AttnLSTM", ["X", "W", "R"], ["Y"], domain="com.microsoft", hidden_size=HIDDEN)
    with pytest.raises(
        InputError, match="is an AttnLSTM, which reads a memory in every step: there is no such"
    ):
        read_layer(model_of([node], tmp_path / "x.onnx"))
