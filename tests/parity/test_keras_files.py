"""Keras files: the layers, outputs and Jacobians of Keras, and what its config says of them."""

from __future__ import annotations

import io
import json
import warnings
import zipfile

import h5py
import jax
import keras
import numpy as np
import pytest
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
from gradscope.cells import activations
from gradscope.checkpoints.keras.activations import activated_cells, activation_in
from gradscope.errors import InputError

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")


def keras_model(*layers):
    """A model with weights and biases away from their initial values."""
    model = keras.Sequential([keras.Input((STEPS, INPUT)), *layers])
    rng = np.random.default_rng(5)
    model.set_weights([rng.standard_normal(w.shape) * 0.5 for w in model.get_weights()])
    return model


def keras_saved(model, folder, suffix):
    path = folder / f"model{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    return path


def keras_jacobian(layer, x):
    """d(last state)/d(first state) of a Keras layer by jax, the state as (c, h)."""
    cell, n = layer.cell, layer.cell.units
    parts = 2 if isinstance(cell, keras.layers.LSTMCell) else 1
    variables = [v.value for v in cell.trainable_variables]
    others = [v.value for v in cell.non_trainable_variables]

    def run(state):
        states = [part[None] for part in reversed(jax.numpy.split(state, parts))]
        for step in x[::-1] if layer.go_backwards else x:
            (_, states), _ = cell.stateless_call(variables, others, jax.numpy.asarray(step[None]), states)
        return jax.numpy.concatenate([part[0] for part in reversed(states)])

    return jax.jacobian(run)(jax.numpy.zeros(parts * n))


KERAS = {
    "lstm": (keras.layers.LSTM, {}),
    "gru": (keras.layers.GRU, {}),
    "gru-reset-before": (keras.layers.GRU, {"reset_after": False}),
    "rnn": (keras.layers.SimpleRNN, {}),
    "rnn-relu": (keras.layers.SimpleRNN, {"activation": "relu"}),
    "rnn-sigmoid": (keras.layers.SimpleRNN, {"activation": "sigmoid"}),
    "linear": (keras.layers.SimpleRNN, {"activation": None}),
}


@pytest.mark.parametrize(
    ("suffix", "bias", "reverse"),
    [(".keras", True, False), (".keras", False, True), (".h5", False, True), (".weights.h5", True, False)],
)
@pytest.mark.parametrize("name", KERAS)
def test_keras_layer(name, bias, reverse, suffix, tmp_path):
    make, options = KERAS[name]
    layer = make(HIDDEN, return_sequences=True, use_bias=bias, go_backwards=reverse, name="mine", **options)
    model = keras_model(layer)
    path = keras_saved(model, tmp_path, suffix)
    ours = read_layer(path, name if suffix == ".weights.h5" else None)
    assert (ours.cell.name, ours.name, ours.dtype) == (name, "mine", "float32")
    assert ours.direction == ("backward" if reverse else "forward")
    x = sequence().astype(np.float32)
    expected = np.asarray(model(x[None]))[0]
    np.testing.assert_allclose(outputs(ours, x.astype(float)), expected, rtol=0, atol=2e-6)


