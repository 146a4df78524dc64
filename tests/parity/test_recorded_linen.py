"""linen's cells on what they read in their own model; the oracle is the cell itself and JAX's autograd."""

from __future__ import annotations

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.models import log10_values
from oracles.recorded import check

import gradscope
from gradscope.errors import InputError

B, T, D, N = 2, 4, 3, 4


def batch(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape or (B, T, D)), "float32")


def bound(model, *given):
    return model.bind(model.init(jax.random.key(0), *given))


def values(cell, parameters, x, start=None):
    """log10 singular values of d(last state)/d(first state) of one sequence (T, d), as the cell reads it."""
    count = 2 if isinstance(cell, nn.LSTMCell) else 1
    start = jnp.zeros(count * cell.features) if start is None else start

    def last(parts):
        carry = tuple(jnp.split(parts, count)) if count == 2 else parts
        for step in x:
            carry, _ = cell.apply({"params": parameters}, carry, step)
        return jnp.concatenate(carry) if count == 2 else carry

    with np.errstate(divide="ignore"):
        return log10_values(jax.jacrev(last)(start))


class Model(nn.Module):
    """Flax' scans of every kind, and what stands between them."""

    @nn.compact
    def __call__(self, x, lengths=None):
        lower = nn.RNN(nn.LSTMCell(N), name="lower")(x, seq_lengths=lengths)
        x = nn.relu(nn.Dense(D, name="dense")(lower))
        self.sow("intermediates", "read_both", x)
        both = nn.Bidirectional(nn.RNN(nn.GRUCell(N)), nn.RNN(nn.GRUCell(N)))(x, seq_lengths=lengths)
        x = nn.tanh(nn.Dense(D, name="narrow")(both))
        self.sow("intermediates", "read_top", x)
        split = {"variable_broadcast": "params", "split_rngs": {"params": False}, "in_axes": 1, "out_axes": 1}
        top = nn.scan(nn.LSTMCell, **split)(N, name="top")
        return top((jnp.ones((B, N)), jnp.zeros((B, N))), x)[1]


@pytest.mark.parametrize("kind", ["live", "file"])
def test_every_cell_of_a_model(kind, tmp_path):
    x, lengths = batch(), [4, 3]
    given = {"x": x, "lengths": jnp.array(lengths)}
    model = Model()
    variables = {"params": model.init(jax.random.key(0), x)["params"]}
    if kind == "live":
        choice = {"checkpoint": gradscope.from_flax(model.bind(variables), given)}
    else:
        gradscope.record(model.bind(variables), given, tmp_path / "run.npz")
        (tmp_path / "x.msgpack").write_bytes(flax.serialization.to_bytes(variables["params"]))
        choice = {"checkpoint": tmp_path / "x.msgpack", "inputs": tmp_path / "run.npz"}
    parameters, kept = variables["params"], model.apply(variables, **given, mutable="intermediates")[1]
    (both,), (top,) = (kept["intermediates"][name] for name in ("read_both", "read_top"))
    cells = {
        "LSTMCell_0": (nn.LSTMCell(N), x, 1),
        "GRUCell_0": (nn.GRUCell(N), both, 1),
        "GRUCell_1": (nn.GRUCell(N), both, -1),
    }
    assert parameters.keys() - {"dense", "narrow", "top"} == cells.keys()
    for name, (cell, read, turn) in cells.items():
        each = zip(read, lengths, strict=True)
        theirs = [values(cell, parameters[name], one[:n][::turn]) for one, n in each]
        found = check(expected=theirs, layer=name, **choice)
        assert found["problem"]["lengths"] == lengths
    start = jnp.concatenate([jnp.ones(N), jnp.zeros(N)])
    theirs = [values(nn.LSTMCell(N), parameters["top"], one, start) for one in top]
    check(expected=theirs, layer="top", **choice)


def test_functions_of_a_cell_that_its_parameters_do_not_say():
    cell = nn.SimpleCell(N, activation_fn=nn.relu)
    model = bound(nn.RNN(cell, time_major=True, reverse=True, keep_order=True), batch())
    live = gradscope.from_flax(model, batch())
    expected = [values(cell, model.variables["params"]["cell"], one[::-1]) for one in batch().swapaxes(0, 1)]
    assert check(live, expected)["problem"]["cell"] == "rnn-relu"


class Normed(nn.LSTMCell):
    """Layer normalisation inside of an LSTM."""

    @nn.compact
    def __call__(self, carry, inputs):
        carry, out = super().__call__(carry, inputs)
        return carry, nn.LayerNorm(name="norm")(out)


def test_cells_of_the_users_own():
    model = bound(nn.RNN(Normed(N)), batch())
    with pytest.raises(
        InputError, match=r"has params.cell.norm.bias, which no cell of Flax has: if it .* --cell lstm"
    ):
        gradscope.analyze(checkpoint=gradscope.from_flax(model.variables), inputs=batch())
    live = gradscope.from_flax(model, batch())
    with pytest.raises(InputError, match=r"cell puts out something else than cell lstm .* at step 1 of"):
        gradscope.analyze(checkpoint=live)


class Loop(nn.Module):
    """A loop over a cell, which may read what it put out."""

    forecasts: bool

    @nn.compact
    def __call__(self, x):
        cell, dense = nn.GRUCell(N, name="cell"), nn.Dense(D)
        h, read = jnp.zeros((B, N)), x[:, 0]
        for t in range(T):
            h, out = cell(h, read if self.forecasts else x[:, t])
            read = dense(out)
        return read


@pytest.mark.parametrize("forecasts", [False, True])
def test_a_loop_over_a_cell(forecasts):
    live = gradscope.from_flax(bound(Loop(forecasts), batch()), batch())
    (one,) = live.recorded.layers.values()
    assert one.fed_back == forecasts
    assert one.inputs.shape == (B, T, D)


def test_what_cannot_run():
    model = nn.RNN(nn.GRUCell(N))
    variables = model.init(jax.random.key(0), batch())
    for source, given, said in [
        (model, batch(), r"expected a module of linen bound to its variables: model.bind\(variables\)"),
        (variables, batch(), r"was given parameters alone, .*: give model.bind\(variables\)"),
        (model.bind(variables), batch(B, T, 9), r"^from_flax\(RNN\): its forward pass fails on the batch"),
    ]:
        with pytest.raises(InputError, match=said):
            gradscope.from_flax(source, given)
