"""Keras' layers on what they read in their own model; the oracle is Keras' own loop and JAX's autograd."""

from __future__ import annotations

import functools
import warnings

import jax
import keras
import numpy as np
import pytest
from oracles.models import log10_values
from oracles.recorded import check, refusal

import gradscope
from gradscope.errors import InputError

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
L = keras.layers
B, T, D, N = 2, 4, 3, 4
IDS = np.array([[1, 0, 3, 0], [0, 4, 5, 6]])


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def batch(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape or (B, T, D)).astype("float32")


def filled(model, *calls):
    """A model that has its weights, away from their initial values."""
    if calls:
        model(*calls)
    rng = np.random.default_rng(5)
    model.set_weights([rng.standard_normal(w.shape) * 0.5 for w in model.get_weights()])
    return model


def values(layer, x, states=None, mask=None):
    """log10 singular values of d(last state)/d(first state) of one sequence (T, d), by Keras and JAX."""
    sizes = np.atleast_1d(layer.cell.state_size)
    start = np.zeros(sum(sizes), "float32") if states is None else np.concatenate(states)
    mask = None if mask is None else mask[None]

    def last(state):
        parts = [part[None] for part in jax.numpy.split(state, np.cumsum(sizes)[:-1])]
        return jax.numpy.concatenate(layer.inner_loop(x[None], parts, mask)[2], axis=1)[0]

    # The layer has h first, and gradscope c: the same singular values.
    return log10_values(jax.jit(jax.jacrev(last))(start))


def reads(model, layer, given):
    """What a layer of a functional model reads, by a model of Keras."""
    x, *_mask = keras.tree.flatten(layer.input)
    return np.asarray(keras.Model(model.inputs[0], x)(given))


@functools.cache
def between():
    return filled(
        keras.Sequential(
            [
                keras.Input((T, D)),
                L.LSTM(N, return_sequences=True, name="lower"),
                L.Conv1D(3, 2, padding="same", activation="relu"),
                L.Bidirectional(L.GRU(N), name="both"),
            ]
        )
    )


@pytest.mark.parametrize("kind", ["live", "file"])
def test_layers_with_a_convolution_between(kind, tmp_path):
    model, x = between(), batch()
    if kind == "live":
        choice = {"checkpoint": gradscope.from_keras(model, x)}
    else:
        model.save(tmp_path / "x.keras")
        gradscope.record(model, x, tmp_path / "run.npz")
        choice = {"checkpoint": tmp_path / "x.keras", "inputs": tmp_path / "run.npz"}
    lower, _, both = model.layers
    check(expected=[values(lower, one) for one in x], layer="lower", **choice)
    y = reads(model, both, x)
    for layer in (both.forward_layer, both.backward_layer):
        expected = [values(layer, one) for one in y]
        found = check(expected=expected, layer=f"both/{layer.name}", **choice)
        assert found["problem"]["assumed"] == []
        assert found["problem"]["inputs"] == ("recorded" if kind == "live" else str(tmp_path / "run.npz"))
    assert len(gradscope.analyze(**choice).layers) == 3


@pytest.mark.parametrize("backwards", [True, slow(False)])
def test_masks_with_padding_in_between(backwards, tmp_path):
    """Layers behind a Dense, of which a file does not tell what they read."""
    first = L.LSTM(N, return_sequences=True, name="first")
    second = L.GRU(N, return_sequences=backwards, go_backwards=backwards, name="second")
    dense = L.TimeDistributed(L.Dense(D, activation="tanh"))
    words = L.Embedding(9, D, mask_zero=True)
    model = filled(keras.Sequential([keras.Input((T,), dtype="int32"), words, first, dense, second]))
    model.save(tmp_path / "x.keras")
    gradscope.record(model, IDS, tmp_path / "run.npz")
    for choice in (
        {"checkpoint": gradscope.from_keras(model, IDS)},
        {"checkpoint": tmp_path / "x.keras", "inputs": tmp_path / "run.npz"},
    ):
        for layer in (first, second):
            x = reads(model, layer, IDS)
            expected = [values(layer, *one) for one in zip(x, [None] * B, IDS != 0, strict=True)]
            found = check(expected=expected, layer=layer.name, **choice)
            assert found["problem"]["masked"] == [2, 1]
            assert found["problem"]["lengths"] == [2, 3]
    cut = gradscope.analyze(checkpoint=choice["checkpoint"], inputs=choice["inputs"], layer="first", steps=3)
    assert (cut.full.lengths, cut.problem["masked"]) == ((2, 2), [1, 1])
    assert "masked at every one of 1 step" in refusal(**choice, layer="first", steps=1)


