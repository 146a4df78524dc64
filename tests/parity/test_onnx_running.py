"""ONNX graphs that onnxruntime runs: layers on what the graph makes of the model's inputs, against torch."""

from __future__ import annotations

import functools
import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from oracles.models import log10_values
from oracles.refusals import told
from torch import nn

import gradscope
from gradscope.checkpoints.onnx import running as onnx_running

B, T, D, N = 2, 4, 3, 4


def batch(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape or (B, T, 5)).astype("float32")


def values(module, x, state, suffix=""):
    """log10 singular values of d(last state)/d(first state) of one sequence (T, d), by torch's autograd."""
    single = type(module)(x.shape[1], N, dtype=torch.float64)
    for role in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        weight = getattr(module, f"{role}_l0{suffix}").detach().double()
        setattr(single, f"{role}_l0", nn.Parameter(weight))
    x, count = torch.as_tensor(x).double(), 2 if isinstance(module, nn.LSTM) else 1

    def run(parts):
        state = tuple(part[None] for part in parts.split(N))
        last = single(x.flip(0) if suffix else x, state if count == 2 else state[0])[1]
        return torch.cat([one[0] for one in (last if count == 2 else (last,))])

    return log10_values(torch.autograd.functional.jacobian(run, torch.as_tensor(state).double()))


def check(path, inputs, expected, **choice):
    analysis = gradscope.analyze(checkpoint=path, inputs=inputs, **choice)
    for ours, theirs in zip(analysis.full.spectra, expected, strict=True):
        np.testing.assert_allclose(ours.log10_singular_values, theirs, rtol=0, atol=1e-4)
    return analysis.to_dict()


def refusal(path, inputs, **choice):
    return told(gradscope.analyze, checkpoint=path, inputs=inputs, **choice)


class Model(nn.Module):
    """Two layers with a Dense before each, the second from a state that the first's last one makes."""

    def __init__(self):
        super().__init__()
        self.front, self.lower = nn.Linear(5, D), nn.LSTM(D, N, batch_first=True, bidirectional=True)
        self.between, self.start = nn.Linear(2 * N, D), nn.Linear(2 * N, N)
        self.upper = nn.GRU(D, N, batch_first=True)

    def parts(self, x):
        """What the layers read, and the second's initial state."""
        read = torch.relu(self.front(x))
        y, (h, _) = self.lower(read)
        return read, torch.tanh(self.between(y)), torch.tanh(self.start(torch.cat([*h], -1)))

    def forward(self, x):
        _, read, start = self.parts(x)
        return self.upper(read, start[None])[0]


@functools.cache
def model():
    torch.manual_seed(0)
    return Model().eval()


def exported(module, path, example, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (example,), path, verbose=False, dynamo=False, input_names=["x"], **how)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    axes = {"dynamic_axes": {"x": {0: "batch", 1: "time"}}}
    return exported(model(), tmp_path_factory.mktemp("onnx") / "x.onnx", torch.as_tensor(batch()), **axes)


def expected():
    """Of every layer by the end of its name."""
    with torch.no_grad():
        lower, upper, start = model().parts(torch.as_tensor(batch()))
    zero = np.zeros(2 * N)
    return {
        "forward": [values(model().lower, one, zero) for one in lower],
        "backward": [values(model().lower, one, zero, "_reverse") for one in lower],
        "GRU": [values(model().upper, one, h) for one, h in zip(upper, start, strict=True)],
    }


def test_layers_behind_a_dense_and_a_state_that_the_graph_makes(path):
    for name, theirs in expected().items():
        found = check(path, batch(), theirs, layer=name)
        (said,) = found["problem"]["assumed"]
        assert said.startswith("onnxruntime ran the model's graph on the inputs")
        assert found["problem"]["initial_state"] == "recorded"
        begun = any("starts from a state that is not zero" in one for one in found["problem"]["not_applied"])
        assert begun == (name == "GRU")
    assert len(gradscope.analyze(checkpoint=path, inputs=batch()).layers) == 3


def test_the_command_line_and_one_sequence(path, run, tmp_path):
    np.save(tmp_path / "x.npy", batch()[0])
    code, out, err = run("analyze", path, "--inputs", tmp_path / "x.npy", "--layer", "GRU", "--json")
    assert code == 0, err
    ours = json.loads(out)
    theirs = expected()["GRU"][0]
    np.testing.assert_allclose(ours["chains"][0]["log10_singular_values"][0], theirs, rtol=0, atol=1e-4)
    assert ours["problem"]["inputs"] == str(tmp_path / "x.npy")
    assert ours["problem"]["steps"] == T


