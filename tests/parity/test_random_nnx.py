"""Random models of nnx in memory: each cell is analysed right, or refused by a reason.

The oracle is JAX: the Jacobians of the cell's own step along the states of float64, multiplied.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from oracles.models import log10_values

import gradscope
from gradscope.errors import InputError

D, N = 3, 4
DRAWS = [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))]
SQUASH = {"tanh": jnp.tanh, "relu": jax.nn.relu, "soft_sign": jax.nn.soft_sign, "sine": jnp.sin}


class Drawn(nnx.Module):
    """A cell of random equations."""

    def __init__(self, rng, size, rngs):
        self.form = str(rng.choice(["simple", "gated", "two"]))
        self.squash = str(rng.choice(["tanh", "relu", "sine"]))
        self.normed, self.noise = rng.random() < 0.4, rng.random() < 0.08
        gates = {"simple": 1, "gated": 2, "two": 4}[self.form]
        self.W = nnx.Linear(size, gates * N, rngs=rngs)
        self.R = nnx.Linear(N, gates * N, use_bias=False, rngs=rngs)
        self.norm = nnx.LayerNorm(gates * N, rngs=rngs)
        self.rngs = rngs if self.noise else None

    def __call__(self, carry, x):
        h = carry[-1] if self.form == "two" else carry
        pre = self.W(x) + self.R(h)
        pre = self.norm(pre) if self.normed else pre
        parts, squash = jnp.split(pre, pre.shape[-1] // N, -1), SQUASH[self.squash]
        if self.form == "simple":
            new = squash(parts[0])
        elif self.form == "gated":
            z = jax.nn.sigmoid(parts[0])
            new = z * h + (1 - z) * squash(parts[1])
        else:
            c = jax.nn.sigmoid(parts[0]) * carry[0] + jax.nn.sigmoid(parts[1]) * squash(parts[2])
            new = jax.nn.sigmoid(parts[3]) * jnp.tanh(c)
        if self.noise:
            new = new + jax.random.normal(self.rngs.noise(), new.shape)
        return ((c, new) if self.form == "two" else new), new


class Normed(nnx.GRUCell):
    """A subclass with equations of its own."""

    def __call__(self, carry, inputs):
        carry, out = super().__call__(carry, inputs)
        return 0.9 * carry, 0.9 * out


def theirs(rng, rngs):
    """A cell of nnx' own, or nearly."""
    kind = [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell, Normed][rng.integers(5)]
    how = {}
    if kind is nnx.SimpleCell or (kind is not Normed and rng.random() < 0.3):
        how["activation_fn"] = SQUASH[str(rng.choice(list(SQUASH)))]
    return kind(D, N, rngs=rngs, **how)


class Model(nnx.Module):
    """What stands before a cell, and its loop: of Python, or nnx' RNN."""

    def __init__(self, rng, rngs):
        self.front = nnx.Linear(D, D, rngs=rngs) if rng.random() < 0.5 else None
        self.own = rng.random() < 0.5
        self.cell = Drawn(rng, D, rngs) if self.own else theirs(rng, rngs)
        self.scanned = not self.own and rng.random() < 0.5
        self.reverse = self.scanned and rng.random() < 0.4
        if self.scanned:
            self.rnn = nnx.RNN(self.cell, reverse=self.reverse, keep_order=rng.random() < 0.5)

    def carry(self, batch):
        two = self.cell.form == "two" if self.own else "LSTM" in type(self.cell).__name__
        zeros = jnp.zeros((batch, N))
        return (zeros, zeros) if two else zeros

    def read(self, x):
        # In whole 64ths: else float32 rounds it in another way each time that it is compiled.
        return jnp.round(64 * jnp.tanh(self.front(x))) / 64 if self.front else x

    def __call__(self, x):
        x = self.read(x)
        if self.scanned:
            return self.rnn(x)
        carry = self.carry(len(x))
        for step in range(x.shape[1]):
            carry, out = self.cell(carry, x[:, step])
        return out


def expected(model, x):
    """The product of the steps' Jacobians for every sequence, in float64 on what the cell reads."""
    read = np.asarray(model.read(x))
    read = read[:, ::-1] if model.reverse else read
    graph, state = nnx.split(model.cell)
    with jax.enable_x64(True):
        state = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == jnp.float32 else leaf, state
        )
        cell, products = nnx.merge(graph, state), []
        for _, part in nnx.iter_graph(cell):
            if isinstance(part, nnx.Module) and getattr(part, "dtype", None) is jnp.float32:  # a SimpleCell's
                part.dtype = jnp.float64
        for one in np.asarray(read, np.float64):
            like = model.carry(1)
            parts = 2 if isinstance(like, tuple) else 1
            whole, product = jnp.zeros(parts * N), np.eye(parts * N)

            def step(whole, step, parts=parts):
                split = jnp.split(whole, parts)
                carry, _ = cell(tuple(split) if parts > 1 else split[0], step)
                return jnp.concatenate(carry) if parts > 1 else carry

            for now in one:
                product = np.asarray(jax.jacrev(step)(whole, now)) @ product
                whole = step(whole, now)
            products.append(product)
    return products


def outcome(seed):
    """Why a drawn model is refused, "right" where it is not and JAX says the same; else AssertionError."""
    rng = np.random.default_rng(seed)
    model = Model(rng, nnx.Rngs(seed))
    x = rng.standard_normal((2, int(rng.integers(3, 6)), D)).astype(np.float32)
    noise = model.own and model.cell.noise
    try:
        analysis = gradscope.analyze(checkpoint=gradscope.from_flax(model, x))
    except InputError as error:
        assert "draws random numbers" in str(error), str(error)  # noqa: PT017  # right or refused: both will do
        assert noise
        return "draws random numbers"
    assert not noise
    for ours, theirs_too in zip(analysis.full.spectra, expected(model, x), strict=True):
        with np.errstate(divide="ignore"):  # relu may let nothing through
            ours, found = ours.log10_singular_values, log10_values(theirs_too)
        there = found > found[0] - 7 if np.isfinite(found[0]) else np.zeros(len(found), bool)
        np.testing.assert_allclose(ours[there], found[there], rtol=0, atol=1e-6)
    return "right"


@pytest.mark.parametrize("seed", DRAWS)
def test_right_or_refused(seed):
    assert outcome(seed)
