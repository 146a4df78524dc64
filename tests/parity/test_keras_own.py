"""Keras cells and layers that gradscope has no equations for: its answers are Keras' own autograd.

The oracle is the derivative of a layer's last states by its first ones, through Keras' own loop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import keras
import numpy as np
import pytest
from oracles.keras_cells import Leaky, Loop, Noisy, Normed, Parts, Thrice
from oracles.models import log10_values
from oracles.recorded import check, refusal

import gradscope
from gradscope.errors import InputError
from gradscope.report.table import render_table
from gradscope.report.views import Look, Terminal

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
L = keras.layers
TESTS = Path(__file__).parents[1], Path(__file__).parents[2]
B, T, D, N = 2, 5, 3, 4


def batch(seed=0):
    x = np.random.default_rng(seed).standard_normal((B, T, D)).astype("float32")
    x[0, 1] = x[1, 0] = x[1, -1] = 0  # which Masking() leaves out
    return x


def filled(model):
    rng = np.random.default_rng(5)
    for weight in model.trainable_variables:
        weight.assign(rng.standard_normal(weight.shape) * 0.5)
    return model


def sequential(*layers):
    return filled(keras.Sequential([keras.Input((T, D)), *layers]))


def jacobians(layer, x, mask=None, start=None):
    """d(last states)/d(first states) of every sequence by Keras and JAX, (B, m, m)."""
    sizes = [size for one in np.atleast_1d(layer.cell.state_size) for size in np.atleast_1d(one)]
    nested = hasattr(layer.cell, "cells")

    def last(state, x, mask):
        parts = [part[None] for part in jax.numpy.split(state, np.cumsum(sizes)[:-1])]
        parts = [parts[:2], parts[2:]] if nested else parts
        found = layer.inner_loop(x[None], parts, None if mask is None else mask[None])[2]
        return jax.numpy.concatenate(keras.tree.flatten(found), axis=1)[0]

    start = np.zeros((len(x), sum(sizes)), "float32") if start is None else start
    masks = [None] * len(x) if mask is None else mask
    jacobian = jax.jit(jax.jacrev(last))
    return [jacobian(*one) for one in zip(start, x, masks, strict=True)]


def expected(layer, x, mask=None, start=None):
    return [log10_values(one) for one in jacobians(layer, x, mask, start)]


CELLS = {
    "subclass": lambda: Normed(N),
    "own": lambda: Leaky(N),
    "parts": lambda: Parts(N, 3),
    "stacked": lambda: [L.LSTMCell(N), Normed(3)],
}


@pytest.mark.parametrize(
    ("kind", "masked"),
    [
        ("subclass", False),
        ("parts", True),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [("own", True), ("stacked", True)]),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [("subclass", True), ("stacked", False)]),
    ],
)
def test_cells_in_an_rnn(kind, masked):
    rnn = L.RNN(CELLS[kind](), return_sequences=masked, go_backwards=masked, name="l1")
    model = sequential(*[L.Masking()] * masked, L.Dropout(0.3), rnn)
    mask = np.any(batch() != 0, axis=-1) if masked else None
    analysis = gradscope.analyze(checkpoint=gradscope.from_keras(model, batch()))
    theirs = expected(rnn, batch(), mask)
    found = check(gradscope.from_keras(model, batch()), theirs)
    assert (found["problem"]["jacobians"], found["problem"]["layer"]) == ("keras", "l1")
    assert "Jacobians by keras's own derivatives" in render_table(analysis, Look(Terminal(100)))
    if masked:
        assert (found["problem"]["masked"], found["problem"]["lengths"]) == ([1, 2], [4, 3])
        assert "leave steps out" in refusal(gradscope.from_keras(model, batch()), steps=3)
    check(gradscope.from_keras(model, batch()), [one[:1] for one in theirs], top=1)
    sums = sum(np.asarray(list(found["shares"].values())))
    assert sums == pytest.approx(1, abs=1e-6)


def test_paths_and_lags():
    """Of h = a h + tanh(U x + R h) the chains of both paths have closed forms."""
    rnn = L.RNN(Leaky(N, 0.5), return_sequences=True)
    model = sequential(rnn)
    found = gradscope.analyze(checkpoint=gradscope.from_keras(model, batch())).to_dict()
    chains = {chain["name"]: chain["log10_singular_values"] for chain in found["chains"]}
    U, R = (np.asarray(w, float) for w in rnn.get_weights())
    for k, x in enumerate(batch().astype(float)):
        h, product, lags = np.zeros(N), np.eye(N), []
        for step in x:
            slope = 1 - np.tanh(step @ U + h @ R) ** 2
            h = 0.5 * h + np.tanh(step @ U + h @ R)
            lags.append(0.5 * np.eye(N) + slope[:, None] * R.T)
            product = slope[:, None] * R.T @ product
        np.testing.assert_allclose(chains["R"][k], log10_values(product), atol=1e-9)
        np.testing.assert_allclose(chains["direct"][k], [T * np.log10(0.5)] * N, atol=1e-12)
        gains = [
            np.log10(np.linalg.norm(np.linalg.multi_dot([np.eye(N), *lags[::-1][:j], np.eye(N)]), 2))
            for j in range(1, T + 1)
        ]
        np.testing.assert_allclose(found["profile"]["log10_norm"][k], gains, atol=1e-9)


def test_two_directions_and_what_reads_them():
    """A layer above reads what it was recorded to read; no chain goes through what has no equations."""
    both = L.Bidirectional(L.RNN(Normed(N), return_sequences=True, name="own"), name="both")
    top = L.LSTM(N, name="top")
    model = sequential(L.Masking(), both, top)
    live, mask = gradscope.from_keras(model, batch()), np.any(batch() != 0, axis=-1)
    for layer in (both.forward_layer, both.backward_layer):
        found = check(live, expected(layer, batch(), mask), layer=f"both/{layer.name}")
        assert found["problem"]["jacobians"] == "keras"
    y = keras.Model(model.inputs[0], keras.tree.flatten(top.input)[0])(batch())
    found = check(live, expected(top, np.asarray(y), mask), layer="top")
    assert found["problem"]["jacobians"] == "own"
    assert len(gradscope.analyze(checkpoint=live).layers) == 3


def test_a_loss_of_what_it_puts_out():
    """dL/dh of a sum of the outputs, by lag, against Keras' own gradient."""
    rnn = L.RNN(Normed(N), name="rnn")
    model = sequential(rnn)
    found = gradscope.analyze(checkpoint=gradscope.from_keras(model, batch()), adjoint=np.ones(N)).to_dict()
    weights = [np.concatenate([np.ones(N), np.zeros(N)])] * B
    theirs = [w @ j for w, j in zip(weights, jacobians(rnn, batch()), strict=True)]
    ours = [one[-1] for one in found["loss"]["profile"]["log10_norm"]]
    np.testing.assert_allclose(ours, np.log10(np.linalg.norm(theirs, axis=1)), atol=1e-4)
    other = gradscope.from_keras(sequential(L.RNN(Parts(N, 3))), batch())
    assert "no part of the state" in refusal(other, adjoint=np.ones(3))


