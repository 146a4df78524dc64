"""Models in memory: what their files would give, and what only the objects say."""

from __future__ import annotations

import re
import subprocess
import sys

import equinox
import flax.linen
import jax
import keras
import numpy as np
import pytest
import torch
from flax import nnx
from oracles.models import HIDDEN, INPUT, STEPS, check_spectrum, outputs, read_layer, sequence
from oracles.program import TOLD

import gradscope
from gradscope import checkpoints
from gradscope.errors import InputError

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def rows(live):
    return [(f.name, f.label, f.direction, f.depth, f.below) for f in checkpoints.read_all(live).layers]


def close(ours, theirs, atol=1e-12):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


# PyTorch


@pytest.mark.parametrize("kind", ["tanh", "relu"])
@pytest.mark.parametrize("make", [torch.nn.RNN, torch.nn.RNNCell])
def test_torch_rnn_says_its_nonlinearity(make, kind):
    torch.manual_seed(0)
    module = make(INPUT, HIDDEN, nonlinearity=kind, dtype=torch.float64)
    live = gradscope.from_torch(torch.nn.ModuleDict({"rnn": module}))
    layer = read_layer(live)
    assert (layer.name, layer.cell.name) == ("rnn", {"tanh": "rnn", "relu": "rnn-relu"}[kind])
    h, x = torch.zeros(HIDDEN, dtype=torch.float64), torch.as_tensor(sequence())
    theirs = module(x)[0] if make is torch.nn.RNN else torch.stack([h := module(step, h) for step in x])
    close(outputs(layer, sequence()), theirs)
    with pytest.raises(InputError, match="holds a layer that is"):
        read_layer(live, "linear")


@pytest.mark.parametrize("kind", ["LSTM", *map(slow, ["GRU", "RNN"])])
def test_torch_analysis_is_that_of_the_file(kind, tmp_path):
    torch.manual_seed(1)
    module = getattr(torch.nn, kind)(INPUT, HIDDEN, num_layers=2, bidirectional=True)
    torch.save(module.state_dict(), tmp_path / "x.pt")
    live = gradscope.from_torch(module)
    assert rows(live)[2:] == [
        ("l1", kind.lower(), "forward", 1, ("l0", "l0_reverse")),
        ("l1_reverse", kind.lower(), "backward", 1, ("l0", "l0_reverse")),
    ]
    choice = {"layer": "l0_reverse", "inputs": sequence()}
    cell = "rnn" if kind == "RNN" else None
    first = gradscope.analyze(checkpoint=tmp_path / "x.pt", cell=cell, **choice).to_dict()
    second = gradscope.analyze(checkpoint=live, **choice).to_dict()
    assert second["problem"].pop("source") == f"from_torch({kind})"
    assert first["problem"].pop("source")
    assert first == second


