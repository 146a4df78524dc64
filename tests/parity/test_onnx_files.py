"""ONNX files: the layers of torch's exporters, and every form of the operators against onnxruntime."""

from __future__ import annotations

import itertools
import re
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from oracles.models import (
    HIDDEN,
    INPUT,
    STEPS,
    both_directions,
    check_spectrum,
    outputs,
    read_layer,
    sequence,
)

import gradscope
from gradscope import checkpoints
from gradscope.checkpoints.array_map import rules_of
from gradscope.errors import InputError

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
NUMBERS = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}


def operator(kind, path, *, sides=1, bias=True, peepholes=False, state=False, dtype=np.float32, **attributes):
    """A model of one operator with random weights, written to ``path``."""
    rng, rows = np.random.default_rng(7), GATES[kind] * HIDDEN
    shapes = {"W": (sides, rows, INPUT), "R": (sides, rows, HIDDEN)}
    shapes |= {"B": (sides, 2 * rows)} if bias else {}
    shapes |= {"h": (sides, 1, HIDDEN)} if state else {}
    shapes |= {"P": (sides, 3 * HIDDEN)} if peepholes else {}
    weights = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    inputs = ["X", "W", "R", "B" * bias, "", "h" * state, "", "P" * peepholes]
    node = helper.make_node(
        kind, inputs[: None if peepholes else 6], ["Y"], name="op", hidden_size=HIDDEN, **attributes
    )
    value, number = helper.make_tensor_value_info, NUMBERS[dtype]
    x, y = value("X", number, (STEPS, 1, INPUT)), value("Y", number, (STEPS, sides, 1, HIDDEN))
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "g", [x], [y], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), path)