def test_given_states_and_a_loop_of_the_users_own():
    rnn = L.RNN(Normed(N))
    start = np.random.default_rng(3).standard_normal((B, 2 * N)).astype("float32")
    x = keras.Input((T, D))
    states = [keras.Input((N,)), keras.Input((N,))]
    model = filled(keras.Model([x, *states], rnn(x, initial_state=states)))
    found = check(
        gradscope.from_keras(model, [batch(), start[:, :N], start[:, N:]]),
        expected(rnn, batch(), start=start),
    )
    assert found["problem"]["jacobians"] == "keras"
    model = Loop(Leaky(N))
    model(batch())
    found = check(gradscope.from_keras(filled(model), batch()), expected(L.RNN(model.cell), batch()))
    assert found["problem"]["not_applied"] == []
    model = Loop(Leaky(N), forecasts=True)
    model(batch())
    found = gradscope.analyze(checkpoint=gradscope.from_keras(model, batch())).to_dict()
    (said,) = found["problem"]["not_applied"]
    assert said.startswith("what it reads depends on what it put out at steps before")


def test_what_cannot_be_stepped_is_said():
    noisy = gradscope.from_keras(sequential(L.RNN(Noisy(N), name="rnn")), batch())
    assert "it draws random numbers" in refusal(noisy)
    thrice = gradscope.from_keras(sequential(Thrice(N)), batch())
    assert "keras cannot differentiate it: it computes something else than its cell" in refusal(thrice)
    alone = sequential(L.RNN(Leaky(N), name="rnn"))
    with pytest.raises(InputError, match=r"layer rnn has a cell of its own, Leaky, .* give a batch as well"):
        gradscope.from_keras(alone)
    twice, x = L.RNN(Normed(D), return_sequences=True), keras.Input((T, D))
    live = gradscope.from_keras(filled(keras.Model(x, twice(twice(x)))), batch())
    assert "is called 2 times in the forward pass, and call 2 does not start from" in refusal(live)


