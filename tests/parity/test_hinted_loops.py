"""Loops of Keras, and of what JAX does not show the form that works: the answer is JAX's own."""

from __future__ import annotations

import json

import equinox
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from oracles.models import log10_values

import gradscope
from gradscope.errors import InputError

T, D, N = 5, 3, 4
X = np.random.default_rng(0).standard_normal((1, T, D)).astype("float32")
W = {"a": np.random.default_rng(1).normal(size=(D, N)) / 2, "b": np.random.default_rng(2).normal(size=(N, N))}
W = {name: matrix.astype("float32") for name, matrix in W.items()}


def step(h, x):
    return jnp.tanh(x @ W["a"] + h @ W["b"])


def whole():
    def run(h):
        for x in X[0]:
            h = step(h, x)
        return h

    return log10_values(jax.jacrev(run)(jnp.zeros(N)))


class KerasStep(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b = (self.add_weight(shape=W[name].shape, name=name) for name in "ab")
        self.built = True

    def call(self, x, h):
        return keras.ops.tanh(keras.ops.matmul(x, self.a) + keras.ops.matmul(h, self.b))


class KerasLoop(keras.Model):
    def __init__(self, *, called):
        super().__init__()
        self.step = KerasStep() if called else None
        self.a, self.b = (None if called else keras.layers.Dense(N, use_bias=False) for _ in "ab")

    def call(self, x):
        h = keras.ops.zeros((x.shape[0], N))
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h) if self.step else keras.ops.tanh(self.a(x[:, t]) + self.b(h))
        return h


class EquinoxLoop(equinox.Module):
    """A loop that JAX does not show."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x):
        def turn(state):
            return state[0] + 1, jnp.tanh(x[state[0]] @ self.a + state[1] @ self.b)

        return jax.lax.while_loop(lambda state: state[0] < len(x), turn, (0, jnp.zeros(N)))[1]


def made(kind, *, called):
    model = kind(called=called)
    if kind is KerasLoop:
        model(X)
        for variable in model.weights:
            variable.assign(W["a" if variable.shape[0] == D else "b"])
    return model


@pytest.mark.parametrize("called", [True, False])
def test_a_loop_of_keras(called):
    """Its step a layer that is called, or bare."""
    analysis = gradscope.analyze(checkpoint=gradscope.from_keras(made(KerasLoop, called=called), X))
    assert analysis.problem["jacobians"] == "keras"
    np.testing.assert_allclose(analysis.full.spectra[0].log10_singular_values, whole(), atol=1e-3)


def test_its_jacobians(run, tmp_path):
    with pytest.raises(InputError, match=r"or in a jax.lax.while_loop\); else give the one-step") as caught:
        gradscope.from_equinox(EquinoxLoop(jnp.array(W["a"]), jnp.array(W["b"])), X[0])
    assert "then gradscope chain j.npy" in str(caught.value)
    h, found = jnp.zeros(N), []
    for x in X[0]:
        found.append(jax.jacrev(step)(h, x))
        h = step(h, x)
    np.save(tmp_path / "j.npy", found)
    code, out, _ = run("chain", tmp_path / "j.npy", "--json")
    assert code == 0
    (values,) = json.loads(out)["chains"][0]["log10_singular_values"]
    np.testing.assert_allclose(values, whole(), atol=1e-3)
