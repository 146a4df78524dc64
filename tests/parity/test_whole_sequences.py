"""Every layer of every format over a whole sequence: the product of the framework's own Jacobians.

Each framework gives the Jacobian of every step by its own autograd, along its own trajectory, in float64;
their product and its singular values are taken in as many digits as the smallest needs.
"""

from __future__ import annotations

import itertools

import flax.linen
import jax
import keras
import numpy as np
import onnx
import pytest
import torch
from flax import nnx, serialization
from onnx import numpy_helper
from oracles.models import HIDDEN, INPUT, sequence
from oracles.reference import reference
from safetensors.torch import save_file

import gradscope
from gradscope import checkpoints
from parity.test_flax_files import FLAX_NAMES, Linen, flax_stored, shaken
from parity.test_keras_files import KERAS, double_precision, keras_saved  # noqa: F401
from parity.test_onnx_files import OPERATORS, exported, operator, specified

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
slow = pytest.mark.slow
# On these no relu RNN of the tests dies in all its units, which would leave nothing to compare.
SEQUENCE = sequence(seed=11)


def check(path, layer, inputs, jacobians, **choice):
    """The singular values of the layer over all steps are those of the product of ``jacobians``."""
    (spectrum,) = gradscope.analyze(checkpoint=path, layer=layer, inputs=inputs, **choice).full.spectra
    expected = reference(np.asarray(jacobians, np.float64))
    assert len(jacobians) == len(inputs)
    assert expected.sigma
    assert spectrum.exact_zeros == expected.exact_zeros
    values = spectrum.log10_singular_values[: len(expected.sigma)]
    assert np.abs(expected.log10_errors(values)).max() <= 1e-6


# PyTorch


def torch_layers(module, x):
    """(number, whether backward) -> (T, m, m) of every layer of a module in float64, on x (T, d)."""
    found, below = {}, torch.as_tensor(x)
    for number in range(module.num_layers):
        outputs = []
        for backward in range(1 + module.bidirectional):
            one = one_layer(module, below.shape[1], f"_l{number}" + "_reverse" * backward)
            rows = below.flip(0) if backward else below
            found[number, bool(backward)], states = torch_jacobians(one, rows)
            outputs.append(states.flip(0) if backward else states)
        below = torch.cat(outputs, dim=1)
    whole = module(torch.as_tensor(x))[0].detach()
    torch.testing.assert_close(below, whole, rtol=0, atol=1e-12)  # the parts are the module
    return found


def one_layer(module, features, end):
    """The layer whose parameters' names have this end, as a module of its own."""
    options = {"nonlinearity": module.nonlinearity} if isinstance(module, torch.nn.RNN) else {}
    options |= {"proj_size": module.proj_size} if module.proj_size else {}
    one = type(module)(features, HIDDEN, bias=module.bias, dtype=torch.float64, **options)
    one.load_state_dict({name: getattr(module, name.replace("_l0", end)) for name in one.state_dict()})
    return one


def torch_jacobians(one, rows):
    """Jacobians (T, m, m) of a module of one layer, by the state as (c, h), and its outputs (T, n)."""
    lstm, width = isinstance(one, torch.nn.LSTM), one.proj_size or HIDDEN

    def step(state, row):
        c, h = state[None, :-width], state[None, -width:]
        last = one(row[None], (h, c) if lstm else h)[1]
        return torch.cat([last[1], last[0]], dim=1)[0] if lstm else last[0]

    state, jacobians, outputs = torch.zeros(HIDDEN * lstm + width, dtype=torch.float64), [], []
    for row in rows:
        jacobians.append(torch.autograd.functional.jacobian(lambda s, r=row: step(s, r), state).numpy())
        state = step(state, row).detach()
        outputs.append(state[-width:])
    return jacobians, torch.stack(outputs)


TORCH = {
    "lstm, float16": (torch.nn.LSTM, {"dtype": torch.float16}, ".safetensors"),
    "lstm without bias": (torch.nn.LSTM, {"bias": False}, ".safetensors"),
    "lstm with a projection": (torch.nn.LSTM, {"proj_size": 2}, ".pt"),
    "gru, bfloat16": (torch.nn.GRU, {"dtype": torch.bfloat16}, ".pt"),
    "gru without bias": (torch.nn.GRU, {"bias": False}, ".safetensors"),
    "rnn": (torch.nn.RNN, {}, ".pt"),
    "rnn-relu without bias": (torch.nn.RNN, {"nonlinearity": "relu", "bias": False}, ".pt"),
}


@pytest.mark.parametrize("name", [n if n == "gru, bfloat16" else pytest.param(n, marks=slow) for n in TORCH])
def test_two_layers_of_torch_in_both_directions(name, tmp_path):
    make, options, suffix = TORCH[name]
    torch.manual_seed(24)
    module = make(INPUT, HIDDEN, num_layers=2, bidirectional=True, **options)
    path, state = tmp_path / f"x{suffix}", module.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    cell = name.partition(" ")[0] if "rnn" in name else None
    for (number, backward), jacobians in torch_layers(module.double(), SEQUENCE).items():
        check(path, f"l{number}" + "_reverse" * backward, SEQUENCE, jacobians, cell=cell)


