"""Masked steps: Keras leaves the state as it is, and so does the chain; against Keras' own autograd."""

from __future__ import annotations

import json
import warnings

import jax
import jsonschema
import keras
import numpy as np
import pytest
from oracles.keras_cells import saved
from oracles.models import HIDDEN, INPUT

import gradscope
from gradscope import checkpoints
from gradscope.checkpoints.keras.config import specs
from gradscope.errors import InputError
from gradscope.report.inspection import inspect
from gradscope.report.table import render_table
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
L = keras.layers
# Padded before, behind and in between; and not at all.
IDS = np.array([[0, 0, 3, 1, 0], [2, 4, 0, 0, 0], [1, 0, 0, 0, 2], [1, 2, 3, 4, 1]])
COUNTS = (IDS != 0).sum(axis=1)


def filled(model):
    """Weights away from their initial values."""
    rng = np.random.default_rng(5)
    model.set_weights([rng.standard_normal(w.shape) * 0.5 for w in model.get_weights()])
    return model


def embedding(name="words"):
    return L.Embedding(9, INPUT, mask_zero=True, name=name)


def recurrent(make, name, units=HIDDEN, **options):
    return make(units, return_sequences=True, return_state=False, name=name, **options)


def sequential(*layers, masked=None):
    return filled(keras.Sequential([keras.Input((5,), dtype="int32"), masked or embedding(), *layers]))


def keras_gains(layer, x, mask):
    """log10 sigma_1 of d(last state)/d(first state) of a Keras layer, of every sequence, by jax."""
    config = {**layer.get_config(), "return_state": True, "return_sequences": False, "name": "again"}
    again = type(layer).from_config(config)
    again.build(x.shape)
    again.set_weights(layer.get_weights())
    values = [v.value for v in again.trainable_variables], [v.value for v in again.non_trainable_variables]
    sizes = np.atleast_1d(again.cell.state_size)

    @jax.jit
    def last(state):
        states = jax.numpy.split(state, np.cumsum(sizes)[:-1], axis=1)
        (_, *states), _ = again.stateless_call(*values, x, initial_state=states, mask=mask)
        return jax.numpy.concatenate(states, axis=1)

    jacobian = np.asarray(jax.jit(jax.jacobian(last))(jax.numpy.zeros((len(x), sum(sizes))))).astype(float)
    return [np.log10(np.linalg.norm(jacobian[k, :, k], 2)) for k in range(len(x))]


def gains(analysis):
    return [spectrum.log10_singular_values[0] for spectrum in analysis.full.spectra]


def check(checkpoint, read, layers, **given):
    """Every layer's gain is that of Keras on what Keras has it read; read : (B, T, d) by name."""
    analysis = gradscope.analyze(checkpoint=checkpoint, **given)
    parts = analysis.layers or (analysis,)
    assert [one.problem["layer"].rpartition("/")[2] for one in parts] == list(layers)
    for one, (name, layer) in zip(parts, layers.items(), strict=True):
        expected = keras_gains(layer, read[name], IDS != 0)
        np.testing.assert_allclose(gains(one), expected, rtol=0, atol=2e-4)
        assert one.problem["masked"] == (5 - COUNTS).tolist()
        assert one.full.lengths == tuple(COUNTS)
    return analysis


@pytest.mark.parametrize("make", [L.LSTM, L.GRU, pytest.param(L.SimpleRNN, marks=pytest.mark.slow)])
def test_mask_of_an_embedding(make, tmp_path):
    layer = make(HIDDEN, name="one", go_backwards=make is L.GRU)
    model = sequential(L.Dropout(0.5), layer)
    table = np.asarray(model.layers[0].embeddings)
    for checkpoint in (saved(model, tmp_path / "x.keras"), saved(model, tmp_path / "x.h5"), model):
        checkpoint = gradscope.from_keras(model) if checkpoint is model else checkpoint
        check(checkpoint, {"one": table[IDS]}, {"one": layer}, inputs=IDS, embedding="words")


def test_mask_through_a_stack_and_two_directions(tmp_path):
    first, both = recurrent(L.LSTM, "a"), L.Bidirectional(recurrent(L.GRU, "b"), name="both")
    model = sequential(first, both, recurrent(L.LSTM, "top"))
    parts = [keras.Model(model.inputs[0], layer.output)(IDS) for layer in model.layers[:3]]
    table, of_first, of_both = map(np.asarray, parts)
    read = {"a": table, "forward_b": of_first, "backward_b": of_first, "top": of_both}
    layers = {"a": first, "forward_b": both.forward_layer, "backward_b": both.backward_layer}
    layers["top"] = model.layers[-1]
    path = saved(model, tmp_path / "x.keras")
    check(path, read, layers, inputs=IDS, embedding="words")