def onnx_outputs(path, dtype=np.float32):
    """Y (T, sides, n) as onnxruntime computes it."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"X": sequence()[:, None].astype(dtype)})
    return y[:, :, 0]


OPERATORS = {
    "lstm": ("LSTM", {}),
    "lstm without bias": ("LSTM", {"bias": False}),
    "lstm-peephole": ("LSTM", {"peepholes": True}),
    "lstm-cifg": ("LSTM", {"input_forget": 1}),
    "lstm-cifg with peepholes": ("LSTM", {"input_forget": 1, "peepholes": True}),
    "lstm from a state": ("LSTM", {"state": True}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru without bias": ("GRU", {"linear_before_reset": 1, "bias": False}),
    "gru-reset-before": ("GRU", {}),
    "rnn": ("RNN", {}),
    "rnn-relu": ("RNN", {"activations": ["Relu"]}),
    "rnn-sigmoid": ("RNN", {"activations": ["Sigmoid"]}),
    "rnn-leaky_relu=0.01": ("RNN", {"activations": ["LeakyRelu"]}),
    "rnn-thresholded_relu": ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [1.0]}),
    "rnn-softplus": ("RNN", {"activations": ["Softplus"]}),
    "lstm-softsign-hard_sigmoid=0.2-elu": ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Elu"]}),
    "lstm-cifg-relu": ("LSTM", {"activations": ["Sigmoid", "Relu", "Relu"], "input_forget": 1}),
    "lstm-peephole-tanh-sigmoid-relu": (
        "LSTM",
        {"activations": ["Sigmoid", "Tanh", "Relu"], "peepholes": True},
    ),
    "gru-elu-hard_sigmoid=0.2": (
        "GRU",
        {"activations": ["HardSigmoid", "Elu"], "linear_before_reset": 1},
    ),
    "gru-reset-before-softsign": ("GRU", {"activations": ["Sigmoid", "Softsign"]}),
}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("name", OPERATORS)
def test_onnx_operator(name, direction, tmp_path):
    kind, options = OPERATORS[name]
    sides = 2 if direction == "bidirectional" else 1
    options = options | {
        key: value * sides for key, value in options.items() if key in ("activations", "activation_alpha")
    }
    operator(kind, tmp_path / "x.onnx", sides=sides, direction=direction, **options)
    expected = onnx_outputs(tmp_path / "x.onnx")
    names = ["op.forward", "op.backward"] if sides == 2 else ["op"]
    for side, layer_name in enumerate(names):
        layer = read_layer(tmp_path / "x.onnx", layer=layer_name)
        assert layer.cell.name == name.partition(" ")[0]
        backward = side == 1 or direction == "reverse"
        assert layer.direction == ("backward" if backward else "forward")
        ours = outputs(layer, sequence().astype(np.float32).astype(float))
        np.testing.assert_allclose(ours[:: -1 if backward else 1], expected[:, side], rtol=3e-6, atol=3e-6)


def test_onnx_activations_take_their_numbers_in_their_order(tmp_path):
    """Each the next alpha and the next beta, if it has such; both directions from the same lists."""
    names = ["ScaledTanh", "HardSigmoid", "Elu", "LeakyRelu"]
    given = {"activation_alpha": [0.5, 1 / 6, 0.25, 0.1], "activation_beta": [2.0, 0.4]}
    options = {"activations": names, "linear_before_reset": 1} | given
    operator("GRU", tmp_path / "x.onnx", sides=2, direction="bidirectional", **options)
    expected = onnx_outputs(tmp_path / "x.onnx")
    cells = ["gru-hard_sigmoid=1/6,0.4-scaled_tanh=0.5,2", "gru-leaky_relu=0.1-elu=0.25"]
    for side, (cell, name) in enumerate(zip(cells, ("op.forward", "op.backward"), strict=True)):
        layer = read_layer(tmp_path / "x.onnx", layer=name)
        assert layer.cell.name == cell
        ours = outputs(layer, sequence().astype(np.float32).astype(float))
        np.testing.assert_allclose(ours[:: -1 if side else 1], expected[:, side], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["lstm", "lstm-peephole", "lstm-cifg with peepholes", "gru", "gru-reset-before"]
)
def test_onnx_jacobian(name, tmp_path):
    """Against torch's autograd of the equations in the specification of ONNX, on the file's arrays."""
    kind, options = OPERATORS[name]
    operator(kind, tmp_path / "x.onnx", dtype=np.float64, **options)
    model = onnx.load(tmp_path / "x.onnx")
    arrays = {t.name: torch.tensor(numpy_helper.to_array(t)[0]) for t in model.graph.initializer}
    parts = 2 if kind == "LSTM" else 1

    def run(state):
        for x in torch.tensor(sequence()[:2]):
            state = specified(name, arrays, x, *state.chunk(parts))
        return state

    zeros = torch.zeros(parts * HIDDEN, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(run, zeros).numpy()
    check_spectrum(tmp_path / "x.onnx", jacobian, inputs=sequence()[:2])


def specified(name, arrays, x, *state):
    """One step as the specification of the operators writes it; a state is (c, h) or (h)."""
    h = state[-1]
    wb, rb = arrays["B"].chunk(2)
    w, r = (arrays["W"] @ x + wb).split(HIDDEN), arrays["R"].split(HIDDEN)
    rb = rb.split(HIDDEN)
    if len(state) == 2:
        p = arrays.get("P", torch.zeros(3 * HIDDEN, dtype=torch.float64)).chunk(3)
        i, o, f, c = (w[k] + r[k] @ h + rb[k] for k in range(4))
        i, f = torch.sigmoid(i + p[0] * state[0]), torch.sigmoid(f + p[2] * state[0])
        f = 1 - i if "cifg" in name else f
        new = f * state[0] + i * torch.tanh(c)
        return torch.cat([new, torch.sigmoid(o + p[1] * new) * torch.tanh(new)])
    z, reset = (torch.sigmoid(w[k] + r[k] @ h + rb[k]) for k in (0, 1))
    inside = reset * (r[2] @ h + rb[2]) if name == "gru" else r[2] @ (reset * h) + rb[2]
    return (1 - z) * torch.tanh(w[2] + inside) + z * h


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("dtype", NUMBERS, ids=lambda t: t.__name__)
def test_onnx_numbers_are_read_exactly(dtype, raw, tmp_path):
    operator("LSTM", tmp_path / "x.onnx", dtype=dtype)
    model = onnx.load(tmp_path / "x.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "R")
    expected = numpy_helper.to_array(tensor)[0].astype(float)
    if not raw:
        typed = helper.make_tensor("R", tensor.data_type, tensor.dims, expected.ravel().astype(dtype))
        tensor.CopyFrom(typed)
        onnx.save(model, tmp_path / "x.onnx")
    layer = read_layer(tmp_path / "x.onnx")
    np.testing.assert_array_equal(layer.parameters["R_o"], expected[HIDDEN : 2 * HIDDEN])
    assert layer.dtype == np.dtype(dtype).name


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("LSTM", {"clip": 3.0}, "has clip, for which gradscope has no LSTM"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh"]}, "has 2 activations, expected 3 for each direction"),
        ("GRU", {"activations": ["Sigmoid", "Gelu"]}, "has activation 'gelu', which ONNX' recurrent"),
        ("RNN", {"activations": ["Affine"]}, "affine without its activation_alpha and activation_beta, for"),
        ("RNN", {"activations": ["ThresholdedRelu"]}, "thresholdedrelu without its activation_alpha, for"),
        (
            "RNN",
            {"activations": ["Elu"], "activation_alpha": [float("inf")]},
            "has inf as alpha or beta of an activation",
        ),
    ],
)
def test_onnx_operators_without_a_cell(kind, options, words, tmp_path):
    operator(kind, tmp_path / "x.onnx", **options)
    (found,) = checkpoints.read_all(tmp_path / "x.onnx").layers
    assert words in found.problem
    with pytest.raises(InputError, match=words):
        read_layer(tmp_path / "x.onnx")


# torch's exporters


class Model(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = torch.nn.Linear(HIDDEN * (2 if layer.bidirectional else 1), 2)

    def forward(self, x):
        states = self.layer(x)[0]
        return self.head(states), states


def exported(module, path, dynamo):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.zeros(STEPS, 1, INPUT)
        torch.onnx.export(Model(module), (example,), path, dynamo=dynamo, verbose=False)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_onnx_of_a_torch_stack(kind, dynamo, tmp_path):
    torch.manual_seed(5)
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind]
    module = make(INPUT, HIDDEN, num_layers=2, bidirectional=True)
    exported(module, tmp_path / "x.onnx", dynamo)
    found = checkpoints.read_all(tmp_path / "x.onnx").layers
    assert [(f.label, f.depth, f.direction) for f in found] == list(
        itertools.product([kind], [0, 1], ["forward", "backward"])
    )
    x = sequence().astype(np.float32)
    layers = [f.settle() for f in found]
    below = both_directions(*layers[:2], x.astype(float))
    expected = module(torch.as_tensor(x))[0].detach().numpy()
    np.testing.assert_allclose(both_directions(*layers[2:], below), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("first", "dynamo"), [(False, False), (False, True), (True, False)])
def test_the_graph_says_which_axis_is_time(first, dynamo, tmp_path):
    """Of arrays as the model itself takes them, against autograd."""
    torch.manual_seed(0)
    module = torch.nn.GRU(INPUT, HIDDEN, batch_first=first)
    x = torch.randn(2, STEPS, INPUT) if first else torch.randn(STEPS, 2, INPUT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), tmp_path / "x.onnx", dynamo=dynamo, verbose=False)
    analysis = gradscope.analyze(checkpoint=tmp_path / "x.onnx", inputs=x.numpy(), only="gain")
    assert analysis.problem["steps"] == STEPS
    said = "axis 0 of the inputs is time, as the model takes them, (T, B, d): 2 sequences of"
    assert [one.startswith(said) for one in analysis.problem["assumed"]] == [True] * (not first)
    for k, spectrum in enumerate(analysis.full.spectra):
        alone = x[k] if first else x[:, k]
        jacobian = torch.autograd.functional.jacobian(
            lambda h, alone=alone: module(alone, h[None])[1][0], torch.zeros(HIDDEN)
        )
        gain = np.log10(np.linalg.norm(jacobian.double().numpy(), 2))
        np.testing.assert_allclose(spectrum.log10_singular_values[0], gain, rtol=0, atol=1e-5)
    if first:
        with pytest.raises(InputError, match="but the model takes"):
            gradscope.analyze(checkpoint=tmp_path / "x.onnx", inputs=x.numpy(), time_major=True)


def test_inputs_that_the_graph_makes_whole_numbers(tmp_path):
    """What a layer reads then is not what the model is given; a cast between floats leaves it."""
    operator("GRU", tmp_path / "x.onnx")
    for types, front in (([TensorProto.INT32, TensorProto.FLOAT], True), ([TensorProto.FLOAT], False)):
        model = onnx.load(tmp_path / "x.onnx")
        casts = [
            helper.make_node("Cast", [f"x{k}" if k else "X"], [f"x{k + 1}"], to=to)
            for k, to in enumerate(types)
        ]
        model.graph.node[0].input[0] = f"x{len(types)}"
        nodes = [*casts, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.save(model, tmp_path / "y.onnx")
        (found,) = checkpoints.read_all(tmp_path / "y.onnx").layers
        assert (found.below is None) == front


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"direction": "backward"}, "has direction 'backward', expected forward, reverse, bidirectional"),
        ({"sides": 2}, r"W has shape \(2, .*expected one row of weights per direction"),
    ],
)
def test_operators_that_onnxruntime_refuses(options, words, tmp_path):
    operator("GRU", tmp_path / "x.onnx", **options)
    with pytest.raises(Exception, match=r"INVALID_ARGUMENT|FAIL|direction"):
        onnx_outputs(tmp_path / "x.onnx")
    with pytest.raises(InputError, match=words):
        read_layer(tmp_path / "x.onnx")


def test_onnx_of_an_unrolled_rnn_is_refused(tmp_path):
    exported(torch.nn.RNN(INPUT, HIDDEN), tmp_path / "x.onnx", dynamo=True)
    with pytest.raises(InputError, match=r"holds no operator LSTM, GRU or RNN .*: export it with its"):
        read_layer(tmp_path / "x.onnx")


def with_lengths(path, numbers=None, kind="GRU"):
    """A model whose operator has sequence_lens: a constant, or an input of the graph."""
    operator(kind, path)
    model = onnx.load(path)
    model.graph.node[0].input[4] = "lengths"
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    if numbers is None:
        model.graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, (None,)))
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int32), "lengths"))
    onnx.save(model, path)
    return path


def test_lengths_that_are_constants_of_the_graph(tmp_path):
    """Each sequence ends where sequence_lens says, as with onnxruntime, if --lengths says nothing else."""
    path, lengths = with_lengths(tmp_path / "x.onnx", [STEPS - 2, STEPS]), [STEPS - 2, STEPS]
    x = np.stack([sequence(), 2 * sequence()]).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(path).run(None, {"X": x.swapaxes(0, 1)})
    ours = [
        outputs(read_layer(path), one[:steps].astype(float)) for one, steps in zip(x, lengths, strict=True)
    ]
    for k, (one, steps) in enumerate(zip(ours, lengths, strict=True)):
        np.testing.assert_allclose(one, y[:steps, 0, k], rtol=0, atol=2e-6)
        assert not y[steps:, 0, k].any()  # there are no such steps
    found = gradscope.analyze(checkpoint=path, inputs=x, only="verdict")
    assert found.problem["lengths"] == lengths
    told = gradscope.analyze(checkpoint=path, inputs=x, lengths=[STEPS, 1], only="verdict")
    assert told.problem["lengths"] == [STEPS, 1]
    assert gradscope.analyze(checkpoint=path, only="verdict").problem["lengths"] == lengths
    with pytest.raises(InputError, match="got 2 lengths for 1 sequence"):
        gradscope.analyze(checkpoint=path, inputs=x[0])


def test_lengths_that_the_graph_is_given(tmp_path):
    """The user says them, or gives what onnxruntime runs the graph on; of drawn inputs it is said."""
    path, x = with_lengths(tmp_path / "x.onnx"), np.stack([sequence(), sequence()])
    gate = {"checkpoint": path, "only": "verdict"}
    lengths = [STEPS - 1, 2]
    assert gradscope.analyze(**gate, inputs=x, lengths=lengths).problem["lengths"] == lengths
    np.savez(tmp_path / "x.npz", X=x.swapaxes(0, 1), lengths=lengths)
    assert gradscope.analyze(**gate, inputs=tmp_path / "x.npz").problem["lengths"] == lengths
    drawn = gradscope.analyze(**gate, steps=3)
    assert drawn.problem["assumed"] == ["that every sequence has all steps, which lengths tells"]
    asked = "lengths tells how many steps each sequence has: give these as --lengths"
    assert checkpoints.read_all(path).layers[0].open == asked
    with pytest.raises(InputError, match=asked):  # no graph is run where a state is given
        gradscope.analyze(**gate, inputs=x, initial_state={"h0": np.zeros((2, HIDDEN))})


def test_layers_that_do_not_end_together(tmp_path):
    model = onnx.load(with_lengths(tmp_path / "x.onnx", [2]))
    model.graph.node.add().CopyFrom(model.graph.node[0])
    model.graph.node[1].name, model.graph.node[1].output[0], model.graph.node[1].input[4] = "all", "Z", ""
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(InputError, match=r"do not read as many steps \(op 2; all all\): choose with --layer"):
        gradscope.analyze(checkpoint=tmp_path / "x.onnx")


@pytest.mark.parametrize("constant", [True, False])
def test_a_graph_whose_exporter_lost_the_projection(constant, tmp_path):
    """torch's newer exporter writes R as if what is projected were all units, and c of all of these."""
    operator("LSTM", tmp_path / "x.onnx", state=True)
    model, shape = onnx.load(tmp_path / "x.onnx"), (1, 1, 2 * HIDDEN)
    model.graph.node[0].input.append("c")
    if constant:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, "f4"), "c"))
    else:
        model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, shape))
        model.graph.node.insert(0, helper.make_node("Sin", ["X"], ["c"]))
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(InputError, match=f"R of {HIDDEN} units and an initial state 'c' of {2 * HIDDEN}: no"):
        read_layer(tmp_path / "x.onnx")


