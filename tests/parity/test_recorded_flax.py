"""Flax' cells on what they read in their own model; the oracle is the cell itself, differentiated by JAX."""

from __future__ import annotations

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.models import log10_values
from oracles.recorded import check, refusal

import gradscope
from gradscope.errors import InputError

B, T, D, N = 2, 4, 3, 4


def batch(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape or (B, T, D)), "float32")


def values(cell, x, state=None):
    """log10 singular values of d(last state)/d(first state) of one sequence (T, d), as the cell reads it."""
    count = 2 if isinstance(cell, nnx.LSTMCell | nnx.OptimizedLSTMCell) else 1
    start = jnp.zeros(count * cell.hidden_features) if state is None else state

    def last(parts):
        carry = tuple(jnp.split(parts, count)) if count == 2 else parts
        for step in x:
            carry, _ = cell(carry, step)
        return jnp.concatenate(carry) if count == 2 else carry

    return log10_values(jax.jacrev(last)(start))


def rngs():
    return nnx.Rngs(0)


class Model(nnx.Module):
    """A scan of nnx, what stands between, two directions, and a scan of the user's own over a cell."""

    def __init__(self, *, feeds_back=False):
        self.lower = nnx.RNN(nnx.LSTMCell(D, N, rngs=rngs()), rngs=rngs())
        self.drop, self.dense = nnx.Dropout(0.5, rngs=rngs()), nnx.Linear(N, D, rngs=rngs())
        self.both = nnx.Bidirectional(
            nnx.RNN(nnx.GRUCell(D, N, rngs=rngs()), rngs=rngs()),
            nnx.RNN(nnx.GRUCell(D, N, rngs=nnx.Rngs(1)), rngs=rngs()),
            rngs=rngs(),
        )
        self.cell, self.narrow = nnx.LSTMCell(D, N, rngs=rngs()), nnx.Linear(2 * N, D, rngs=rngs())
        self.feeds_back = feeds_back

    def __call__(self, x, lengths=None):
        lower = self.lower(x, seq_lengths=lengths)
        both = self.both(self.between(lower), seq_lengths=lengths)
        return self.scan(jnp.tanh(self.narrow(both)))

    def between(self, lower):
        return jax.nn.relu(self.dense(self.drop(lower)))

    def scan(self, x):
        def step(carry, x):
            more = carry[1][:, :D] if self.feeds_back else 0
            return self.cell(carry, x + more)

        return jax.lax.scan(step, (jnp.ones((B, N)), jnp.zeros((B, N))), x.swapaxes(0, 1))[1]


