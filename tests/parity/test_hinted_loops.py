"""A bare loop of JAX' libraries is refused with the form that works, whose answer is JAX's own."""

from __future__ import annotations

import json

import equinox
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
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


class NnxStep(nnx.Module):
    def __init__(self):
        self.a, self.b = nnx.Param(jnp.array(W["a"])), nnx.Param(jnp.array(W["b"]))

    def __call__(self, x, h):
        return jnp.tanh(x @ self.a[...] + h @ self.b[...])


class NnxLoop(nnx.Module):
    """The step in the forward itself, or a module that is called."""

    def __init__(self, *, called):
        self.called, self.step = called, NnxStep()

    def __call__(self, x):
        h = jnp.zeros((len(x), N))
        for t in range(x.shape[1]):
            a, b = self.step.a[...], self.step.b[...]
            h = self.step(x[:, t], h) if self.called else jnp.tanh(x[:, t] @ a + h @ b)
        return h


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
    a: jax.Array
    b: jax.Array

    def __call__(self, x):
        return jax.lax.scan(lambda h, x: (jnp.tanh(x @ self.a + h @ self.b), 0), jnp.zeros(N), x)[0]


def made(kind, *, called):
    model = kind(called=called)
    if kind is KerasLoop:
        model(X)
        for variable in model.weights:
            variable.assign(W["a" if variable.shape[0] == D else "b"])
    return model


@pytest.mark.parametrize(
    ("kind", "read", "word"),
    [(NnxLoop, gradscope.from_flax, "module of nnx"), (KerasLoop, gradscope.from_keras, "layer")],
)
def test_the_step_as_a_module_that_is_called(kind, read, word, tmp_path):
    for ask in (read, lambda model, x: gradscope.record(model, x, tmp_path / "run.npz")):
        bare = made(kind, called=False)
        with pytest.raises(InputError, match=f"its step is a {word} of its own, called as h = self.step"):
            ask(bare, X)
    analysis = gradscope.analyze(checkpoint=read(made(kind, called=True), X))
    np.testing.assert_allclose(analysis.full.spectra[0].log10_singular_values, whole(), atol=1e-3)


def test_its_jacobians(run, tmp_path):
    with pytest.raises(InputError, match="give the one-step Jacobians: ") as caught:
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