@pytest.fixture
def double_precision(monkeypatch):
    """Keras computes in float64: upon JAX it rounds every tanh to float32 otherwise."""
    monkeypatch.setitem(keras.src.backend.common.dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")


@pytest.mark.parametrize("name", ["lstm", "gru", "gru-reset-before", "rnn"])
@pytest.mark.usefixtures("double_precision")
def test_keras_jacobian(name, tmp_path):
    make, options = KERAS[name]
    with jax.enable_x64(True):
        layer = make(HIDDEN, dtype="float64", go_backwards=name == "gru", **options)
        path = keras_saved(keras_model(layer), tmp_path, ".keras")
        jacobian = keras_jacobian(layer, sequence()[:2])
    check_spectrum(path, jacobian, inputs=sequence()[:2])


def test_keras_bidirectional_stack(tmp_path):
    wrapped = keras.layers.LSTM(HIDDEN, return_sequences=True, name="inner")
    model = keras_model(
        keras.layers.Dense(5, activation="tanh"),
        keras.layers.Bidirectional(wrapped, name="both"),
        keras.layers.Bidirectional(
            keras.layers.GRU(HIDDEN, return_sequences=True, go_backwards=True),
            backward_layer=keras.layers.GRU(HIDDEN, return_sequences=True),
            name="odd",
        ),
    )
    x = sequence().astype(np.float32)
    states = [np.asarray(keras.Model(model.inputs[0], layer.output)(x[None]))[0] for layer in model.layers]
    for suffix in (".keras", ".h5"):
        path = keras_saved(model, tmp_path, suffix)
        first, second = ([f for f in checkpoints.read_all(path).layers if f.depth == d] for d in (0, 1))
        layers = {found.direction: found.settle() for found in first}
        ours = both_directions(layers["forward"], layers["backward"], states[0].astype(float))
        np.testing.assert_allclose(ours, states[1], rtol=0, atol=2e-6)
        odd = {found.direction: found.name for found in second}
        assert odd["backward"].startswith("odd/forward_")  # as it was asked to
        assert odd["forward"].startswith("odd/gru")
        lower = [layers[side].name for side in ("forward", "backward")]
        chosen = [*lower, odd["forward"]]
        analysis = gradscope.analyze(checkpoint=path, layer=chosen, inputs=states[0])
        assert analysis.layers[-1].problem["inputs"] == f"outputs of {', '.join(lower)}"


def test_keras_models_in_models_and_stacked_cells(tmp_path):
    cells = [keras.layers.LSTMCell(HIDDEN, name="a"), keras.layers.GRUCell(2, name="b")]
    inner = keras.Sequential([keras.layers.SimpleRNN(5, return_sequences=True, name="deep")], name="inner")
    model = keras_model(inner, keras.layers.RNN(cells, name="stack"))
    expected = [("inner/deep", "rnn", 0), ("stack/a", "lstm", 1), ("stack/b", "gru", 2)]
    path = keras_saved(model, tmp_path, ".keras")
    assert [(f.name, f.label, f.depth) for f in checkpoints.read_all(path).layers] == expected
    path = keras_saved(model, tmp_path, ".h5")
    assert [(f.label, f.depth) for f in checkpoints.read_all(path).layers] == [e[1:] for e in expected]


def test_keras_in_half_precision(tmp_path):
    for dtype in ("float16", "bfloat16"):
        model = keras_model(keras.layers.LSTM(HIDDEN, dtype=dtype, recurrent_initializer="zeros"))
        path = keras_saved(model, tmp_path, ".keras")
        layer = read_layer(path)
        assert layer.dtype == dtype
        kernel = np.asarray(model.layers[0].cell.recurrent_kernel.value).astype(float)
        np.testing.assert_array_equal(layer.parameters["R_f"], kernel[:, HIDDEN : 2 * HIDDEN].T)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            lambda: keras.layers.LSTM(3, activation="softmax"),
            "activation softmax and recurrent activation sigmoid, .* no lstm, and softmax mixes the units",
        ),
        (
            lambda: keras.layers.GRU(3, recurrent_activation=keras.layers.PReLU()),
            "recurrent activation layer PReLU, for which gradscope has no gru",
        ),
        (
            lambda: keras.layers.SimpleRNN(3, activation=lambda a: 0.5 * a),
            "activation lambda, for which gradscope has no rnn: its code is in the file, and none .* is run",
        ),
    ],
)
def test_keras_activations_without_a_cell(layer, words, tmp_path):
    path = keras_saved(keras_model(layer()), tmp_path, ".keras")
    (found,) = checkpoints.read_all(path).layers
    with pytest.raises(InputError, match=words):
        read_layer(path)
    assert found.problem


# Functions of a number alone, by what gradscope calls them.
ACTIVATIONS = {
    **{
        name: name
        for name in (
            *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_silu", "hard_tanh", "log_sigmoid"),
            *("mish", "relu", "relu6", "selu", "silu", "soft_shrink", "softplus", "softsign", "sparse_plus"),
            *("sparse_sigmoid", "squareplus", "tanh_shrink"),
        )
    },
    "hard_sigmoid=1/6": "hard_sigmoid",
    "leaky_relu=0.2": "leaky_relu",
    "leaky_relu=0.3": keras.layers.LeakyReLU,
    "elu=0.5": lambda: keras.layers.ELU(0.5),
}


