"""What stands between a model's input and a recurrent layer: never skipped, asked for, said by inspect."""

from __future__ import annotations

import warnings

import jax
import jsonschema
import keras
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from oracles.keras_cells import saved
from oracles.models import HIDDEN, INPUT, STEPS, read_layer, sequence

import gradscope
from gradscope import checkpoints
from gradscope.cli.main import main
from gradscope.errors import InputError
from gradscope.report.inspection import inspect
from gradscope.report.inspection_table import render_contents
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look
from gradscope.schemas import schema

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
L = keras.layers
ASKS = r"layer {} reads {}, which gradscope does not compute: give that, {} features, as --inputs"


def built(*layers, shape=(STEPS, INPUT), dtype="float32"):
    """A Keras model with weights away from their initial values."""
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *layers])
    rng = np.random.default_rng(5)
    model.set_weights([rng.standard_normal(w.shape) * 0.5 for w in model.get_weights()])
    return model


def keras_gain(cell, inputs):
    """log10 sigma_1 of the product of a cell's one-step Jacobians on inputs (T, d), by jax' own autograd."""
    values = [v.value for v in cell.trainable_variables], [v.value for v in cell.non_trainable_variables]

    @jax.jit
    def step(states, x):
        return cell.stateless_call(*values, x[None], states)[0][1]

    @jax.jit
    def jacobian(states, x):
        count, blocks = len(states), jax.jacobian(step)(states, x)
        rows = [jax.numpy.concatenate([blocks[i][j][0, :, 0] for j in range(count)], 1) for i in range(count)]
        return jax.numpy.concatenate(rows, 0)

    states = [jax.numpy.zeros((1, size)) for size in np.atleast_1d(cell.state_size)]
    product = np.eye(sum(np.atleast_1d(cell.state_size)))
    for x in jax.numpy.asarray(inputs):
        product = np.asarray(jacobian(states, x)) @ product
        states = step(states, x)
    return np.log10(np.linalg.norm(product, 2))


def gain(checkpoint, **options):
    return gradscope.analyze(checkpoint=checkpoint, **options).full.log10_norm.median


FRONTS = {
    "time_distributed": lambda: L.TimeDistributed(L.Dense(INPUT, activation="tanh"), name="front"),
    "dense": lambda: L.Dense(INPUT, name="front"),
    "conv": lambda: L.Conv1D(INPUT, 3, padding="same", name="front"),
    "normalised": lambda: L.LayerNormalization(name="front"),
    "relu": lambda: L.Activation("relu", name="front"),
    "turned": lambda: L.Permute((2, 1), name="front"),
}


@pytest.mark.parametrize("name", FRONTS)
def test_keras_front_ends_are_asked_for(name, tmp_path):
    """Sizes agree in all of them."""
    shape = (INPUT, INPUT) if name == "turned" else (STEPS, INPUT)
    x = sequence()[: shape[0]].astype(np.float32)
    model = built(FRONTS[name](), L.Dropout(0.5), L.LSTM(HIDDEN, name="lstm"), shape=shape)
    own = np.asarray(model.layers[0](x[None]))[0]
    for checkpoint in (saved(model, tmp_path / "x.keras"), saved(model, tmp_path / "x.h5"), model):
        checkpoint = gradscope.from_keras(model) if checkpoint is model else checkpoint
        for given in ({"inputs": x}, {}, {"layer": "lstm"}):
            with pytest.raises(InputError, match=ASKS.format("lstm", "front", INPUT)):
                gradscope.analyze(checkpoint=checkpoint, **given)
        found = gain(checkpoint, inputs=own, layer="lstm")
        assert found == pytest.approx(keras_gain(model.layers[-1].cell, own), abs=1e-4)