def functional():
    """Masks that the config spells out as operations, one of them of two that are joined."""
    ids = keras.Input((5,), dtype="int32", name="ids")
    words = embedding()(ids)
    a = recurrent(L.LSTM, "a")(words)
    beside = recurrent(L.GRU, "b")(L.Concatenate()([a, L.Dropout(0.1)(a)]))
    return filled(keras.Model(ids, beside))


def test_mask_that_a_functional_model_spells_out(tmp_path):
    model = functional()
    layers = {name: model.get_layer(name) for name in ("a", "b")}
    of_a = np.asarray(keras.Model(model.inputs[0], layers["a"].output)(IDS))
    read = {"a": np.asarray(model.get_layer("words").embeddings)[IDS], "b": np.concatenate([of_a, of_a], 2)}
    for checkpoint in (saved(model, tmp_path / "x.keras"), gradscope.from_keras(model)):
        check(checkpoint, read, layers, inputs=IDS, embedding="words")


@pytest.mark.parametrize("value", [0.0, -99.9])
@pytest.mark.parametrize("spelled_out", [False, True])
def test_masking(spelled_out, value, tmp_path):
    """A step of which one feature alone has the value is no masked one."""
    x = np.random.default_rng(3).standard_normal((*IDS.shape, INPUT)).astype(np.float32)
    x[IDS == 0] = value
    x[3, 0, 0] = value
    layer, masking = L.LSTM(HIDDEN, name="one"), L.Masking(value, name="mask")
    given = keras.Input((5, INPUT))
    if spelled_out:
        model = filled(keras.Model(given, layer(masking(given))))
    else:
        model = filled(keras.Sequential([given, masking, L.GaussianNoise(0.1), layer]))
    for checkpoint in (saved(model, tmp_path / "x.keras"), gradscope.from_keras(model)):
        check(checkpoint, {"one": x}, {"one": layer}, inputs=x)


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_padded_sequence_is_the_sequence(number, tmp_path):
    """All that is measured, also of a stack, its loss and its gates, is as if it had never been padded."""
    first, top = recurrent(L.LSTM, "a"), L.GRU(HIDDEN, name="b")
    path = saved(sequential(first, top, L.Dense(2, name="readout")), tmp_path / "x.keras")
    choice = {"checkpoint": path, "embedding": "words", "readout": "readout"}
    ids = IDS[number]
    padded = gradscope.analyze(inputs=ids, **choice).to_dict()
    alone = gradscope.analyze(inputs=ids[ids != 0], **choice).to_dict()
    masked = [one["problem"].pop("masked") for one in (padded, *padded["layers"])]
    assert masked == [[int((ids == 0).sum())]] * 3
    assert all(one["problem"].pop("masked") == [0] for one in (alone, *alone["layers"]))
    assert padded == alone


def test_top_values_of_masked_sequences(tmp_path):
    path = saved(sequential(L.GRU(HIDDEN, name="one")), tmp_path / "x.keras")
    top, every = (
        gradscope.analyze(checkpoint=path, inputs=IDS, embedding="words", top=top) for top in (2, "all")
    )
    np.testing.assert_allclose(gains(top), gains(every), rtol=0, atol=1e-9)


def test_adjoint_at_every_step_is_by_the_steps_that_were_given(tmp_path):
    path = saved(sequential(L.GRU(HIDDEN, name="one")), tmp_path / "x.keras")
    choice = {"checkpoint": path, "embedding": "words"}
    adjoint = np.random.default_rng(4).standard_normal((*IDS.shape, HIDDEN)) * (IDS != 0)[..., None]
    together = gradscope.analyze(inputs=IDS, adjoint=adjoint, **choice).to_dict()["loss"]["profile"]
    for number, (ids, there) in enumerate(zip(IDS, IDS != 0, strict=True)):
        one = {"inputs": ids[there], "adjoint": adjoint[number, there]}
        alone = gradscope.analyze(**one, **choice).to_dict()["loss"]["profile"]
        ours = np.array(together["log10_norm"][number][: there.sum() + 1])
        np.testing.assert_allclose(ours, alone["log10_norm"][0], rtol=0, atol=1e-12)
    with pytest.raises(InputError, match=r"adjoint is not 0 at step 0 of sequence 0, which is masked"):
        gradscope.analyze(inputs=IDS, adjoint=adjoint + 1, **choice)