def test_no_activation_of_keras_is_left_out():
    mixing = {"glu", "log_softmax", "softmax", "sparsemax"}
    usual = {"linear", "tanh", "sigmoid"}
    aliases = {"hard_swish", "swish"}  # deserialised as the function that they are, which is saved
    functions = {
        name for name, f in vars(keras.activations).items() if callable(f) and not name.startswith("_")
    }
    functions -= {"deserialize", "get", "serialize", "threshold"}  # a threshold has no default
    assert functions == mixing | usual | aliases | {a for a in ACTIVATIONS.values() if isinstance(a, str)}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_keras_activation(name):
    """Read from the config of a layer, and its values and slopes those of Keras' own function."""
    given = ACTIVATIONS[name]
    given = given() if callable(given) else given
    layer = keras.layers.SimpleRNN(HIDDEN, activation=given)
    read = activation_in(layer.get_config()["activation"])
    assert activated_cells(("rnn",), read, "", keras.__version__) == (
        (f"rnn-{name}" if name != "linear" else name,),
        "",
        "",
    )
    function = given if isinstance(given, keras.Layer) else layer.activation
    # Layers compute in float32; no kink is a multiple of .3 from -7.15.
    layers = isinstance(given, keras.Layer)
    with jax.enable_x64(not layers):
        x = jax.numpy.arange(-7.15, 8, 0.3)
        theirs, vjp = jax.vjp(function, x)
        ours, own = jax.vjp(activations.activation(name), x)
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if layers else {"rtol": 1e-12, "atol": 1e-12}
        np.testing.assert_allclose(ours, theirs, **tolerance)
        np.testing.assert_allclose(
            own(jax.numpy.ones_like(x))[0], vjp(jax.numpy.ones_like(x))[0], **tolerance
        )


@pytest.mark.parametrize(
    ("make", "options", "name"),
    [
        (
            keras.layers.LSTM,
            {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
            "lstm-relu-hard_sigmoid=1/6",
        ),
        (
            keras.layers.GRU,
            {"activation": "silu", "recurrent_activation": "softsign", "reset_after": False},
            "gru-reset-before-silu-softsign",
        ),
    ],
)
@pytest.mark.usefixtures("double_precision")
def test_keras_gates_with_activations(make, options, name, tmp_path):
    with jax.enable_x64(True):
        layer = make(HIDDEN, dtype="float64", **options)
        model = keras_model(layer)
        path = keras_saved(model, tmp_path, ".keras")
        jacobian = keras_jacobian(layer, sequence()[:2])
    for source in (path, gradscope.from_keras(model)):
        assert read_layer(source).cell.name == name
        analysis = gradscope.analyze(checkpoint=source, inputs=sequence()[:2])
        gains = 10.0 ** analysis.full.spectra[0].log10_singular_values
        expected = np.linalg.svd(jacobian, compute_uv=False)
        np.testing.assert_allclose(gains, expected, rtol=1e-9, atol=1e-12 * expected[0])


def test_a_function_that_is_called_as_one_of_keras_is_not_taken_for_it():
    def tanh(x):
        return x / 2

    cell = keras.layers.LSTMCell(3, activation=tanh, name="a")
    live = gradscope.from_keras(
        keras_model(keras.layers.RNN([cell, keras.layers.GRUCell(2, name="b")], name="stack"))
    )
    assert [(found.name, bool(found.problem)) for found in live.layers] == [
        ("stack/a", True),
        ("stack/b", False),
    ]
    with pytest.raises(InputError, match="has as activation tanh, a function of the user's own"):
        gradscope.analyze(checkpoint=live, inputs=sequence())


def test_keras_weights_alone_leave_questions(tmp_path):
    def refusal(layer, **choice):
        path = keras_saved(keras_model(layer), tmp_path, ".weights.h5")
        with pytest.raises(InputError) as caught:
            read_layer(path, **choice)
        return str(caught.value)

    rnn, lstm = keras.layers.SimpleRNN(3), keras.layers.LSTM(3)
    gru = keras.layers.GRU(3, use_bias=False)
    assert "add --activation tanh, relu, sigmoid or linear" in refusal(rnn)
    assert "add --cell lstm if these are tanh and sigmoid" in refusal(lstm)
    assert "add --cell gru or gru-reset-before" in refusal(gru)
    assert "add --cell gru or gru-reset-before" in refusal(gru, activation="tanh")
    path = keras_saved(keras_model(lstm), tmp_path, ".weights.h5")
    assert read_layer(path, "lstm-relu-hard_sigmoid=1/6").cell.name == "lstm-relu-hard_sigmoid=1/6"
    with pytest.raises(InputError, match="holds a layer that is lstm, not --cell gru-relu"):
        read_layer(path, "gru-relu")
    assert "not --activation relu" in refusal(lstm, activation="relu")
    path = keras_saved(keras_model(rnn), tmp_path, ".weights.h5")
    for activation, cell in (("tanh", "rnn"), ("relu", "rnn-relu"), ("linear", "linear")):
        assert read_layer(path, activation=activation).cell.name == cell


def test_keras_before_3_6_did_not_write_names(tmp_path):
    """The places are those of classes; here the user has given each the name of another one's place."""
    model = keras_model(
        keras.layers.Dense(2, name="readout"),
        keras.layers.LSTM(HIDDEN, return_sequences=True, go_backwards=True, name="lstm_1"),
        keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True, name="gru"), name="both"),
        keras.Sequential([keras.layers.LSTM(HIDDEN, return_sequences=True, name="lstm")], name="inner"),
        keras.layers.RNN(
            [keras.layers.LSTMCell(3, name="a"), keras.layers.LSTMCell(2, name="b")], name="lstm"
        ),
    )
    path = keras_saved(model, tmp_path, ".keras")
    with zipfile.ZipFile(path) as archive:
        config, weights = archive.read("config.json"), io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        groups = [file]
        file.visititems(lambda _, group: groups.append(group))
        for group in groups:
            if "name" in group.attrs:
                del group.attrs["name"]
    old = tmp_path / "old.keras"
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights.getvalue())
    contents = [checkpoints.read_all(one, also=("readout",)) for one in (path, old)]
    names = [[(f.name, f.direction, f.depth, f.below, f.keys) for f in one.layers] for one in contents]
    assert names[0] == names[1]
    assert contents[0].others == contents[1].others == ("readout/vars/0", "readout/vars/1")