def test_a_cell_that_the_graph_spells_out(tmp_path):
    """Without an operator there are the constants, of which inspect offers maps."""
    cell = torch.nn.GRUCell(INPUT, HIDDEN)
    names = {"weight_ih": "w_x", "weight_hh": "w_h", "bias_ih": "b_x", "bias_hh": "b_h"}
    weights = [numpy_helper.from_array(cell.state_dict()[k].numpy(), f"rnn.{n}") for k, n in names.items()]
    node = helper.make_node("Gemm", ["x", "rnn.w_x", "rnn.b_x"], ["y"], transB=1)
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    graph = helper.make_graph([node], "g", sides[:1], sides[1:], weights)
    onnx.save(helper.make_model(graph), tmp_path / "x.onnx")
    (found,) = checkpoints.read_all(tmp_path / "x.onnx").layers
    maps = re.findall("--map '([^']*)'", found.problem)
    layers = [read_layer(tmp_path / "x.onnx", rules=rules_of(one)) for one in maps]
    assert all("no step is masked: of a model whose arrays are mapped" in one.assumed[-1] for one in layers)
    x, state, expected = sequence(), torch.zeros(1, HIDDEN), []
    with torch.no_grad():
        for step in torch.tensor(x, dtype=torch.float32):
            expected.append((state := cell(step[None], state))[0].numpy())
    fitting = [layer for layer in layers if layer.input_size == INPUT]
    right = [np.allclose(outputs(layer, x), expected, rtol=0, atol=1e-6) for layer in fitting]
    assert right.count(True) == 1