@pytest.mark.parametrize("kind", ["live", "file"])
def test_every_cell_of_a_model(kind, tmp_path):
    model, x, lengths = Model(), batch(), [4, 3]
    model.train()
    given = {"x": x, "lengths": jnp.array(lengths)}
    if kind == "live":
        choice = {"checkpoint": gradscope.from_flax(model, given)}
    else:
        gradscope.record(model, given, tmp_path / "run.npz")
        tree = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        (tmp_path / "x.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
        choice = {"checkpoint": tmp_path / "x.msgpack", "inputs": tmp_path / "run.npz"}
    assert not model.drop.deterministic
    model.eval()
    lower = model.lower(x, seq_lengths=given["lengths"])
    both = model.between(lower)
    top = jnp.tanh(model.narrow(model.both(both, seq_lengths=given["lengths"])))
    sides = {"forward_rnn": 1, "backward_rnn": -1}
    expected = {
        "lower.cell": [values(model.lower.cell, one[:n]) for one, n in zip(x, lengths, strict=True)],
        **{
            f"both.{side}.cell": [
                values(getattr(model.both, side).cell, one[:n][::turn])
                for one, n in zip(both, lengths, strict=True)
            ]
            for side, turn in sides.items()
        },
    }
    for name, theirs in expected.items():
        found = check(expected=theirs, layer=name, **choice)
        assert found["problem"]["lengths"] == lengths
    start = jnp.concatenate([jnp.ones(N), jnp.zeros(N)])
    found = check(expected=[values(model.cell, one, start) for one in top], layer="cell", **choice)
    assert found["problem"]["initial_state"] == ("recorded" if kind == "live" else str(tmp_path / "run.npz"))
    assert found["problem"]["not_applied"] == []


def test_what_a_scan_feeds_back_is_said():
    live = gradscope.from_flax(Model(feeds_back=True), batch())
    assert [name for name, one in live.recorded.layers.items() if one.fed_back] == ["cell"]


@pytest.mark.parametrize("options", [{}, {"keep_order": True}, {"time_major": True, "return_carry": True}])
def test_a_layer_that_reads_from_the_end(options):
    model = nnx.RNN(nnx.SimpleCell(D, N, rngs=rngs()), reverse=True, rngs=rngs(), **options)
    x = batch().swapaxes(0, 1) if "time_major" in options else batch()
    live = gradscope.from_flax(model, {"inputs": x, "seq_lengths": jnp.array([2, 4])})
    found = check(live, [values(model.cell, one[:n][::-1]) for one, n in zip(batch(), (2, 4), strict=True)])
    assert found["problem"]["direction"] == "backward"
    # One that is turned round for a call.
    ahead = gradscope.from_flax(model, {"inputs": x, "reverse": False})
    check(ahead, [values(model.cell, one) for one in batch()])


class Mapped(nnx.Module):
    """A model of one sequence, mapped over a batch."""

    def __init__(self):
        self.cell = nnx.LSTMCell(D, N, rngs=rngs())

    def __call__(self, x):
        @nnx.jit
        def one(cell, x):
            start = (jnp.zeros(N), jnp.ones(N))
            return jax.lax.fori_loop(0, T, lambda t, carry: cell(carry, x[t])[0], start)

        return nnx.vmap(one, in_axes=(None, 0))(self.cell, x)


def test_a_loop_within_vmap():
    model = Mapped()
    live = gradscope.from_flax(model, batch())
    start = jnp.concatenate([jnp.zeros(N), jnp.ones(N)])
    check(live, [values(model.cell, one, start) for one in batch()])
    np.testing.assert_array_equal(live.recorded.layers["cell"].inputs, np.asarray(batch(), float))


class Normed(nnx.LSTMCell):
    """Layer normalisation inside of an LSTM."""

    def __init__(self, *sizes, rngs):
        super().__init__(*sizes, rngs=rngs)
        self.norm = nnx.LayerNorm(N, rngs=rngs)

    def __call__(self, carry, inputs):
        return super().__call__((carry[0], self.norm(carry[1])), inputs)


class Same(nnx.GRUCell):
    """Flax' own computation by a call of its own, and activations that are no function of JAX."""

    def __call__(self, carry, inputs):
        return super().__call__(carry, inputs)


class Sum(nnx.RNN):
    """A scan of the user's own, which makes something else of the outputs."""

    def __call__(self, inputs, **options):
        return super().__call__(inputs, **options).sum(axis=1)


def test_cells_of_the_users_own():
    same = Same(D, N, rngs=rngs())
    same.gate_fn = lambda x: jax.nn.sigmoid(x)
    found = check(
        gradscope.from_flax(Sum(same, rngs=rngs()), batch()), [values(same, one) for one in batch()]
    )
    assert (found["problem"]["jacobians"], found["chains"][1]["name"]) == ("own", "carry")
    other = Same(D, N, rngs=rngs())
    other.activation_fn = lambda x: jnp.tanh(1.01 * x)
    model = nnx.RNN(Normed(D, N, rngs=rngs()), rngs=rngs())
    for wrong in (nnx.RNN(other, rngs=rngs()), model):
        expected = [values(wrong.cell, one) for one in batch()]
        found = check(gradscope.from_flax(wrong, batch()), expected)
        assert found["problem"]["jacobians"] == "flax"
        assert "computes something else than cell" in found["problem"]["assumed"][0]
        matrix = "ho.kernel" if wrong is model else "dense_h.kernel"
        assert {matrix, "direct"} < {chain["name"] for chain in found["chains"]}
    assert "is a Normed, which computes in its own way: if" in refusal(
        gradscope.from_flax(nnx.Dict(cell=model.cell)), inputs=batch()
    )


def numbers(model):
    """All that a model holds, random streams too."""
    leaves = jax.tree.leaves(nnx.state(model))
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [jax.random.key_data(x) if key else np.array(x) for x, key in zip(leaves, is_key, strict=True)]


def test_a_model_is_as_it_was():
    model = Model()
    before = numbers(model)
    calls = [kind.__call__ for kind in (nnx.LSTMCell, nnx.GRUCell, nnx.RNN)]
    gradscope.from_flax(model, batch())
    with pytest.raises(InputError, match=r"^from_flax\(Model\): its forward pass fails on the batch"):
        gradscope.from_flax(model, batch(B, T, 9))
    assert [kind.__call__ for kind in (nnx.LSTMCell, nnx.GRUCell, nnx.RNN)] == calls
    assert not any(hasattr(part, "_gradscope_path") for _, part in nnx.iter_graph(model))
    for one, was in zip(numbers(model), before, strict=True):
        np.testing.assert_array_equal(one, was)
    assert not jax.config.jax_disable_jit


def test_a_cell_that_starts_anew():
    class Resets(nnx.Module):
        def __init__(self):
            self.cell = nnx.GRUCell(D, N, rngs=rngs())

        def __call__(self, x):
            for step in x.swapaxes(0, 1):
                out, _ = self.cell(jnp.zeros((B, N)), step)
            return out

    assert "is called 4 times in the forward pass, and call 2 does not" in refusal(
        gradscope.from_flax(Resets(), batch())
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_no_disagreement(dtype):
    cell = nnx.LSTMCell(D, N, dtype=dtype, rngs=rngs())
    live = gradscope.from_flax(nnx.RNN(cell, rngs=rngs()), batch().astype(dtype))
    assert live.recorded.layers["cell"].rounding == float(jnp.finfo(dtype).eps)
    gradscope.analyze(checkpoint=live)
