"""What files of Keras leave open: asked for, or assumed and said; no hint leads to a wrong answer."""

from __future__ import annotations

import json

import h5py
import keras
import numpy as np
import pytest
from oracles.keras_cells import saved
from oracles.models import HIDDEN, INPUT, STEPS, read_layer, sequence

import gradscope
from gradscope import checkpoints
from gradscope.checkpoints.keras.activations import usual_gate
from gradscope.checkpoints.keras.config import specs
from gradscope.errors import InputError

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
L = keras.layers


def sequential(*layers, shape=(STEPS, INPUT)):
    return keras.Sequential([keras.Input(shape), *layers])


def found_in(path):
    return {found.name: found for found in checkpoints.read_all(path).layers}


# Only the model is a model


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_moments_of_an_optimizer_are_nothing_of_the_model(suffix, tmp_path):
    model = sequential(L.LSTM(HIDDEN, name="lstm"), L.Dense(2, name="readout"))
    model.compile(keras.optimizers.Adam(use_ema=True), "mse")
    model.fit(np.zeros((2, STEPS, INPUT)), np.zeros((2, 2)), verbose=0)
    contents = checkpoints.read_all(saved(model, tmp_path / f"x{suffix}"))
    assert len(contents.layers) == 1
    assert {name.replace(":0", "").split("/")[-1] for name in contents.others} <= {"0", "1", "kernel", "bias"}
    assert len(contents.others) == 2