# Keras


def keras_layers(kind, bias, dtype):
    """A pair of directions and a layer upon it."""
    make, options = KERAS[kind]
    options = options | {"use_bias": bias, "dtype": dtype, "return_sequences": True}
    options["recurrent_initializer"] = "zeros"  # JAX has no QR in half precision
    pair = keras.layers.Bidirectional(make(HIDDEN, name="one", **options), name="both", dtype=dtype)
    model = keras.Sequential(
        [keras.Input((None, INPUT), dtype=dtype), pair, make(HIDDEN, name="top", **options)]
    )
    rng = np.random.default_rng(12)
    model.set_weights([0.5 * rng.standard_normal(w.shape) for w in model.get_weights()])
    return model


def keras_jacobians(layer, x):
    """Jacobians and outputs of a Keras layer in float64, on x (T, d), by JAX through the layer's own cell."""
    cell = layer.cell
    variables = [v.value for v in cell.trainable_variables]
    others = [v.value for v in cell.non_trainable_variables]
    parts = 2 if isinstance(cell, keras.layers.LSTMCell) else 1

    def step(state, row):
        states = [part[None] for part in jax.numpy.split(state, parts)[::-1]]
        (_, states), _ = cell.stateless_call(variables, others, row[None], states)
        return jax.numpy.concatenate([part[0] for part in states[::-1]])

    return along(step, parts * HIDDEN, x[::-1] if layer.go_backwards else x)


def along(step, size, x):
    """Jacobians (T, m, m) of ``step(state, row)`` by JAX, from the state 0; and the outputs (T, n)."""
    both = jax.jit(lambda state, row: (step(state, row), jax.jacrev(step)(state, row)))
    state, jacobians, outputs = jax.numpy.zeros(size), [], []
    for row in jax.numpy.asarray(x):
        state, jacobian = both(state, row)
        jacobians.append(jacobian)
        outputs.append(state[-HIDDEN:])
    return np.array(jacobians), np.array(outputs)


KERAS_FILES = {
    "lstm": (True, "bfloat16", ".keras"),
    "gru": (False, "float32", ".h5"),
    "gru-reset-before": (True, "float16", ".keras"),
    "rnn": (False, "bfloat16", ".keras"),
    "rnn-relu": (True, "float32", ".h5"),
    "rnn-sigmoid": (True, "float32", ".keras"),
    "linear": (True, "float32", ".keras"),
}


@pytest.mark.parametrize(
    "kind", [k if k == "gru-reset-before" else pytest.param(k, marks=slow) for k in KERAS_FILES]
)
@pytest.mark.usefixtures("double_precision")
def test_layers_of_keras_upon_both_directions(kind, tmp_path):
    bias, dtype, suffix = KERAS_FILES[kind]
    x = SEQUENCE
    with jax.enable_x64(True):
        stored, model = keras_layers(kind, bias, dtype), keras_layers(kind, bias, "float64")
        model.set_weights([np.asarray(w).astype(float) for w in stored.get_weights()])
        path = keras_saved(stored, tmp_path, suffix)
        pair, top = model.layers
        (ahead, first), (back, second) = (
            keras_jacobians(layer, x) for layer in (pair.forward_layer, pair.backward_layer)
        )
        upper, outputs = keras_jacobians(top, np.concatenate([first, second[::-1]], axis=1))
        np.testing.assert_allclose(outputs, np.asarray(model(x[None]))[0], rtol=0, atol=1e-12)
    for layer, jacobians in (("forward_one", ahead), ("backward_one", back), ("top", upper)):
        check(path, layer, x, jacobians)


# Flax


CELLS = {"LSTMCell": "lstm", "OptimizedLSTMCell": "lstm", "GRUCell": "gru", "SimpleCell": "rnn"}


def flax_step(cell, lstm):
    """``cell(carry, row) -> (carry, output)`` as a function of the state as (c, h)."""

    def step(state, row):
        carry = tuple(jax.numpy.split(state, 2)) if lstm else state
        carry, _ = cell(carry, row)
        return jax.numpy.concatenate(carry) if lstm else carry

    return step


@slow
@pytest.mark.parametrize("suffix", [".msgpack", ".npz", ".safetensors"])
def test_cells_of_linen_upon_each_other(suffix, tmp_path):
    """The tree in bfloat16, or in float32 where the format has no such numbers; the cells in float64."""
    tree = shaken(Linen().init(jax.random.key(0), SEQUENCE.astype(np.float32)[None]))
    kind = np.float32 if suffix == ".npz" else jax.numpy.bfloat16
    tree = jax.tree.map(lambda a: a.astype(kind), tree)
    path = flax_stored(tree, tmp_path / f"x{suffix}")
    inputs = SEQUENCE
    for (name, cell), layer in zip(CELLS.items(), FLAX_NAMES["linen"], strict=True):
        with jax.enable_x64(True):
            double = jax.tree.map(lambda a: a.astype(float), tree["params"][layer.partition(".")[2]])
            module = getattr(flax.linen, name)(HIDDEN, dtype=float, param_dtype=float)
            step = flax_step(lambda c, row: module.apply({"params": double}, c, row), cell == "lstm")  # noqa: B023
            jacobians, outputs = along(step, HIDDEN * (1 + (cell == "lstm")), inputs)
        name = layer if suffix == ".msgpack" else layer.replace(".", "/")
        check(path, name, inputs, jacobians, cell=cell)
        inputs = outputs