def test_a_model_is_as_it_was():
    model = sequential(L.Masking(), L.RNN(Parts(N, 3), return_sequences=True), L.RNN(Normed(N)))
    before = [np.asarray(v) for v in model.variables]
    gradscope.analyze(checkpoint=gradscope.from_keras(model, batch()))
    for variable, was in zip(model.variables, before, strict=True):
        assert variable.dtype == str(was.dtype)
        np.testing.assert_array_equal(np.asarray(variable), was)
    assert (keras.config.floatx(), keras.backend.result_type("float64", float)) == ("float32", "float32")
    assert {layer.dtype_policy.name for layer in model._flatten_layers()} == {"float32"}


def test_half_precision_is_compared_in_its_own():
    rnn = L.RNN(Normed(N, dtype="mixed_bfloat16"), return_sequences=True, dtype="mixed_bfloat16")
    found = gradscope.analyze(checkpoint=gradscope.from_keras(sequential(rnn), batch())).to_dict()
    ours = [one[0] for one in found["chains"][0]["log10_singular_values"]]
    single = L.RNN(Normed(N), return_sequences=True)
    single.build((B, T, D))
    single.set_weights(rnn.get_weights())
    np.testing.assert_allclose(ours, [one[0] for one in expected(single, batch())], atol=0.02)


OTHERS = """
import json, numpy as np, keras
from oracles.keras_cells import Leaky, Normed, Parts
import gradscope
L, ops, rng = keras.layers, keras.ops, np.random.default_rng(0)
x = rng.standard_normal((2, 5, 3)).astype("float32")
x[0, 1] = 0
out = []
for cell in (Normed(4), Leaky(4), Parts(4, 3), [L.LSTMCell(4), Normed(3)]):
    rnn = L.RNN(cell, go_backwards=True)
    model = keras.Sequential([keras.Input((5, 3)), L.Masking(), rnn])
    for weight in model.trainable_variables:
        weight.assign(rng.standard_normal(weight.shape) * .5)
    found = gradscope.analyze(checkpoint=gradscope.from_keras(model, x)).to_dict()
    sizes = [int(n) for one in np.atleast_1d(rnn.cell.state_size) for n in np.atleast_1d(one)]
    nested = hasattr(rnn.cell, "cells")
    theirs = []
    for k in range(2):
        def last(state):
            ends = np.cumsum([0, *sizes])
            parts = [state[None, ends[j]:ends[j + 1]] for j in range(len(sizes))]
            parts = [parts[:2], parts[2:]] if nested else parts
            mask = ops.convert_to_tensor(np.any(x[k:k + 1] != 0, axis=-1))
            states = rnn.inner_loop(ops.convert_to_tensor(x[k:k + 1]), parts, mask)[2]
            return ops.concatenate(keras.tree.flatten(states), axis=1)[0]
        theirs.append(float(np.log10(np.linalg.norm(jacobian(last, ops.zeros(sum(sizes))), 2))))
    ours = [one[0] for one in found["chains"][0]["log10_singular_values"]]
    names = [one["name"] for one in found["chains"]]
    out.append([ours, theirs, found["problem"]["jacobians"], names, found["problem"]["dtype"]])
print(json.dumps(out))
"""
JACOBIANS = {
    "torch": """
import torch
def jacobian(function, at):
    return torch.autograd.functional.jacobian(function, at).numpy()
""",
    "tensorflow": """
import tensorflow
def jacobian(function, at):
    with tensorflow.GradientTape(persistent=True) as tape:
        tape.watch(at)
        made = function(at)
    return tape.jacobian(made, at, experimental_use_pfor=False).numpy()
""",
}


@pytest.mark.parametrize("backend", JACOBIANS)
def test_on_other_backends(backend):
    """The same on another backend, in a process of its own; the oracle is that one's autograd."""
    pytest.importorskip(backend)
    there = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join([*map(str, TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    program = JACOBIANS[backend] + OTHERS
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        env=there,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    paths = []
    for ours, theirs, by, names, dtype in json.loads(run.stdout.splitlines()[-1]):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        assert (by, dtype) == ("keras", "float64")
        paths.append({name.rpartition("/")[2] for name in names})
    assert [len(names) for names in paths] == [3, 3, 3, 4]
    assert "R" in paths[1]
