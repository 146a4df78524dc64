"""Equinox' cells on what they read in their own model; the oracle is the cell itself and JAX's autograd."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.models import log10_values
from oracles.recorded import check, refusal

import gradscope
from gradscope.errors import InputError

B, T, D, N = 2, 4, 3, 4


def batch(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape or (B, T, D)), "float32")


def key(seed=0):
    return jax.random.key(seed)


def values(cell, x, start=None):
    """log10 singular values of d(last state)/d(first state) of one sequence (T, d), as the cell reads it."""
    count = 2 if isinstance(cell, eqx.nn.LSTMCell) else 1
    start = jnp.zeros(count * N) if start is None else start

    def last(parts):
        state = tuple(jnp.split(parts, count)) if count == 2 else parts
        for step in x:
            state = cell(step, state)
        return jnp.concatenate(state) if count == 2 else state

    return log10_values(jax.jacrev(last)(start))


class Model(eqx.Module):
    """Two cells and what stands between them, of one sequence."""

    lower: eqx.nn.LSTMCell
    drop: eqx.nn.Dropout
    dense: eqx.nn.Linear
    upper: eqx.nn.GRUCell
    feeds_back: bool

    def __init__(self, *, upper=eqx.nn.GRUCell, feeds_back=False):
        self.lower, self.upper = eqx.nn.LSTMCell(D, N, key=key()), upper(D, N, key=key(1))
        self.drop, self.dense = eqx.nn.Dropout(0.5, inference=True), eqx.nn.Linear(N, D, key=key(2))
        self.feeds_back = feeds_back

    def read(self, x):
        start = (jnp.zeros(N), jnp.zeros(N))
        _, lower = jax.lax.scan(lambda s, x: (s := self.lower(x, s), s[0]), start, x)
        return jax.nn.relu(jax.vmap(self.dense)(self.drop(lower)))

    def __call__(self, x):
        h = jnp.ones(N)
        for step in self.read(x):
            h = self.upper(step + self.feeds_back * h[:D], h)
        return h


def test_two_cells_mapped_over_a_batch():
    model = Model()
    loud = eqx.tree_at(lambda m: m.drop.inference, model, replace=False)
    live = gradscope.from_equinox(eqx.filter_vmap(loud), batch())
    assert not loud.drop.inference
    check(live, [values(model.lower, one) for one in batch()], layer="lower")
    expected = [values(model.upper, model.read(one), jnp.ones(N)) for one in batch()]
    found = check(live, expected, layer="upper")
    assert (found["problem"]["initial_state"], found["problem"]["not_applied"]) == ("recorded", [])


def test_one_sequence_and_a_cell_alone():
    live = gradscope.from_equinox(model := Model(), batch()[0])
    check(live, [values(model.lower, batch()[0])], layer="lower")
    cell = eqx.nn.GRUCell(D, N, use_bias=False, key=key())
    check(
        gradscope.from_equinox(cell, (batch()[0, 0], jnp.ones(N))),
        [values(cell, batch()[0, :1], jnp.ones(N))],
    )


def test_what_a_loop_feeds_back_is_said():
    live = gradscope.from_equinox(Model(feeds_back=True), batch()[0])
    assert {name: one.fed_back for name, one in live.recorded.layers.items()} == {
        "lower": False,
        "upper": True,
    }


def test_a_recording_in_a_file(tmp_path):
    gradscope.record(model := Model(), batch()[0], tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as arrays:
        np.testing.assert_array_equal(arrays["lower.inputs"], np.asarray(batch()[:1], float))
        np.testing.assert_allclose(arrays["upper.inputs"][0], model.read(batch()[0]), rtol=1e-5)


class Normed(eqx.nn.GRUCell):
    """Layer normalisation inside of a GRU."""

    def __call__(self, input, hidden, *, key=None):  # noqa: A002
        return super().__call__(input, eqx.nn.LayerNorm(N, use_weight=False, use_bias=False)(hidden))


class Same(eqx.nn.GRUCell):
    """Equinox' own computation by a call of its own."""

    def __call__(self, input, hidden, *, key=None):  # noqa: A002
        return super().__call__(input, hidden)


def test_cells_of_the_users_own():
    model = Model(upper=Same)
    expected = [values(model.upper, model.read(batch()[0]), jnp.ones(N))]
    check(gradscope.from_equinox(model, batch()[0]), expected, layer="upper")
    asked = gradscope.from_equinox(Model(upper=Normed))
    assert "is a Normed, which computes in its own way" in refusal(asked, layer="upper", inputs=batch())
    assert (
        gradscope.analyze(checkpoint=asked, layer="upper", inputs=batch()[0], cell="gru").problem["steps"]
        == T
    )
    live = gradscope.from_equinox(Model(upper=Normed), batch()[0])
    assert "layer upper puts out something else than cell gru with its weights" in refusal(
        live, layer="upper"
    )
    check(live, [values(model.lower, batch()[0])], layer="lower")


class Half(eqx.Module):
    """A model that computes in bfloat16, with weights in float32."""

    model: Model

    def __call__(self, x):
        def half(leaf):
            return leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf

        return jax.tree.map(half, self.model)(half(x))


def test_weights_in_another_precision():
    live = gradscope.from_equinox(Half(Model()), batch()[0])
    assert not live.recorded.problems
    gradscope.analyze(checkpoint=live, layer="lower")


def test_a_model_is_as_it_was():
    calls = [kind.__call__ for kind in (eqx.nn.LSTMCell, eqx.nn.GRUCell)]
    with pytest.raises(InputError, match=r"its forward pass fails on the batch .* or equinox.filter_vmap"):
        gradscope.from_equinox(Model(), batch())
    assert [kind.__call__ for kind in (eqx.nn.LSTMCell, eqx.nn.GRUCell)] == calls
    assert not jax.config.jax_disable_jit


class Adapted(eqx.Module):
    """A cell whose recurrent weights are its own and a product, put in as the model is called."""

    cell: eqx.nn.GRUCell
    up: jax.Array
    down: jax.Array

    def __init__(self):
        self.cell = eqx.nn.GRUCell(D, N, key=key())
        self.up, self.down = jnp.ones((3 * N, 1)), jnp.ones((1, N))

    def __call__(self, x):
        cell = eqx.tree_at(lambda c: c.weight_hh, self.cell, self.cell.weight_hh + self.up @ self.down)
        return jax.lax.scan(lambda h, x: (cell(x, h), None), jnp.zeros(N), x)[0]


def test_what_may_be_added_to_weights_is_asked_about():
    live = gradscope.from_equinox(Adapted())
    message = refusal(live, inputs=batch())
    assert "beside cell.weight_ih there are up, down, as large as its matrices" in message
    assert "add --cell gru" in message