@pytest.mark.parametrize("name", ["GRUCell", *(pytest.param(n, marks=slow) for n in CELLS if n != "GRUCell")])
def test_both_directions_of_nnx(name, tmp_path):
    make, cell, x = getattr(nnx, name), CELLS[name], SEQUENCE
    with jax.enable_x64(True):
        rngs = nnx.Rngs(3)
        options = {"dtype": float, "param_dtype": float, "rngs": rngs}
        pair = [nnx.RNN(make(INPUT, HIDDEN, **options), rngs=rngs) for _ in "ab"]
        model = nnx.Bidirectional(*pair, rngs=rngs)
        path = tmp_path / "x.msgpack"
        path.write_bytes(serialization.msgpack_serialize(nnx.to_pure_dict(nnx.state(model, nnx.Param))))
        size = HIDDEN * (1 + (cell == "lstm"))
        (ahead, first), (back, second) = (
            along(flax_step(rnn.cell, cell == "lstm"), size, rows)
            for rnn, rows in zip(pair, (x, x[::-1]), strict=True)
        )
        outputs = np.concatenate([first, second[::-1]], axis=1)
        np.testing.assert_allclose(outputs, np.asarray(model(x[None]))[0], rtol=0, atol=1e-12)
    for side, jacobians in (("forward", ahead), ("backward", back)):
        check(path, f"{side}_rnn.cell", x, jacobians, cell=cell)


# ONNX


def onnx_jacobians(name, path, side, x):
    """By torch's autograd of what ONNX specifies, on the file's arrays in float64."""
    tensors = onnx.load(path).graph.initializer
    arrays = {t.name: torch.tensor(numpy_helper.to_array(t)[side].astype(float)) for t in tensors}
    arrays = {"B": torch.zeros(2 * len(arrays["W"]), dtype=torch.float64)} | arrays
    kind, options = OPERATORS[name]
    parts = 2 if kind == "LSTM" else 1

    def step(state, row):
        if kind != "RNN":
            return specified(name.partition(" ")[0], arrays, row, *state.chunk(parts))
        act = {"Tanh": torch.tanh, "Relu": torch.relu, "Sigmoid": torch.sigmoid}
        phi = act[options.get("activations", ["Tanh"])[0]]
        return phi(arrays["W"] @ row + arrays["R"] @ state + sum(arrays["B"].chunk(2)))

    state, found = torch.zeros(parts * HIDDEN, dtype=torch.float64), []
    for row in torch.as_tensor(x.copy()):
        found.append(torch.autograd.functional.jacobian(lambda s, r=row: step(s, r), state).numpy())
        state = step(state, row)
    return found


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("lstm-peephole", np.float16),
        ("gru-reset-before", np.float64),
        *(
            pytest.param(*case, marks=slow)
            for case in (
                ("lstm", np.float16),
                ("lstm without bias", np.float32),
                ("gru", np.float32),
                ("gru without bias", np.float64),
                ("rnn", np.float16),
                ("rnn-relu", np.float32),
                ("rnn-sigmoid", np.float32),
            )
        ),
    ],
    ids=str,
)
def test_both_directions_of_an_operator_of_onnx(name, dtype, tmp_path):
    kind, options = OPERATORS[name]
    options = {key: value * 2 if key == "activations" else value for key, value in options.items()}
    path = tmp_path / "x.onnx"
    operator(kind, path, sides=2, direction="bidirectional", dtype=dtype, **options)
    for side, layer in enumerate(("op.forward", "op.backward")):
        x = SEQUENCE[:: -1 if side else 1]
        check(path, layer, SEQUENCE, onnx_jacobians(name, path, side, x))


@pytest.mark.parametrize("make", [pytest.param(torch.nn.LSTM, marks=slow), torch.nn.GRU])
def test_torch_stack_through_onnx(make, tmp_path):
    torch.manual_seed(13)
    module = make(INPUT, HIDDEN, num_layers=2, bidirectional=True)
    exported(module, tmp_path / "x.onnx", dynamo=False)
    names = [found.name for found in checkpoints.read_all(tmp_path / "x.onnx").layers]
    layers = torch_layers(module.double(), SEQUENCE)
    assert list(layers) == list(itertools.product([0, 1], [False, True]))
    for name, jacobians in zip(names, layers.values(), strict=True):
        check(tmp_path / "x.onnx", name, SEQUENCE, jacobians)
