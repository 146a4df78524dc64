"""What Keras does in training or between batches: said in JSON, table and by inspect, with its factor."""

from __future__ import annotations

import warnings
from functools import partial

import jax
import jsonschema
import keras
import numpy as np
import pytest
from oracles.models import HIDDEN, INPUT, STEPS, sequence

import gradscope
from gradscope import checkpoints
from gradscope.cells import find
from gradscope.cells.masked import masked

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
L = keras.layers
RECURRENT = (
    "recurrent_dropout of 0.25 in training: each unit enters the paths R* times 1.33333 or, with probability "
    "0.25, times 0, the same at every step of a sequence: per step a factor of at most 1.33333, 1 on average "
    "(--recurrent-dropout 0.25 measures it)"
)


def said(model, path):
    """What the layer ``one`` says of itself, in the file and in memory alike."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    each = []
    for checkpoint in (path, gradscope.from_keras(model)):
        (found,) = (f for f in checkpoints.read_all(checkpoint).layers if f.name.endswith("one"))
        each.append(found.not_applied)
    assert each[0] == each[1]
    return list(each[0])


def sequential(*layers):
    return keras.Sequential([keras.Input((STEPS, INPUT), batch_size=2), *layers])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_what_layers_do_besides(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    assert said(sequential(L.LSTM(HIDDEN, name="one")), path) == []
    layer = L.GRU(HIDDEN, dropout=0.5, recurrent_dropout=0.25, stateful=True, unroll=True, name="one")
    model = sequential(layer)
    model.compile(keras.optimizers.Adam(clipnorm=1.5), "mse")
    assert said(model, path) == [
        "dropout of 0.5 on its inputs in training: other inputs, no factor of the gain",
        RECURRENT,
        "stateful: in the model a batch starts from the states in which the one before ended",
        "unroll: the steps are written out one by one, which changes no number",
        "clipnorm of 1.5 in training: it cuts the weights' gradient after it has flowed back",
    ]


def test_layers_between_that_training_alone_knows(tmp_path):
    below = L.LSTM(HIDDEN, return_sequences=True, name="below")
    dropped = sequential(
        below, L.Dropout(0.5, name="drop"), L.GaussianNoise(1.0, name="noise"), L.GRU(2, name="one")
    )
    assert said(dropped, tmp_path / "x.keras") == [
        "in training, Dropout drop, GaussianNoise noise on what it reads: other inputs, no factor of its gain"
    ]
    plain = sequential(L.Dropout(0.5), below, L.GRU(2, name="one"))
    assert said(plain, tmp_path / "x.keras") == []


def test_stacked_cells_say_what_each_does(tmp_path):
    cells = [L.LSTMCell(HIDDEN, name="first"), L.GRUCell(HIDDEN, recurrent_dropout=0.25, name="one")]
    assert said(sequential(L.RNN(cells, name="stack")), tmp_path / "x.keras") == [RECURRENT]


def test_json_and_table_say_it(tmp_path):
    model = sequential(L.GRU(HIDDEN, recurrent_dropout=0.25, name="one"))
    analysis = gradscope.analyze(checkpoint=gradscope.from_keras(model), inputs=sequence())
    result = analysis.to_dict()
    jsonschema.validate(result, gradscope.schema())
    assert result["problem"]["not_applied"] == [RECURRENT]


def test_the_factor_of_recurrent_dropout():
    """A unit of an RNN whose recurrent matrix is 1 keeps its state, but for the dropout."""
    cell = L.SimpleRNNCell(400, activation="linear", recurrent_initializer="identity", recurrent_dropout=0.25)
    x = jax.numpy.zeros((1, INPUT))
    cell.build(x.shape)
    new, _ = cell(x, [jax.numpy.ones((1, 400))], training=True)
    factors, counts = np.unique(np.asarray(new).round(5), return_counts=True)
    np.testing.assert_allclose(factors, [0, 1.33333])
    assert counts[0] / 400 == pytest.approx(0.25, abs=0.1)


def test_the_step_with_recurrent_dropout_is_that_of_keras():
    """One mask of h for each gate; the state, and its Jacobian, with masks that are put into Keras' cell."""
    rng, n = np.random.default_rng(0), 3
    cell, x = L.LSTMCell(n, recurrent_dropout=0.25), rng.normal(size=(1, INPUT)).astype("float32")
    cell.build(x.shape)
    masks = {gate: ((rng.random((1, n)) >= 0.25) / 0.75).astype("float32") for gate in "ifzo"}
    cell._recurrent_dropout_mask = [jax.numpy.asarray(mask) for mask in masks.values()]

    def theirs(state):
        _, (h, c) = cell(x, [state[None, n:], state[None, :n]], training=True)
        return jax.numpy.concatenate([c[0], h[0]])

    arrays = {"W": cell.kernel, "R": cell.recurrent_kernel, "b": cell.bias}
    parameters = {
        f"{kind}_{gate}": part.T
        for kind, array in arrays.items()
        for gate, part in zip("ifzo", np.split(np.asarray(array), 4, axis=-1), strict=True)
    }
    ours = find("lstm")
    given = jax.numpy.concatenate([x[0], *(masks[path[2:]][0] for path in ours.paths if path[0] == "R")])
    step = partial(masked(ours, "recurrent-dropout", n, ours.paths).step, parameters, given)
    state = jax.numpy.asarray(rng.normal(size=2 * n), "float32")
    np.testing.assert_allclose(step(state), theirs(state), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jacrev(step)(state), jax.jacrev(theirs)(state), rtol=1e-4, atol=1e-6)
