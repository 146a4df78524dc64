"""Flax trees as msgpack, npz and safetensors: the outputs and Jacobians of linen and nnx."""

from __future__ import annotations

import functools
import itertools

import flax.linen
import jax
import numpy as np
import pytest
from flax import nnx, serialization
from oracles.models import HIDDEN, INPUT, both_directions, check_spectrum, outputs, read_layer, sequence
from safetensors.numpy import save_file

from gradscope import checkpoints
from gradscope.errors import InputError


class Linen(flax.linen.Module):
    """Every cell of linen, one upon the other, and a pair of directions."""

    @flax.linen.compact
    def __call__(self, x):
        nn, found = flax.linen, []
        for cell in (nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell):
            x = nn.RNN(cell(HIDDEN), name=None)(x)
            found.append(x)
        return nn.Dense(2)(x), found


class Nnx(nnx.Module):
    """The same in nnx."""

    def __init__(self, rngs):
        self.cells = nnx.List(
            nnx.RNN(cell(features, HIDDEN, rngs=rngs), rngs=rngs)
            for cell, features in zip(
                (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell),
                (INPUT, HIDDEN, HIDDEN, HIDDEN),
                strict=True,
            )
        )
        self.head = nnx.Linear(HIDDEN, 2, rngs=rngs)

    def __call__(self, x):
        return list(itertools.accumulate(self.cells, lambda y, cell: cell(y), initial=x))[1:]


def shaken(tree):
    """The tree with biases, which Flax starts at 0, away from there."""
    rng = np.random.default_rng(6)
    return jax.tree.map(lambda a: np.asarray(a) + 0.3 * rng.standard_normal(a.shape).astype(a.dtype), tree)


def flax_stored(tree, path):
    if path.suffix == ".msgpack":
        path.write_bytes(serialization.msgpack_serialize(tree))
        return path
    flat = {
        "/".join(map(str, keys)): np.asarray(v) for keys, v in flax.traverse_util.flatten_dict(tree).items()
    }
    np.savez(path, **flat) if path.suffix == ".npz" else save_file(flat, path)
    return path


FLAX_NAMES = {
    "linen": [f"params.{name}_0" for name in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")],
    "nnx": [f"cells.{k}.cell" for k in range(4)],
}


@functools.cache
def flax_models():
    """(library, tree of parameters, outputs of every layer) of linen and of nnx."""
    x = sequence().astype(np.float32)[None]
    linen = Linen()
    tree = shaken(linen.init(jax.random.key(0), x))
    first = "linen", tree, [np.asarray(y)[0] for y in linen.apply(tree, x)[1]]
    model = Nnx(nnx.Rngs(0))
    state = shaken(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    graph, empty, rest = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(empty, state)
    return first, ("nnx", state, [np.asarray(y)[0] for y in nnx.merge(graph, empty, rest)(x)])


@pytest.mark.parametrize("suffix", [".msgpack", ".npz", ".safetensors"])
def test_flax_cells(suffix, tmp_path):
    cells = ["lstm", "lstm", "gru", "rnn"]
    for library, tree, states in flax_models():
        path = flax_stored(tree, tmp_path / f"{library}{suffix}")
        below = sequence().astype(np.float32)
        for name, cell, expected in zip(FLAX_NAMES[library], cells, states, strict=True):
            name = name if suffix == ".msgpack" else name.replace(".", "/")
            layer = read_layer(path, cell, layer=name)
            ours = outputs(layer, below.astype(float))
            np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)
            with pytest.raises(InputError, match="activation functions are not in the file: "):
                read_layer(path, layer=name)
            below = expected


@pytest.mark.parametrize("make", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_flax_jacobian(make, tmp_path):
    with jax.enable_x64(True):
        cell = make(INPUT, HIDDEN, rngs=nnx.Rngs(1), param_dtype=jax.numpy.float64, dtype=jax.numpy.float64)
        state = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
        parts = 2 if "LSTM" in make.__name__ else 1

        def run(start):
            carry = jax.numpy.split(start, parts) if parts == 2 else start
            carry = tuple(carry) if parts == 2 else carry
            for step in sequence()[:2]:
                carry, _ = cell(carry, step)
            return jax.numpy.concatenate(carry) if parts == 2 else carry

        jacobian = jax.jacobian(run)(jax.numpy.zeros(parts * HIDDEN))
        path = flax_stored(state, tmp_path / "x.msgpack")
    cell = {nnx.GRUCell: "gru", nnx.SimpleCell: "rnn"}.get(make, "lstm")
    check_spectrum(path, jacobian, cell=cell, inputs=sequence()[:2])


def test_flax_bidirectional_and_half_precision(tmp_path):
    rngs = nnx.Rngs(2)
    pair = (nnx.RNN(nnx.GRUCell(INPUT, HIDDEN, rngs=rngs), rngs=rngs) for _ in "ab")
    model = nnx.Bidirectional(*pair, rngs=rngs)
    state = shaken(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    state = jax.tree.map(lambda a: a.astype(jax.numpy.bfloat16), state)
    path = flax_stored(state, tmp_path / "x.msgpack")
    layers = [read_layer(path, "gru", layer=f"{side}_rnn.cell") for side in ("forward", "backward")]
    assert [found.name for found in checkpoints.read_all(path).layers] == [one.name for one in layers]
    assert layers[0].dtype == "bfloat16"
    graph, empty, rest = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(empty, jax.tree.map(lambda a: a.astype(np.float32), state))
    expected = np.asarray(nnx.merge(graph, empty, rest)(sequence().astype(np.float32)[None]))[0]
    np.testing.assert_allclose(both_directions(*layers, sequence()), expected, rtol=0, atol=2e-6)