IDENTITIES = {
    "dropouts": lambda: [
        L.Dropout(0.5),
        L.SpatialDropout1D(0.5),
        L.GaussianDropout(0.5),
        L.AlphaDropout(0.1),
    ],
    "noise": lambda: [L.GaussianNoise(1.0), L.ActivityRegularization(0.1), L.Identity()],
    "linear": lambda: [L.Activation("linear"), L.TimeDistributed(L.Dropout(0.3))],
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_keras_layers_that_do_nothing_at_inference(name, tmp_path):
    model = built(*IDENTITIES[name](), L.GRU(HIDDEN, name="gru"))
    x = sequence().astype(np.float32)
    expected = keras_gain(model.layers[-1].cell, x)
    for checkpoint in (saved(model, tmp_path / "x.keras"), gradscope.from_keras(model)):
        assert gain(checkpoint, inputs=x) == pytest.approx(expected, abs=1e-4)


def read_below(checkpoint):
    return {found.name: found.below for found in checkpoints.read_all(checkpoint).layers}


def test_directions_behind_a_front_end_read_the_same(tmp_path):
    model = built(L.Dense(INPUT, name="front"), L.Bidirectional(L.LSTM(HIDDEN, name="a"), name="both"))
    x = sequence().astype(np.float32)
    own = np.asarray(model.layers[0](x[None]))[0]
    path = saved(model, tmp_path / "x.keras")
    together = gradscope.analyze(checkpoint=path, layer="both", inputs=own)
    assert [one.problem["direction"] for one in together.layers] == ["forward", "backward"]
    both = model.layers[-1]
    cells = {"forward": (both.forward_layer.cell, own), "backward": (both.backward_layer.cell, own[::-1])}
    for one in together.layers:
        expected = keras_gain(*cells[one.problem["direction"]])
        assert one.full.log10_norm.median == pytest.approx(expected, abs=1e-4)


def test_a_stack_behind_a_front_end_begins_with_the_layer_that_is_named(tmp_path):
    model = built(
        L.Dense(INPUT, name="front"), L.GRU(HIDDEN, return_sequences=True, name="a"), L.GRU(2, name="b")
    )
    path = saved(model, tmp_path / "x.keras")
    own = np.asarray(model.layers[0](sequence().astype(np.float32)[None]))[0]
    with pytest.raises(InputError, match=ASKS.format("a", "front", INPUT)):
        gradscope.analyze(checkpoint=path, inputs=own, layer="b")
    assert len(gradscope.analyze(checkpoint=path, inputs=own, layer=["a", "b"]).layers) == 2


class Own(keras.Model):
    """Code of its own: what the layer reads is in it alone."""

    def __init__(self):
        super().__init__()
        self.front, self.lstm = L.Dense(INPUT), L.LSTM(HIDDEN, name="lstm")

    def call(self, x):
        return self.lstm(self.front(x))


def test_keras_model_with_code_of_its_own_is_asked_for():
    model = Own()
    model(sequence()[None])
    live = gradscope.from_keras(model)
    with pytest.raises(InputError, match="layer lstm reads the input of lstm, which gradscope does not"):
        gradscope.analyze(checkpoint=live, inputs=sequence())
    own = np.asarray(model.front(sequence()[None]))[0]
    expected = keras_gain(model.lstm.cell, own)
    assert gain(live, inputs=own, layer="lstm") == pytest.approx(expected, abs=1e-4)


def test_inspect_says_what_a_layer_reads(tmp_path):
    model = built(L.Dense(INPUT, name="front"), L.LSTM(HIDDEN, name="lstm"))
    found = inspect(saved(model, tmp_path / "x.keras"))
    result = found.to_dict()
    jsonschema.validate(result, schema("inspection"))
    (layer,) = result["layers"]
    assert (layer["below"], layer["reads"], layer["embedding"]) == (None, "front", None)
    assert layer["open"].startswith("reads front, which gradscope does not compute: give that as")
    assert "front?" in render_contents(found, Look(Terminal(200)))
    model = built(
        L.Embedding(5, INPUT, name="words"), L.LSTM(HIDDEN, name="lstm"), shape=(STEPS,), dtype="int32"
    )
    (layer,) = inspect(saved(model, tmp_path / "x.keras")).to_dict()["layers"]
    assert (layer["below"], layer["reads"], layer["embedding"]) == ([], "words", "words")


def test_the_command_line_says_it_in_a_line(tmp_path, capfd):
    path = saved(built(L.Dense(INPUT, name="front"), L.LSTM(HIDDEN, name="lstm")), tmp_path / "x.keras")
    np.save(tmp_path / "x.npy", sequence())
    assert main(["analyze", str(path), "--inputs", str(tmp_path / "x.npy")]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert err == (
        "gradscope: error: layer lstm reads front, which gradscope does not compute: give that, "
        "3 features, as --inputs of shape (T, d) or (B, T, d), and say that it is by --layer lstm\n"
    )


# Embeddings


def test_ids_are_not_taken_for_what_the_embedding_puts_out(tmp_path):
    model = built(
        *(L.Embedding(9, INPUT, name="words"), L.GRU(HIDDEN, name="gru")), shape=(INPUT,), dtype="int32"
    )
    path, ids = saved(model, tmp_path / "x.keras"), np.arange(STEPS * INPUT).reshape(STEPS, INPUT) % 9
    table = np.asarray(model.layers[0].embeddings)
    with pytest.raises(
        InputError, match="are whole numbers, and layer gru reads embedding words: if they are"
    ):
        gradscope.analyze(checkpoint=path, inputs=ids)
    found = gain(path, inputs=ids[:1], embedding="words")
    assert found == pytest.approx(keras_gain(model.layers[-1].cell, table[ids[0]]), abs=1e-4)
    assert gain(path, inputs=table[ids[0]]) == pytest.approx(found, abs=1e-12)
    own = gain(path, inputs=ids, layer="gru")
    assert own == pytest.approx(keras_gain(model.layers[-1].cell, ids.astype(np.float32)), abs=1e-4)


def test_an_embedding_that_the_layer_does_not_read(tmp_path):
    given = keras.Input((STEPS,), dtype="int32")
    words, other = L.Embedding(9, INPUT, name="words")(given), L.Embedding(9, INPUT, name="other")(given)
    model = keras.Model(given, [L.GRU(HIDDEN, name="a")(words), other])
    path = saved(model, tmp_path / "x.keras")
    ids = np.arange(STEPS) % 9
    with pytest.raises(InputError, match=r"layer a reads embedding words, not embedding other/"):
        gradscope.analyze(checkpoint=path, inputs=ids, embedding="other")
    assert gradscope.analyze(checkpoint=path, inputs=ids, embedding="words").problem["layer"] == "a"
    behind = built(
        L.Embedding(9, INPUT, name="words"), L.Dense(INPUT, name="front"), L.GRU(2, name="a"), shape=(STEPS,)
    )
    with pytest.raises(InputError, match="layer a reads front, not embedding words"):
        gradscope.analyze(checkpoint=gradscope.from_keras(behind), inputs=ids, embedding="words", layer="a")


# ONNX


class Behind(torch.nn.Module):
    """An LSTM behind something."""

    def __init__(self, front, batch_first=False):
        super().__init__()
        self.front, self.lstm = front, torch.nn.LSTM(INPUT, HIDDEN, batch_first=batch_first)

    def forward(self, x):
        x = self.front(x)
        return self.lstm(x)[0], x


def exported(module, path, example, dynamo=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (example,), path, dynamo=dynamo, verbose=False, input_names=["x"])
    return path


def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


class Convolved(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(INPUT, INPUT, 3, padding=1)

    def forward(self, x):
        return self.conv(x.permute(1, 2, 0)).permute(2, 0, 1)


class Added(torch.nn.Module):
    def forward(self, x):
        return x + 1.0


def torch_gain(lstm, x):
    """log10 sigma_1 of d(c, h)_T / d(c, h)_0 by autograd in float64."""
    lstm = lstm.double()

    def last(state):
        c, h = state[None, None].chunk(2, dim=2)
        _, (h, c) = lstm(torch.as_tensor(x, dtype=torch.float64)[:, None], (h, c))
        return torch.cat([c[0, 0], h[0, 0]])

    jacobian = torch.autograd.functional.jacobian(last, torch.zeros(2 * HIDDEN, dtype=torch.float64))
    return float(np.log10(np.linalg.norm(jacobian.numpy(), 2)))


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("front", [lambda: torch.nn.Linear(INPUT, INPUT), Convolved, Added, torch.nn.ReLU])
def test_onnx_nodes_in_front_are_run_or_asked_for(front, dynamo, tmp_path, monkeypatch):
    torch.manual_seed(0)
    module, x = Behind(front()), sequence().astype(np.float32)[:, None]
    path = exported(module, tmp_path / "x.onnx", torch.as_tensor(x), dynamo)
    _, own = run(path, x)
    assert gain(path, inputs=x[:, 0]) == pytest.approx(torch_gain(module.lstm, own[:, 0]), abs=1e-6)
    monkeypatch.setattr("gradscope.checkpoints.onnx.running.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"reads .*, which gradscope does not compute: give that"):
        gradscope.analyze(checkpoint=path, inputs=x[:, 0])
    (name,) = read_below(path)
    found = gain(path, inputs=own[:, 0], layer=name)
    assert found == pytest.approx(torch_gain(module.lstm, own[:, 0]), abs=1e-9)


class Turned(torch.nn.Module):
    def forward(self, x):
        return torch.dropout(x.squeeze(2).transpose(0, 1).float(), 0.5, False)


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_nodes_that_do_nothing(dynamo, tmp_path):
    torch.manual_seed(0)
    module = Behind(Turned(), batch_first=True)
    x = sequence().astype(np.float32)[:, None, None]
    path = exported(module, tmp_path / "x.onnx", torch.as_tensor(x), dynamo)
    assert list(read_below(path).values()) == [()]


def test_onnx_embedding(tmp_path):
    torch.manual_seed(0)
    module = Behind(torch.nn.Embedding(9, INPUT))
    path = exported(module, tmp_path / "x.onnx", torch.zeros((STEPS, 1), dtype=torch.long))
    ids = np.arange(STEPS) % 9
    _, own = run(path, ids[:, None])
    (layer,) = inspect(path).to_dict()["layers"]
    assert layer["below"] == []
    assert layer["embedding"] == "front.weight"
    found = gain(path, inputs=ids, embedding="front.weight")
    assert found == pytest.approx(torch_gain(module.lstm, own[:, 0]), abs=1e-9)


def test_onnx_weights_are_not_what_a_layer_reads(tmp_path):
    """A node whose numbers are all in the file, in front of the operator."""
    rng, value = np.random.default_rng(7), helper.make_tensor_value_info
    shapes = {"W": (1, 4 * HIDDEN, INPUT), "R": (1, 4 * HIDDEN, HIDDEN), "A": (INPUT, INPUT)}
    arrays = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["front"]),
        helper.make_node("LSTM", ["front", "W", "R"], ["Y"], name="lstm", hidden_size=HIDDEN),
    ]
    inputs = [value("x", TensorProto.FLOAT, (STEPS, 1, INPUT))]
    graph = helper.make_graph(nodes, "g", inputs, [value("Y", TensorProto.FLOAT, None)], arrays)
    path = tmp_path / "x.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)]).SerializeToString()
    )
    assert read_layer(path, layer="lstm").reads == "front"
