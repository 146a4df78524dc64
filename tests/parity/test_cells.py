"""Cells against the modules of PyTorch, Keras and Flax with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import keras
import numpy as np
import pytest
import torch
from flax import linen
from oracles.driving import Arrays, D, N, T, close, jacobians, parameters, product, run, sequence, start

from gradscope.cells import find


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


TORCH = {
    "rnn": (torch.nn.RNN, {"nonlinearity": "tanh"}, ("",)),
    "rnn-relu": (torch.nn.RNN, {"nonlinearity": "relu"}, ("",)),
    "lstm": (torch.nn.LSTM, {}, ("_i", "_f", "_z", "_o")),
    "gru": (torch.nn.GRU, {}, ("_r", "_z", "_h")),
}


def torch_module(name: str, p: Arrays) -> torch.nn.Module:
    kind, options, gates = TORCH[name]
    module = kind(D, N, dtype=torch.float64, **options)
    bias_hh = np.zeros(N * len(gates))
    if name == "gru":
        bias_hh[-N:] = p["c_h"]
    values = {
        "weight_ih_l0": np.concatenate([p[f"W{g}"] for g in gates]),
        "weight_hh_l0": np.concatenate([p[f"R{g}"] for g in gates]),
        "bias_ih_l0": np.concatenate([p[f"b{g}"] for g in gates]),
        "bias_hh_l0": bias_hh,
    }
    module.load_state_dict({key: torch.tensor(value) for key, value in values.items()})
    return module


@pytest.mark.parametrize("name", TORCH)
def test_chain_is_that_of_the_torch_module(name: str) -> None:
    """States and the Jacobian of the last state with respect to the first, over all steps."""
    cell, xs = find(name), sequence()
    p, state = parameters(cell), start(cell)
    module = torch_module(name, p)
    inputs = torch.tensor(xs)[:, None]

    def forward(first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [part.reshape(1, 1, N) for part in first.chunk(len(cell.components))]
        outputs, last = module(inputs, (parts[1], parts[0]) if name == "lstm" else parts[0])
        return outputs[:, 0], torch.cat([last[1], last[0]], -1).ravel() if name == "lstm" else last.ravel()

    outputs, last = forward(torch.tensor(state))
    states = run(name, p, xs, state)
    close(states[1:, -N:], outputs.detach().numpy())
    close(states[-1], last.detach().numpy())
    chain = torch.autograd.functional.jacobian(lambda s: forward(s)[1], torch.tensor(state)).numpy()
    close(product(jacobians(name, p, xs, states)), chain)


def test_relu_has_no_slope_at_zero_as_in_torch() -> None:
    p = {"W": np.zeros((N, D)), "R": np.eye(N), "b": np.zeros(N)}
    state = np.array([0.0, -1.0, 1.0, 0.0, 2.0])
    module = torch_module("rnn-relu", p)

    def forward(h: torch.Tensor) -> torch.Tensor:
        return module(torch.zeros(1, 1, D, dtype=torch.float64), h[None, None])[1].ravel()

    theirs = torch.autograd.functional.jacobian(forward, torch.tensor(state)).numpy()
    close(jacobians("rnn-relu", p, np.zeros((1, D)), state[None])[0], theirs)


# name -> (Keras layer, its options, gates in the order of its kernels)
KERAS = {
    "rnn": ("SimpleRNN", {}, ("",)),
    "lstm": ("LSTM", {}, ("_i", "_f", "_z", "_o")),
    "gru": ("GRU", {"reset_after": True}, ("_z", "_r", "_h")),
    "gru-reset-before": ("GRU", {"reset_after": False}, ("_z", "_r", "_h")),
}


@pytest.mark.parametrize("name", KERAS)
def test_forward_pass_of_keras(name: str) -> None:
    kind, options, gates = KERAS[name]
    cell, xs = find(name), sequence()
    p = parameters(cell)
    # On JAX, Keras adds two float64 numbers in float32, whatever the layer's dtype.
    layer = getattr(keras.layers, kind)(N, return_sequences=True, dtype="float32", **options)
    layer.build((1, T, D))
    bias = np.concatenate([p[f"b{g}"] for g in gates])
    if name == "gru":  # a row of biases for the kernel and one for the recurrent kernel
        bias = np.stack([bias, np.concatenate([np.zeros(2 * N), p["c_h"]])])
    kernels = [np.concatenate([p[f"{kind}{g}"].T for g in gates], axis=1) for kind in "WR"]
    for variable, value in zip(layer.weights, [*kernels, bias], strict=True):
        variable.assign(value)
    states = run(name, p, xs, np.zeros(N * len(cell.components)))
    close(states[1:, -N:], layer(xs[None])[0])


def flax_dense(p: Arrays, gate: str, ours: str, hidden_bias: str | None, input_bias: str | None) -> Any:
    """The two Dense layers of a Flax gate: ``i<gate>`` for the input, ``h<gate>`` for the state."""
    layers = {f"i{gate}": {"kernel": p[f"W{ours}"].T}, f"h{gate}": {"kernel": p[f"R{ours}"].T}}
    if input_bias:
        layers[f"i{gate}"]["bias"] = p[input_bias]
    if hidden_bias:
        layers[f"h{gate}"]["bias"] = p[hidden_bias]
    return layers


def flax_cell(name: str, p: Arrays) -> tuple[Any, Any]:
    options = {"features": N, "dtype": np.float64, "param_dtype": np.float64}
    if name == "rnn":
        return linen.SimpleCell(**options), flax_dense(p, "", "", None, "b")
    if name == "gru":
        new = flax_dense(p, "n", "_h", "c_h", "b_h")
        gates = flax_dense(p, "r", "_r", None, "b_r") | flax_dense(p, "z", "_z", None, "b_z")
        return linen.GRUCell(**options), gates | new
    names = {"i": "_i", "f": "_f", "g": "_z", "o": "_o"}
    parts = [flax_dense(p, gate, ours, f"b{ours}", None) for gate, ours in names.items()]
    return linen.LSTMCell(**options), {key: value for part in parts for key, value in part.items()}


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_forward_pass_of_flax(name: str) -> None:
    cell, xs = find(name), sequence()
    p, state = parameters(cell), start(cell)
    theirs, weights = flax_cell(name, p)
    carry = (state[:N], state[N:]) if name == "lstm" else state
    for x, ours in zip(xs, run(name, p, xs, state)[1:], strict=True):
        carry, _ = theirs.apply({"params": weights}, carry, x)
        close(ours, np.concatenate(carry) if name == "lstm" else carry)