def test_steps_and_lengths_go_with_a_mask(tmp_path):
    path = saved(sequential(L.GRU(HIDDEN, name="one")), tmp_path / "x.keras")
    choice = {"checkpoint": path, "embedding": "words"}
    cut = gradscope.analyze(inputs=IDS, steps=3, **choice)
    assert (cut.full.lengths, cut.problem["masked"]) == ((1, 2, 1, 3), [2, 1, 2, 0])
    within = gradscope.analyze(inputs=IDS, lengths=[4, 2, 1, 5], **choice)
    assert (within.full.lengths, within.problem["masked"]) == ((2, 2, 1, 5), [2, 0, 0, 0])
    with pytest.raises(InputError, match="sequence 0 of the inputs is masked at every step"):
        gradscope.analyze(inputs=IDS, steps=2, **choice)


# What the inputs do not tell


def mask_of(*layers, shape=(5, INPUT), dtype="float32"):
    """The mask of the layer ``one`` on top of these."""
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *layers, L.GRU(HIDDEN, name="one")])
    (found,) = (f for f in checkpoints.read_all(gradscope.from_keras(model)).layers if f.name == "one")
    return found.mask


def test_masks_end_where_keras_ends_them():
    masking, maskless = L.Masking(name="mask"), L.Conv1D(INPUT, 3, padding="same")
    assert mask_of(masking).kind == "features"
    assert mask_of(masking, L.Dense(INPUT)).kind == ""  # what the layer reads does not tell it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert mask_of(masking, maskless) is None
    assert mask_of(masking, L.LSTM(2, name="a"), L.RepeatVector(3)) is None
    assert mask_of(L.Dense(INPUT)) is None
    assert mask_of(masking, recurrent(L.LSTM, "a"), L.Dense(INPUT)).kind == ""


def test_inputs_that_do_not_tell_the_mask_are_refused_or_come_with_lengths(tmp_path):
    model = sequential(L.TimeDistributed(L.Dense(INPUT)), L.GRU(HIDDEN, name="one"))
    own = np.asarray(keras.Model(model.inputs[0], model.layers[1].output)(IDS))
    choice = {"checkpoint": saved(model, tmp_path / "x.keras"), "inputs": own, "layer": "one"}
    with pytest.raises(
        InputError, match=r"mask of words\), which the inputs do not tell: give how many steps"
    ):
        gradscope.analyze(**choice)
    expected = keras_gains(model.layers[-1], own, IDS != 0)
    found = gradscope.analyze(**choice, lengths=[5, 2, 5, 5])
    assert gains(found)[1] == pytest.approx(expected[1], abs=2e-4)
    straight = saved(sequential(L.GRU(HIDDEN, name="one")), tmp_path / "y.keras")
    with pytest.raises(InputError, match=r"give token ids with --embedding words, or give how many steps"):
        gradscope.analyze(checkpoint=straight, inputs=own)


def test_a_mask_from_elsewhere_is_not_the_embeddings():
    """Given by the user of Keras as an input of its own, or of other ids."""
    ids, other = keras.Input((5,), dtype="int32", name="ids"), keras.Input((5,), dtype="bool", name="given")
    words = L.Embedding(9, INPUT, name="words")(ids)
    model = keras.Model([ids, other], L.GRU(HIDDEN, name="one")(words, mask=other))
    for checkpoint in (gradscope.from_keras(model),):
        (found,) = checkpoints.read_all(checkpoint).layers
        assert found.mask.kind == ""
        with pytest.raises(
            InputError, match="steps that other parts of the model tell leave the state as it is"
        ):
            gradscope.analyze(checkpoint=checkpoint, inputs=IDS, embedding="words")


def test_keras_2_does_not_spell_out_its_masks():
    def layer(kind, name, *reads, **config):
        calls = [[[given, 0, 0, {}] for given in reads]] if reads else []
        return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": calls}

    layers = [
        layer("InputLayer", "x"),
        layer("Embedding", "words", "x", mask_zero=True),
        layer("LSTM", "a", "words", return_sequences=True),
        layer("LSTM", "b", "a"),
    ]
    config = {"layers": layers, "input_layers": [["x", 0, 0]], "output_layers": [["b", 0, 0]]}
    found = specs(json.dumps({"class_name": "Model", "config": config}))
    assert {name: spec.mask.kind for name, spec in found.items()} == {"a": "ids", "b": "ids"}


def test_what_is_said(tmp_path):
    path = saved(sequential(L.GRU(HIDDEN, name="one")), tmp_path / "x.keras")
    analysis = gradscope.analyze(checkpoint=path, inputs=IDS, embedding="words")
    jsonschema.validate(analysis.to_dict(), gradscope.schema())
    table = render_table(analysis, Look(Terminal(width=120)))
    assert "gru, hidden 4, 2 to 5 steps (0 to 3 masked), batch 4" in table
    (layer,) = inspect(path).to_dict()["layers"]
    assert layer["mask"] == "steps of token 0 leave the state as it is (mask of words)"