def test_keras_file_with_a_user_block(tmp_path):
    keras_saved(model := keras_model(keras.layers.LSTM(HIDDEN)), tmp_path, ".h5")
    given, made = tmp_path / "model.h5", tmp_path / "x.h5"
    with h5py.File(given) as file, h5py.File(made, "w", userblock_size=1024) as copy:
        file.copy("model_weights", copy)
        copy.attrs["model_config"] = file.attrs["model_config"]
    kernel = np.asarray(model.layers[0].cell.recurrent_kernel.value).astype(float)
    np.testing.assert_array_equal(read_layer(tmp_path / "x.h5").parameters["R_i"], kernel[:, :HIDDEN].T)


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_keras_2_names_and_config(gate, tmp_path):
    """What Keras 2 wrote, whose names end in :0 and whose Bidirectional does not name its parts."""
    model = keras_model(keras.layers.Bidirectional(keras.layers.LSTM(HIDDEN), name="both"))
    kernels = [np.asarray(w) for w in model.get_weights()]
    cell = {"name": "lstm", "units": HIDDEN, "activation": "tanh", "recurrent_activation": gate}
    wrapper = {"name": "both", "layer": {"class_name": "LSTM", "config": cell}}
    config = {"layers": [{"class_name": "Bidirectional", "config": wrapper}]}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": config}).encode()
        for side, arrays in {"forward": kernels[:3], "backward": kernels[3:]}.items():
            group = file.create_group(f"model_weights/both/both/{side}_lstm/lstm_cell_1")
            for name, array in zip(("kernel:0", "recurrent_kernel:0", "bias:0"), arrays, strict=True):
                group.create_dataset(name, data=array)
    if gate == "hard_sigmoid":
        with pytest.raises(
            InputError, match=r"hard_sigmoid, and does not say which Keras computes it: --cell"
        ):
            read_layer(tmp_path / "x.h5", layer="backward_lstm")
        which = "lstm-tanh-hard_sigmoid=0.2"
        assert read_layer(tmp_path / "x.h5", which, layer="backward_lstm").cell.name == which
        return
    layers = [read_layer(tmp_path / "x.h5", layer=f"both/{side}_lstm") for side in ("forward", "backward")]
    x = sequence().astype(np.float32)
    ours = both_directions(*layers, x.astype(float))
    expected = np.asarray(model(x[None]))[0]  # each direction's last state
    np.testing.assert_allclose(np.r_[ours[-1, :HIDDEN], ours[0, HIDDEN:]], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_keras_weights_with_their_config_beside(suffix, tmp_path):
    """A GRU that reads from the end, behind a Dense: direction and wiring are those of the config."""
    first = keras.layers.GRU(HIDDEN, return_sequences=True, go_backwards=True, name="mine")
    model = keras_model(keras.layers.Dense(INPUT, name="before"), first)
    path = tmp_path / "x.weights.h5"
    model.save_weights(path)
    (tmp_path / "x.json").write_text(model.to_json())
    if suffix == ".h5":
        path = path.rename(tmp_path / "x.h5")
    (found,) = checkpoints.read_all(path, config=tmp_path / "x.json").layers
    assert (found.name, found.direction, found.cells) == ("mine", "backward", ("gru",))
    assert (found.below, found.question) == (None, "")
    x = sequence().astype(np.float32)
    before = np.asarray(keras.Model(model.inputs[0], model.layers[0].output)(x[None]))[0].astype(float)
    np.testing.assert_allclose(
        outputs(found.settle(), before), np.asarray(model(x[None]))[0], rtol=0, atol=2e-6
    )