def test_what_a_layer_puts_out_is_compared(path, monkeypatch):
    whole = onnx_running._run

    def other(*given):
        return {name: one * 1.01 if name.endswith(".Y") else one for name, one in whole(*given).items()}

    monkeypatch.setattr(onnx_running, "_run", other)
    message = refusal(path, batch(), layer="GRU")
    assert "layer /upper/GRU puts out something else than cell gru with its weights" in message
    assert "at step 1 of sequence 0" in message


def test_a_layers_own_inputs_by_its_name(path):
    own = batch(B, T, D, seed=1)
    zero = np.zeros(2 * N)
    theirs = [values(model().lower, one, zero) for one in own]
    (said,) = check(path, own, theirs, layer="forward")["problem"]["assumed"]
    assert said.startswith("the inputs are what this layer itself reads")
    states = {"h0": np.ones((B, N))}
    theirs = [values(model().upper, one, np.ones(N)) for one in own]
    check(path, own, theirs, layer="GRU", initial_state=states)


def test_without_onnxruntime_it_is_said_that_it_would_do(path, monkeypatch):
    monkeypatch.setattr(onnx_running, "find_spec", lambda name: None)
    message = refusal(path, batch())
    assert "which gradscope does not compute" in message
    assert "or pip install onnxruntime (gradscope[onnx-run]): gradscope then runs the graph" in message


def test_inputs_that_do_not_fit(path):
    assert "the graph's input x is (batch, time, 5), and what is given has shape (2, 4, 6)" in refusal(
        path, batch(B, T, 6)
    )


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.front = nn.Embedding(9, 5), nn.Linear(5, D)
        self.gru = nn.GRU(D, N, batch_first=True)

    def forward(self, ids):
        return self.gru(torch.tanh(self.front(self.words(ids))))[0]


def test_token_ids(tmp_path):
    torch.manual_seed(1)
    module, ids = Tokens().eval(), np.array([[1, 5, 2, 8], [3, 3, 0, 7]])
    file = exported(module, tmp_path / "x.onnx", torch.as_tensor(ids))
    with torch.no_grad():
        read = torch.tanh(module.front(module.words(torch.as_tensor(ids))))
    check(file, ids, [values(module.gru, one, np.zeros(N)) for one in read])
    assert "x holds whole numbers" in refusal(file, ids + 0.5)


# Graphs made by hand