@pytest.mark.parametrize("parametrize", ["orthogonal", "spectral_norm", "weight_norm"])
def test_torch_parametrisations_are_applied_and_not_moved(parametrize):
    torch.manual_seed(2)
    module = torch.nn.LSTM(INPUT, HIDDEN, dtype=torch.float64)
    getattr(torch.nn.utils.parametrizations, parametrize)(module, "weight_hh_l0")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    layer = read_layer(gradscope.from_torch(torch.nn.Sequential(module)))
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert module.training
    assert all(part.training for part in module.modules())
    close(outputs(layer, sequence()), module.eval()(torch.as_tensor(sequence()))[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_torch_half_precision_and_a_snapshot(dtype):
    torch.manual_seed(3)
    module = torch.nn.GRU(INPUT, HIDDEN, dtype=dtype)
    layer = read_layer(live := gradscope.from_torch(module))
    assert layer.dtype == str(dtype).removeprefix("torch.")
    close(outputs(layer, sequence()), module.double()(torch.as_tensor(sequence()))[0])
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    assert read_layer(live).parameters["R_r"].any()


def test_torch_other_tensors_by_name():
    model = torch.nn.ModuleDict(
        {
            "words": torch.nn.Embedding(5, INPUT),
            "lstm": torch.nn.LSTM(INPUT, HIDDEN),
            "head": torch.nn.Linear(4, 2),
        }
    )
    for wrapped in (model, torch.nn.DataParallel(model)):
        contents = checkpoints.read_all(gradscope.from_torch(wrapped), also=("head", "words.weight"))
        close(contents.arrays["head"].values, model["head"].weight.double())
        close(contents.arrays["words.weight"].values, model["words"].weight.double())
    with pytest.raises(
        InputError, match=r"^from_torch\(ModuleDict\): holds no tensor 'tail', expected one of"
    ):
        checkpoints.read_all(gradscope.from_torch(model), also=("tail",))


def test_torch_embedding_and_readout_are_those_of_the_file(tmp_path):
    torch.manual_seed(4)
    parts = {
        "words": torch.nn.Embedding(5, INPUT),
        "gru": torch.nn.GRU(INPUT, HIDDEN),
        "head": torch.nn.Linear(4, 2),
    }
    model = torch.nn.ModuleDict(parts)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    choice = {"embedding": "words", "readout": "head", "inputs": np.arange(STEPS) % 5}
    first, second = (
        gradscope.analyze(checkpoint=one, **choice).to_dict()
        for one in (tmp_path / "x.pt", gradscope.from_torch(model))
    )
    assert first["loss"] == second["loss"]
    assert first["chains"] == second["chains"]


def test_torch_module_of_the_users_own_is_a_question():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight_ih = torch.nn.Parameter(torch.ones(4 * HIDDEN, INPUT))
            self.weight_hh = torch.nn.Parameter(torch.ones(4 * HIDDEN, HIDDEN))

    live = gradscope.from_torch(Own())
    with pytest.raises(InputError, match=r"^from_torch\(Own\): is a Own, which .* add --cell lstm$"):
        read_layer(live)
    assert read_layer(live, "lstm").hidden == HIDDEN


def test_torch_weights_without_values():
    live = gradscope.from_torch(torch.nn.LSTM(INPUT, HIDDEN, device="meta"))
    with pytest.raises(
        InputError, match=r"tensor 'weight_ih_l0' has no values to read .* float32 on the CPU"
    ):
        read_layer(live)


# Keras


def keras_stack():
    """A functional model: embedding, two directions, side by side with what they read, one more upon it."""
    layers = keras.layers
    ids = keras.Input((STEPS,), dtype="int32")
    x = layers.Embedding(9, INPUT, name="words")(ids)
    both = layers.Bidirectional(layers.LSTM(HIDDEN, return_sequences=True, name="inner"), name="both")(x)
    top = layers.GRU(HIDDEN, return_sequences=True, name="top")(layers.Dropout(0.5)(both))
    return keras.Model(ids, layers.Dense(2, name="readout")(top))


def test_keras_model_is_its_file(tmp_path):
    model = keras_stack()
    model.save(tmp_path / "x.keras")
    live = gradscope.from_keras(model)
    assert rows(live) == rows(tmp_path / "x.keras")
    first, second = (checkpoints.read_all(c, also=("readout", "words")) for c in (live, tmp_path / "x.keras"))
    for ours, theirs in zip(first.layers, second.layers, strict=True):
        assert ours.arrays.keys() == theirs.arrays.keys()
        assert all((ours.arrays[key] == theirs.arrays[key]).all() for key in ours.arrays)
    for name in ("readout", "words"):
        close(first.arrays[name].values, second.arrays[name].values, 0)


@pytest.mark.parametrize(
    ("cell", "make"),
    [
        ("lstm", lambda **o: keras.layers.LSTM(HIDDEN, name="own", **o)),
        slow("gru-reset-before", lambda **o: keras.layers.GRU(HIDDEN, reset_after=False, name="own", **o)),
        slow("gru", lambda **o: keras.layers.GRU(HIDDEN, use_bias=False, name="own", **o)),
        (
            "rnn-relu",
            lambda **o: keras.layers.RNN(keras.layers.SimpleRNNCell(HIDDEN, "relu"), name="own", **o),
        ),
    ],
)
def test_keras_layer_alone(cell, make):
    reverse = cell == "lstm"
    layer = make(return_sequences=True, go_backwards=reverse)
    x = sequence().astype(np.float32)
    theirs = layer(x[None])[0]
    ours = read_layer(gradscope.from_keras(layer))
    assert (ours.name, ours.cell.name) == ("own", cell)
    assert ours.direction == ("backward" if reverse else "forward")
    close(outputs(ours, x.astype(float)), theirs, 2e-6)


def test_keras_model_with_code_of_its_own():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.steps = keras.layers.LSTM(HIDDEN, return_sequences=True, name="steps")
            self.last = keras.Sequential(
                [keras.layers.Dropout(0.1), keras.layers.GRU(2, name="last")], name="two"
            )

        def call(self, x):
            return self.last(self.steps(x))

    model = Own()
    with pytest.raises(InputError, match="expected one that has its weights: call it once on a batch"):
        gradscope.from_keras(keras.layers.LSTM(3))
    model(sequence()[None])
    assert rows(gradscope.from_keras(model)) == [
        ("steps", "lstm", "forward", 0, None),
        ("two/last", "gru", "forward", 0, None),
    ]


# Flax


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.RNN(flax.linen.LSTMCell(HIDDEN), name="rnn")(x)


@pytest.mark.parametrize("frozen", [False, slow(True)])
def test_linen_parameters(frozen):
    x = sequence().astype(np.float32)
    tree = Linen().init(jax.random.key(0), x)
    live = gradscope.from_flax(flax.core.freeze(tree) if frozen else tree)
    assert [row[:2] for row in rows(live)] == [("params.LSTMCell_0", "lstm")]
    close(outputs(read_layer(live, "lstm"), x.astype(float)), Linen().apply(tree, x), 2e-6)
    with pytest.raises(InputError, match="activation functions are not in the file: "):
        read_layer(live)


@pytest.mark.parametrize(
    ("make", "options", "cell"),
    [
        (nnx.LSTMCell, {}, "lstm"),
        slow(nnx.OptimizedLSTMCell, {}, "lstm"),
        (nnx.GRUCell, {}, "gru"),
        (nnx.SimpleCell, {}, "rnn"),
        (nnx.SimpleCell, {"activation_fn": jax.nn.relu}, "rnn-relu"),
        slow(nnx.SimpleCell, {"activation_fn": nnx.sigmoid}, "rnn-sigmoid"),
        (nnx.SimpleCell, {"activation_fn": nnx.identity}, "linear"),
    ],
)
def test_nnx_module_says_its_functions_and_direction(make, options, cell):
    rngs, reverse = nnx.Rngs(1), make is nnx.SimpleCell
    model = nnx.RNN(make(INPUT, HIDDEN, rngs=rngs, **options), rngs=rngs, reverse=reverse)
    x = sequence().astype(np.float32)
    layer = read_layer(gradscope.from_flax(model))
    assert (layer.name, layer.cell.name) == ("cell", cell)
    assert layer.direction == ("backward" if reverse else "forward")
    close(outputs(layer, x.astype(float)), model(x[None])[0], 2e-6)


@pytest.mark.parametrize(
    ("gate", "activation", "name"),
    [
        (jax.nn.hard_sigmoid, jax.nn.soft_sign, "softsign-hard_sigmoid=1/6"),
        (jax.nn.sigmoid, jax.nn.gelu, "gelu_tanh"),
        (jax.nn.sigmoid, jax.nn.leaky_relu, "leaky_relu=0.01"),
        (jax.nn.hard_tanh, jax.nn.mish, "mish-hard_tanh"),
    ],
)
@pytest.mark.parametrize("make", [nnx.LSTMCell, nnx.GRUCell])
def test_nnx_cells_have_the_functions_of_their_module(make, gate, activation, name):
    rngs = nnx.Rngs(1)
    model = nnx.RNN(make(INPUT, HIDDEN, rngs=rngs, gate_fn=gate, activation_fn=activation), rngs=rngs)
    x = sequence().astype(np.float32)
    layer = read_layer(gradscope.from_flax(model))
    assert layer.cell.name == f"{'lstm' if make is nnx.LSTMCell else 'gru'}-{name}"
    close(outputs(layer, x.astype(float)), model(x[None])[0], 2e-6)


def test_nnx_functions_without_a_cell():
    def build(make, **options):
        return gradscope.from_flax(make(INPUT, HIDDEN, rngs=nnx.Rngs(2), **options))

    with pytest.raises(InputError, match="has residual=True, for which there is no cell"):
        read_layer(build(nnx.SimpleCell, residual=True, activation_fn=lambda x: x), activation="linear")
    own = build(nnx.GRUCell, gate_fn=lambda x: jax.nn.sigmoid(x))
    with pytest.raises(InputError, match=r"activation functions are not in the file: .* add --cell gru"):
        read_layer(own)
    assert read_layer(own, "gru").hidden == HIDDEN


def test_nnx_directions_are_those_of_the_pair():
    rngs = nnx.Rngs(3)
    pair = [nnx.RNN(nnx.GRUCell(INPUT, HIDDEN, rngs=rngs), rngs=rngs, reverse=True) for _ in "ab"]
    live = gradscope.from_flax(nnx.Bidirectional(*pair, rngs=rngs))
    assert {row[0]: row[2] for row in rows(live)} == {
        "forward_rnn.cell": "forward",
        "backward_rnn.cell": "backward",
    }


# Equinox


@pytest.mark.parametrize("bias", [True, slow(False)])
@pytest.mark.parametrize("make", [equinox.nn.LSTMCell, equinox.nn.GRUCell])
def test_equinox_outputs_and_jacobian(make, bias):
    with jax.enable_x64(True):
        cell = make(INPUT, HIDDEN, use_bias=bias, key=jax.random.key(4))
        parts = 2 if make is equinox.nn.LSTMCell else 1

        def step(state, x):  # a state of Equinox is (h, c), ours (c, h)
            carry = tuple(jax.numpy.split(state, parts)[::-1]) if parts == 2 else state
            carry = cell(x, carry)
            state = jax.numpy.concatenate(carry[::-1]) if parts == 2 else carry
            return state, state[-HIDDEN:]

        @jax.jit
        def run(start, steps):
            return jax.lax.scan(step, start, steps)

        start = jax.numpy.zeros(parts * HIDDEN)
        theirs = run(start, sequence())[1]
        jacobian = jax.jacobian(lambda s: run(s, sequence()[:2])[0])(start)
        live = gradscope.from_equinox(
            {"head": equinox.nn.Linear(HIDDEN, 2, key=jax.random.key(5)), "cells": [cell]}
        )
    layer = read_layer(live)
    assert (layer.name, layer.dtype) == ("cells.0", "float64")
    assert layer.cell.name == ("lstm" if parts == 2 else "gru")
    close(outputs(layer, sequence()), theirs)
    check_spectrum(live, jacobian, inputs=sequence()[:2])
    assert checkpoints.read_all(live, also=("head",)).arrays["head"].values.shape == (2, HIDDEN)


def test_equinox_subclass_and_a_cell_alone():
    class Mine(equinox.nn.GRUCell):
        pass

    live = gradscope.from_equinox(Mine(INPUT, HIDDEN, key=jax.random.key(6)))
    assert rows(live) == [("", "gru", "forward", 0, ())]


# All of them


RECIPES = re.findall(r"<!-- live: (\w+) -->\n```python\n(.*?)```", TOLD, re.DOTALL)


class Equinox(equinox.Module):
    cell: equinox.nn.LSTMCell


def recipe_models():
    x = np.ones((STEPS, INPUT), np.float32)
    rngs = nnx.Rngs(0)
    return {
        "torch": {"model": torch.nn.Sequential(torch.nn.LSTM(INPUT, HIDDEN))},
        "keras": {"model": keras.Sequential([keras.Input((STEPS, INPUT)), keras.layers.LSTM(HIDDEN)])},
        "linen": {"params": Linen().init(jax.random.key(0), x)},
        "nnx": {"model": nnx.RNN(nnx.LSTMCell(INPUT, HIDDEN, rngs=rngs), rngs=rngs)},
        "equinox": {"model": Equinox(equinox.nn.LSTMCell(INPUT, HIDDEN, key=jax.random.key(0)))},
    }


def test_recipes_of_the_readme():
    models = recipe_models()
    assert [name for name, _ in RECIPES] == list(models)
    for name, code in RECIPES:
        names = {"gradscope": gradscope, "x": sequence(), **models[name]}
        exec(code, names)
        problem = names["analysis"].to_dict()["problem"]
        assert (problem["cell"], problem["hidden"], problem["steps"]) == ("lstm", HIDDEN, STEPS)


FROM = (gradscope.from_torch, gradscope.from_keras, gradscope.from_flax, gradscope.from_equinox)


@pytest.mark.parametrize("given", [None, 3, "model.pt", torch.nn.LSTM, {}], ids=str)
@pytest.mark.parametrize("function", FROM)
def test_what_is_no_model_is_refused_in_one_line(function, given):
    with pytest.raises(InputError, match=rf"^{function.__name__}\b.* expected ") as caught:
        function(given)
    assert str(caught.value).isprintable()


def test_models_without_a_recurrent_layer_and_models_as_they_are():
    with pytest.raises(InputError, match=r"^from_torch\(Linear\): holds no recurrent layer"):
        gradscope.from_torch(torch.nn.Linear(2, 2))
    with pytest.raises(
        InputError, match=r"^checkpoint is Linear\(.*expected a file, or what gradscope.from_torch"
    ):
        gradscope.analyze(checkpoint=torch.nn.Linear(2, 2))


def test_no_framework_is_imported():
    code = (
        "import gradscope, sys\n"
        "for name in ('torch', 'keras', 'flax', 'equinox'):\n"
        "    try: getattr(gradscope, f'from_{name}')(object())\n"
        "    except gradscope.InputError: pass\n"
        "print(sorted({'torch', 'keras', 'flax', 'equinox', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_model_is_asserted_of_as_it_is():
    from gradscope.testing import assert_gradient_flow

    model = torch.nn.LSTM(INPUT, HIDDEN)
    found = assert_gradient_flow(model, steps=9, max={"log10_norm": 9})
    whole = gradscope.analyze(checkpoint=gradscope.from_torch(model), steps=9, only="gain")
    assert found.full.log10_norm.median == pytest.approx(whole.full.log10_norm.median, abs=1e-12)
    with pytest.raises(AssertionError, match="log10_norm is"):
        assert_gradient_flow(gradscope.from_torch(model), steps=9, max={"log10_norm": -99})