def test_encoder_and_decoder():
    source, target = keras.Input((T, D), name="source"), keras.Input((T - 1, 2), name="target")
    encoder = L.LSTM(N, return_state=True, name="encoder")
    decoder = L.LSTM(N, return_sequences=True, name="decoder")
    _, *state = encoder(source)
    model = filled(keras.Model([source, target], decoder(target, initial_state=state)))
    x, y = batch(), batch(B, T - 1, 2, seed=1)
    _, *state = map(np.asarray, encoder(x))
    expected = [values(decoder, *one) for one in zip(y, zip(*state, strict=True), strict=True)]
    for given in ([x, y], {"source": x, "target": y}):
        live = gradscope.from_keras(model, given)
        found = check(live, expected, layer="decoder")
        assert found["problem"]["initial_state"] == "recorded"
        (said,) = found["problem"]["not_applied"]
        assert said.startswith("it starts from where encoder ended: the way back through its start is not")
    assert "not alike (decoder 2 of 3 steps, encoder 2 of 4 steps)" in refusal(live)


def test_stacked_cells():
    rnn = L.RNN([L.LSTMCell(N, name="a"), L.LSTMCell(3, name="b")], name="rnn")
    model = filled(keras.Sequential([keras.Input((T, D)), rnn]))
    live = gradscope.from_keras(model, batch())
    a, b = (L.RNN(cell, return_sequences=True) for cell in rnn.cell.cells)
    y = np.asarray(a(batch()))
    check(live, [values(a, one) for one in batch()], layer="a")
    check(live, [values(b, one) for one in y], layer="b")
    rnn.cell.cells[0].kernel.assign(rnn.cell.cells[0].kernel * 1.01)
    assert "layer rnn/a puts out something else" in refusal(wrong_weights(live, model, batch()))


def wrong_weights(live, model, x):
    """A recording of other weights than those that were read."""
    from dataclasses import replace

    return replace(live, recorded=gradscope.from_keras(model, x).recorded)


class Loop(keras.Model):
    """A loop over a cell, which may read what it put out."""

    def __init__(self, *, forecasts):
        super().__init__()
        self.cell, self.dense, self.forecasts = L.GRUCell(N), L.Dense(D), forecasts

    def call(self, x):
        h, step = keras.ops.zeros((B, N)), x[:, 0]
        for t in range(T):
            out, (h,) = self.cell(step if self.forecasts else x[:, t], [h])
            step = self.dense(out)
        return step


@pytest.mark.parametrize("forecasts", [False, True])
def test_a_loop_over_a_cell(forecasts):
    model = filled(Loop(forecasts=forecasts), batch())
    live = gradscope.from_keras(model, batch())
    if forecasts:
        (said,) = gradscope.analyze(checkpoint=live).to_dict()["problem"]["not_applied"]
        assert said.startswith("what it reads depends on what it put out at steps before")
    else:
        found = check(live, [values(L.RNN(model.cell), one) for one in batch()])
        assert found["problem"]["not_applied"] == []


class Same(L.LSTM):
    """Keras' own computation by a call of its own."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return super().call(sequences, initial_state, mask, training)


class Scaled(L.LSTM):
    """Other outputs of the same states."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return 0.99 * super().call(sequences, initial_state, mask, training)