def test_moments_in_the_layout_of_keras_2(tmp_path):
    """Which has them under the names of the weights."""
    path = saved(sequential(L.LSTM(HIDDEN, name="lstm"), L.Embedding(3, 2)), tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        file.copy("model_weights", file.create_group("optimizer_weights/Adam"), "m")
        file.copy("model_weights/lstm", file.create_group("optimizer_weights/training/Adam"), "lstm")
    contents = checkpoints.read_all(path)
    assert len(contents.layers) == 1
    assert not any(name.startswith("optimizer") for name in contents.others)


# Weights alone


def test_weights_alone_say_what_was_assumed(tmp_path):
    path = saved(sequential(L.LSTM(HIDDEN, name="lstm"), L.Dense(7)), tmp_path / "x.weights.h5")
    analysis = gradscope.analyze(checkpoint=path, cell="lstm", inputs=sequence())
    assert analysis.problem["assumed"] == [
        "that the layer reads its inputs forward and leaves out no steps, which weights without their config "
        "do not say"
    ]
    both = saved(sequential(L.Bidirectional(L.GRU(HIDDEN), name="both")), tmp_path / "x.weights.h5")
    layers = gradscope.analyze(checkpoint=both, cell="gru", inputs=sequence()).layers
    assert [one.problem["direction"] for one in layers] == ["forward", "backward"]
    words = "that the layer leaves out no steps, which weights without their config do not say"
    assert [one.problem["assumed"] for one in layers] == [[words]] * 2


def test_weights_alone_of_what_may_stand_before_a_layer(tmp_path):
    """As many features come out of the Dense as the layer reads: after it or before, no file says."""
    for layers in (
        [L.Dense(INPUT), L.LSTM(HIDDEN, name="one")],
        [L.LSTM(HIDDEN, name="one"), L.Dense(INPUT)],
    ):
        path = saved(sequential(*layers), tmp_path / "x.weights.h5")
        choice = {"checkpoint": path, "cell": "lstm", "inputs": sequence()}
        with pytest.raises(
            InputError, match="layer one reads the input of one, which gradscope does not compute"
        ):
            gradscope.analyze(**choice)
        assert gradscope.analyze(**choice, layer="one").problem["layer"] == "one"
    stack = sequential(L.LSTM(INPUT, return_sequences=True, name="a"), L.LSTM(HIDDEN, name="b"))
    path = saved(stack, tmp_path / "x.weights.h5")
    with pytest.raises(InputError, match="layer a reads the input of a, which gradscope does not compute"):
        gradscope.analyze(checkpoint=path, cell="lstm", inputs=sequence())
    with pytest.raises(InputError, match="layers read different ones"):
        gradscope.analyze(checkpoint=path, cell="lstm", inputs=sequence(), layer=["a", "b"])
    assert (
        gradscope.analyze(checkpoint=path, cell="lstm", inputs=sequence(), layer="b").problem["layer"] == "b"
    )


def test_a_group_without_weights_tells_of_a_mask(tmp_path):
    model = sequential(L.Masking(name="masking_1"), L.LSTM(HIDDEN, name="one"))
    path = saved(model, tmp_path / "x.weights.h5")
    choice = {"checkpoint": path, "cell": "lstm", "inputs": sequence()}
    with pytest.raises(
        InputError, match=r"\(mask of masking(_1)?\), which the inputs do not tell: give how many"
    ):
        gradscope.analyze(**choice)
    cut = gradscope.analyze(**choice, lengths=[4])
    assert (
        cut.full.log10_norm
        == gradscope.analyze(**choice | {"inputs": sequence()[:4]}, lengths=[4]).full.log10_norm
    )


# Versions


def test_the_gate_of_layers_made_without_one():
    for version, gate in {"2.2.4": "hard_sigmoid", "2.1.6-tf": "hard_sigmoid", "2.3.0": "sigmoid"}.items():
        assert usual_gate(version) == gate
    for version in ("2.15.0", "3.15.1", "", "2.2.4-tf"):
        assert usual_gate(version) == "sigmoid"


def weights_of(version, path, make=L.LSTM):
    """Weights alone as Keras 2 wrote them."""
    layer = make(HIDDEN)
    layer.build((1, STEPS, INPUT))
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version.encode()
        file.attrs["backend"] = b"tensorflow"
        for name, array in zip(
            ("kernel:0", "recurrent_kernel:0", "bias:0"), layer.get_weights(), strict=True
        ):
            file.create_dataset(f"lstm_1/lstm_1/{name}", data=array)
    return path


def test_weights_of_a_version_whose_gates_were_others(tmp_path):
    """--cell lstm is no way out of what Keras made by default, so it is not said to be one."""
    with pytest.raises(InputError) as caught:
        read_layer(weights_of("2.2.4", tmp_path / "x.h5"))
    assert str(caught.value) == (
        f"{tmp_path / 'x.h5'}: holds weights without the config that says its activations: Keras 2.2.4 makes "
        "gates of hard_sigmoid, clip(x / 5 + 1 / 2, 0, 1), unless told otherwise: add "
        "--cell lstm-tanh-hard_sigmoid=0.2; --cell lstm is right only where the model says "
        "recurrent_activation='sigmoid'"
    )
    usual = "lstm-tanh-hard_sigmoid=0.2"
    assert read_layer(tmp_path / "x.h5", usual).cell.name == usual
    assert read_layer(tmp_path / "x.h5", "lstm").hidden == HIDDEN
    with pytest.raises(
        InputError, match=r"add --cell lstm if these are tanh and sigmoid, --cell lstm-relu or"
    ):
        read_layer(weights_of("2.9.0", tmp_path / "x.h5"))


@pytest.mark.parametrize(
    ("version", "cell"),
    [
        ("2.2.4", "lstm-tanh-hard_sigmoid=0.2"),
        ("3.1.0", "lstm-tanh-hard_sigmoid=1/6"),
        (None, "lstm-tanh-hard_sigmoid=0.2 or lstm-tanh-hard_sigmoid=1/6"),
    ],
)
def test_hard_sigmoid_is_that_of_the_version(version, cell, tmp_path):
    model = sequential(L.LSTM(HIDDEN, recurrent_activation="hard_sigmoid", name="one"))
    path = saved(model, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs["keras_version"]
        if version:
            file.attrs["keras_version"] = version.encode()
    (found,) = checkpoints.read_all(path).layers
    assert found.label == cell
    if version is None:
        asks = (
            r"does not say which Keras computes it: "
            r"--cell lstm-tanh-hard_sigmoid=0\.2 is Keras 2's clip\(.*\); "
            r"--cell lstm-tanh-hard_sigmoid=1/6 is Keras 3's relu6"
        )
        with pytest.raises(InputError, match=asks):
            read_layer(path)
        assert read_layer(path, "lstm-tanh-hard_sigmoid=1/6").hidden == HIDDEN


# Constants that a layer is called with


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("kind", ["state", "mask"])
def test_a_constant_state_or_mask_of_a_call_is_asked_for(kind, by_name, tmp_path):
    """Which the config has as numbers, where values of the model are referred to."""
    given, ones = keras.Input((STEPS, INPUT)), keras.ops.ones((1, HIDDEN))
    kept = keras.ops.convert_to_tensor(np.arange(STEPS)[None] != 1)
    name, places = {"state": ("initial_state", ([ones, ones],)), "mask": ("mask", (None, kept))}[kind]
    layer = L.LSTM(HIDDEN, name="one")
    model = keras.Model(given, layer(given, **{name: places[-1]}) if by_name else layer(given, *places))
    words = {"state": "the initial state comes from elsewhere", "mask": "tell leave the state as it is"}[kind]
    for checkpoint in (saved(model, tmp_path / "x.keras"), gradscope.from_keras(model)):
        with pytest.raises(InputError, match=words):
            gradscope.analyze(checkpoint=checkpoint, inputs=sequence())


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("start", [[1.0, 2.0], [["encoder", 0, 1], ["encoder", 0, 2]]])
def test_a_state_beside_the_call_in_configs_of_keras_2(start, nested):
    def layer(kind, name, *calls, **config):
        return {
            "class_name": kind,
            "name": name,
            "config": config | {"name": name},
            "inbound_nodes": [*calls],
        }

    call = ["x", 0, 0, {"initial_state": start}]
    layers = [
        layer("InputLayer", "x"),
        layer("LSTM", "encoder", [["x", 0, 0, {}]], units=HIDDEN, return_state=True),
        layer("LSTM", "decoder", [call] if nested else call, units=HIDDEN),
    ]
    config = {"layers": layers, "input_layers": [["x", 0, 0]], "output_layers": [["decoder", 0, 0]]}
    found = specs(json.dumps({"class_name": "Functional", "config": config}), version="2.9.0")
    assert {name: one.given_state for name, one in found.items()} == {"encoder": False, "decoder": True}


def test_hard_sigmoid_of_keras_3_is_what_is_said():
    x = np.linspace(-9, 9, 37).astype(np.float32)
    np.testing.assert_allclose(keras.activations.hard_sigmoid(x), np.clip(x + 3, 0, 6) / 6, atol=1e-6)
    live = gradscope.from_keras(sequential(L.GRU(HIDDEN, recurrent_activation="hard_sigmoid")))
    assert read_layer(live).cell.name == "gru-tanh-hard_sigmoid=1/6"


def test_a_config_that_does_not_say_its_gates():
    cell = {"class_name": "LSTM", "config": {"name": "a", "activation": "tanh"}}
    text = json.dumps({"class_name": "Sequential", "config": {"layers": [cell]}})
    assert specs(text, version="2.1.0")["a"].recurrent_activation == "hard_sigmoid"
    assert specs(text, version="2.4.0")["a"].recurrent_activation == "sigmoid"


def test_keras_2_says_whether_time_comes_first():
    for given, expected in ((True, True), (False, None), (None, None)):
        config = {"name": "a", "activation": "tanh", "recurrent_activation": "sigmoid", "time_major": given}
        layers = {"layers": [{"class_name": "LSTM", "config": config}]}
        (spec,) = specs(json.dumps({"class_name": "Sequential", "config": layers})).values()
        assert spec.time_major is expected


# Layers of another's own


@keras.saving.register_keras_serializable("theirs", "LSTM")
class Theirs(L.LSTM):
    """Computes something else under the name of Keras' own."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return super().call(-2.0 * sequences, initial_state, mask, training)


@keras.saving.register_keras_serializable("theirs")
class Cell(L.GRUCell):
    def call(self, inputs, states, **options):
        return super().call(2.0 * inputs, states, **options)


@pytest.mark.parametrize(
    "make", [lambda: Theirs(HIDDEN, name="one"), lambda: L.RNN(Cell(HIDDEN), name="one")]
)
def test_layers_that_compute_otherwise_are_not_read_as_keras_own(make, tmp_path):
    model = sequential(make())
    cell = "gru" if isinstance(model.layers[0], L.RNN) and not isinstance(model.layers[0], L.LSTM) else "lstm"
    for checkpoint in (saved(model, tmp_path / "x.keras"), saved(model, tmp_path / "x.h5"), model):
        checkpoint = gradscope.from_keras(model) if checkpoint is model else checkpoint
        words = f"is no layer of Keras' own in the config: if it computes the same as one, add --cell {cell}"
        with pytest.raises(InputError, match=words):
            gradscope.analyze(checkpoint=checkpoint, inputs=sequence())
        with pytest.raises(InputError, match="which gradscope does not compute"):
            gradscope.analyze(checkpoint=checkpoint, inputs=sequence(), cell=cell)


class Kept(L.LSTM):
    """Nothing of its own in what it computes."""

    def get_config(self):
        return super().get_config()


def test_a_subclass_that_computes_the_same_is_read():
    layer = Kept(HIDDEN, name="one")
    layer(sequence()[None])
    assert read_layer(gradscope.from_keras(layer)).cell.name == "lstm"


# Hints


def test_a_hint_that_leads_nowhere_is_not_given(tmp_path):
    """Others are no way out where they have the same fault."""
    relu = [L.LSTM(HIDDEN, activation="softmax", return_sequences=True, name=name) for name in "ab"]
    with pytest.raises(InputError) as caught:
        checkpoints.read(saved(sequential(*relu), tmp_path / "x.keras"))
    assert "choose others" not in str(caught.value)
    usual = L.LSTM(HIDDEN, return_sequences=True, name="c")
    above = saved(sequential(relu[0], usual), tmp_path / "x.keras")
    with pytest.raises(InputError) as caught:  # c reads what a puts out
        checkpoints.read(above)
    assert "choose others" not in str(caught.value)
    below = saved(sequential(L.LSTM(HIDDEN, return_sequences=True, name="c"), relu[1]), tmp_path / "x.keras")
    with pytest.raises(InputError, match=r"; or choose others with --layer: c$"):
        checkpoints.read(below)
    assert checkpoints.read(below, layers=["c"]).chosen == ("c",)