def graph(nodes, inputs, path, *, outputs=("Y",), tensors=None, opsets=()):
    """A model of an RNN that reads "read", with what comes before it; written to ``path``."""
    rng = np.random.default_rng(3)
    weights = {"W": rng.standard_normal((1, N, D)), "R": rng.standard_normal((1, N, N)) / 2, "M": np.eye(D)}
    tensors = {**weights, **(tensors or {})}
    initializers = [
        numpy_helper.from_array(a.astype("float32") if a.dtype == float else a, k) for k, a in tensors.items()
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    made = helper.make_graph(nodes, "g", inputs, ends, initializers)
    domains = [helper.make_opsetid("", 14), *(helper.make_opsetid(name, 1) for name in opsets)]
    onnx.save(helper.make_model(made, opset_imports=domains, ir_version=8), path)
    return path, {name: torch.as_tensor(a[0]) for name, a in weights.items() if name != "M"}


def rnn(*more):
    return helper.make_node("RNN", ["read", "W", "R", "", *more], ["Y"], name="rnn", hidden_size=N)


def test_lengths_and_several_inputs(tmp_path):
    """A graph that counts the tokens, and puts out less than the analysis wants."""
    nodes = [
        helper.make_node("MatMul", ["x", "M"], ["read"]),
        helper.make_node("ReduceSum", ["kept", "zeroth"], ["counted"], keepdims=0),
        helper.make_node("Cast", ["counted"], ["lengths"], to=TensorProto.INT32),
        rnn("lengths", "start"),
        helper.make_node("Sin", ["unused"], ["more"]),
    ]
    info = helper.make_tensor_value_info
    inputs = [
        info("x", TensorProto.FLOAT, (None, None, D)),
        info("kept", TensorProto.INT64, (None, None)),
        info("start", TensorProto.FLOAT, (1, None, N)),
        info("unused", TensorProto.FLOAT, (1,)),
    ]
    zeroth = {"zeroth": np.array([0])}
    path, weights = graph(nodes, inputs, tmp_path / "x.onnx", outputs=("Y", "more"), tensors=zeroth)
    x, start = batch(T, B, D), batch(1, B, N, seed=1)
    kept = np.array([[1, 1], [1, 1], [1, 0], [1, 0]])
    np.savez(tmp_path / "x.npz", x=x, kept=kept, start=start)

    def last(h, sequence):
        for step in sequence:
            h = torch.tanh(weights["W"].float().double() @ step + weights["R"].float().double() @ h)
        return h

    expected = []
    for k, length in enumerate((4, 2)):
        sequence, h = torch.as_tensor(x[:length, k]).double(), torch.as_tensor(start[0, k]).double()
        run = functools.partial(last, sequence=sequence)
        expected.append(log10_values(torch.autograd.functional.jacobian(run, h)))
    found = check(path, tmp_path / "x.npz", expected)["problem"]
    assert found["lengths"] == [4, 2]
    (said,) = found["not_applied"]
    assert said.startswith("it starts from a state that is not zero")
    np.savez(tmp_path / "less.npz", x=x, kept=kept)
    message = refusal(path, tmp_path / "less.npz")
    assert (
        "the graph has the inputs x, kept, start, and start are not given: give --inputs FILE.npz" in message
    )


LOOP = helper.make_graph(
    [
        helper.make_node("Identity", ["c"], ["go"]),
        helper.make_node("Add", ["v", "v"], ["w"]),
    ],
    "body",
    [
        helper.make_tensor_value_info("k", TensorProto.INT64, ()),
        helper.make_tensor_value_info("c", TensorProto.BOOL, ()),
        helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
    ],
    [
        helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
    ],
)
HOSTILE = {
    "memory": (
        [
            helper.make_node("ConstantOfShape", ["big"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
            helper.make_node("Add", ["x", "zero"], ["read"]),
        ],
        {"big": np.array([2**33])},
        (),
        "bytes of memory on the inputs: give fewer, or more --max-size",
    ),
    "time": (
        [helper.make_node("Loop", ["", "true", "x"], ["read"], body=LOOP)],
        {"true": np.array(True)},
        (),
        "its graph ran for 3 seconds on the inputs: give fewer",
    ),
    "operator": (
        [helper.make_node("Run", ["x"], ["read"], domain="theirs")],
        {},
        ("theirs",),
        "onnxruntime cannot run its graph on the inputs",
    ),
    "file": (
        [helper.make_node("MatMul", ["x", "M"], ["read"])],
        {},
        (),
        "is in '../secret', outside the model's folder",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_graphs(name, tmp_path, monkeypatch):
    nodes, tensors, opsets, said = HOSTILE[name]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (None, None, D))
    (folder := tmp_path / "model").mkdir()
    path, _ = graph([*nodes, rnn()], [x], folder / "x.onnx", tensors=tensors, opsets=opsets)
    if name == "file":
        (tmp_path / "secret").write_bytes(np.eye(D, dtype="float32").tobytes())
        made = onnx.load(path)
        (matrix,) = (tensor for tensor in made.graph.initializer if tensor.name == "M")
        matrix.data_location = TensorProto.EXTERNAL
        matrix.external_data.add(key="location", value="../secret")
        matrix.ClearField("raw_data")
        path.write_bytes(made.SerializeToString())
    monkeypatch.setattr(onnx_running, "_SECONDS", 3 if name == "time" else 60)
    message = refusal(path, batch(T, B, D))
    assert said in message
    assert message.count(str(path)) == 1


def test_weights_beside_the_model(tmp_path):
    """As large models are saved: what the graph needs of them too."""
    nodes = [helper.make_node("MatMul", ["x", "M"], ["read"]), rnn()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (None, None, D))
    path, _ = graph(nodes, [x], tmp_path / "x.onnx")
    whole = gradscope.analyze(checkpoint=path, inputs=batch(T, B, D)).full.spectra
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").is_file()
    beside = gradscope.analyze(checkpoint=path, inputs=batch(T, B, D)).full.spectra
    for one, other in zip(whole, beside, strict=True):
        np.testing.assert_array_equal(one.log10_singular_values, other.log10_singular_values)