class Normed(L.LSTMCell):
    """Normalisation inside of an LSTM."""

    def build(self, shape):
        super().build(shape)
        self.gamma = self.add_weight(shape=(4 * self.units,), initializer="ones", name="gamma")

    def call(self, inputs, states, training=False):
        ops, (h, c) = keras.ops, states
        gates = ops.normalize(inputs @ self.kernel + h @ self.recurrent_kernel + self.bias) * self.gamma
        i, f, z, o = ops.split(gates, 4, axis=1)
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(z)
        h = ops.sigmoid(o) * ops.tanh(c)
        return h, [h, c]


@pytest.mark.parametrize("every", [True, False])
def test_layers_of_the_users_own(every):
    same = filled(keras.Sequential([keras.Input((T, D)), Same(N, return_sequences=every)]))
    assert "is no layer of Keras' own" in refusal(gradscope.from_keras(same), inputs=batch())
    check(gradscope.from_keras(same, batch()), [values(same.layers[0], one) for one in batch()])
    for layer in (Scaled(N, return_sequences=every), L.RNN(Normed(N), return_sequences=every, name="n")):
        model = filled(keras.Sequential([keras.Input((T, D)), layer]))
        found = check(gradscope.from_keras(model, batch()), [values(layer, one) for one in batch()])
        assert found["problem"]["jacobians"] == "keras"
        assert "computes something else than cell lstm" in found["problem"]["assumed"][-1]


def test_a_model_is_as_it_was():
    stateful = L.LSTM(N, stateful=True, return_sequences=True, dropout=0.5)
    model = filled(keras.Sequential([stateful, L.GaussianNoise(0.1), L.GRU(N)]), batch())
    before = [np.asarray(v) for v in (*model.variables, *stateful.states)]
    live = gradscope.from_keras(model, batch())
    assert live.recorded.layers[stateful.name].state["h0"].any()
    with pytest.raises(InputError, match=r"^from_keras\(Sequential\): its forward pass fails on the batch"):
        gradscope.from_keras(model, np.zeros((B, T, 9)))
    for one, was in zip((*model.variables, *stateful.states), before, strict=True):
        np.testing.assert_array_equal(np.asarray(one), was)
    assert not any({"call", "inner_loop"} & vars(layer).keys() for layer in model.layers)


def test_arguments_by_name_and_numbers_that_are_none():
    layer = L.GRU(N, zero_output_for_mask=True)
    layer.build((B, T, D))
    filled(layer)
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], bool)
    given = {"sequences": batch(), "initial_state": batch(B, N, seed=1), "mask": mask}
    expected = [values(layer, x, [h], m) for x, h, m in zip(*given.values(), strict=True)]
    check(gradscope.from_keras(layer, given), expected)
    assert refusal(gradscope.from_keras(layer, batch() * np.nan)).endswith("numbers that are not finite")
    never = {"sequences": batch(), "mask": np.zeros((B, T), bool)}
    assert refusal(gradscope.from_keras(layer, never)).endswith("is masked at every step of sequence 0")


def test_a_layer_that_is_called_twice_or_never():
    x, lstm = keras.Input((T, D)), L.LSTM(D, return_sequences=True, name="lstm")
    model = filled(keras.Model(x, lstm(lstm(x))))
    live = gradscope.from_keras(model, batch())
    assert "is called 2 times in the forward pass, and call 2 does not start from" in refusal(live)
    model = filled(Loop(forecasts=False), batch())
    model.call = lambda x: x
    assert "is not called in the forward pass" in refusal(gradscope.from_keras(model, batch()))


def test_half_precision_is_no_disagreement():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = L.LSTM(N, dtype="mixed_bfloat16", return_sequences=True)
        live = gradscope.from_keras(filled(keras.Sequential([keras.Input((T, D)), layer])), batch())
    assert live.recorded.layers[layer.name].rounding == 2.0**-7
    gradscope.analyze(checkpoint=live, top=1)
