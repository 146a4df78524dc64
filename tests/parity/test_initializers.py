"""Initialisers against draws from the frameworks themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
import pytest
import torch
from flax import linen
from scipy import stats

from gradscope.cells import find
from gradscope.cells.initializers import initialize

N, D = 64, 32
Arrays = dict[str, np.ndarray]
GATES = {"rnn": ("",), "lstm": ("_i", "_f", "_z", "_o"), "gru": ("_r", "_z", "_h")}


def draw(cell: str, init: str) -> Arrays:
    return initialize(find(cell), N, D, init=init)


def by_gate(kind: str, gates: tuple[str, ...], rows: Any) -> Arrays:
    """The matrix or vector of every gate, cut from one array that has them stacked."""
    blocks = np.split(np.asarray(rows, dtype=np.float64), len(gates))
    return {kind + gate: block for gate, block in zip(gates, blocks, strict=True)}


def drawn_by_torch(cell: str) -> Arrays:
    torch.manual_seed(0)
    module = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](D, N)
    value = {key: tensor.detach().numpy() for key, tensor in module.named_parameters()}
    gates = GATES[cell]
    result = by_gate("W", gates, value["weight_ih_l0"]) | by_gate("R", gates, value["weight_hh_l0"])
    result |= by_gate("b", gates, value["bias_ih_l0"] + value["bias_hh_l0"])
    if cell == "gru":  # the candidate's two biases stay apart
        result |= {"b_h": value["bias_ih_l0"][-N:], "c_h": value["bias_hh_l0"][-N:]}
    return result


def drawn_by_keras(cell: str) -> Arrays:
    keras.utils.set_random_seed(0)
    kind = {"rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}[cell]
    layer = getattr(keras.layers, kind)(N)
    layer.build((1, 1, D))
    kernel, recurrent, bias = (np.asarray(variable.value) for variable in layer.weights)
    gates = ("_z", "_r", "_h") if cell == "gru" else GATES[cell]
    outside, inside = bias if cell == "gru" else (bias, None)
    result = by_gate("W", gates, kernel.T) | by_gate("R", gates, recurrent.T) | by_gate("b", gates, outside)
    return result if inside is None else result | {"c_h": inside[-N:]}


def drawn_by_flax(cell: str) -> Arrays:
    module = {"rnn": linen.SimpleCell, "lstm": linen.LSTMCell, "gru": linen.GRUCell}[cell](N)
    zeros = np.zeros(N, np.float32)
    carry = (zeros, zeros) if cell == "lstm" else zeros
    layers = module.init(jax.random.key(0), carry, np.zeros(D, np.float32))["params"]
    ours = {"lstm": {"g": "_z"}, "gru": {"n": "_h"}}.get(cell, {"": ""})
    result = {}
    for layer, values in layers.items():
        gate = ours.get(layer[1:], f"_{layer[1:]}")
        result[("W" if layer[0] == "i" else "R") + gate] = values["kernel"].T
        if "bias" in values:
            result["c_h" if layer == "hn" else "b" + gate] = values["bias"]
    return {key: np.asarray(value, dtype=np.float64) for key, value in result.items()}


DRAWN: dict[str, Callable[[str], Arrays]] = {
    "pytorch": drawn_by_torch,
    "keras": drawn_by_keras,
    "flax": drawn_by_flax,
}


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("framework", DRAWN)
def test_distribution_is_that_of_the_framework(framework: str, cell: str) -> None:
    """Constants equal; else the two samples could be of one law (Kolmogorov and Smirnov)."""
    ours, theirs = draw(cell, framework), DRAWN[framework](cell)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        other = theirs[key]
        assert value.dtype == np.float64
        assert value.shape == other.shape
        if np.ptp(other) == 0.0:
            np.testing.assert_array_equal(value, other)
        else:
            assert stats.ks_2samp(value.ravel(), other.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("framework", ["keras", "flax"])
def test_singular_values_are_those_of_the_framework(framework: str, cell: str) -> None:
    """Entries look alike whether a matrix is orthogonal by itself or only as part of a stack."""
    ours, theirs = draw(cell, framework), DRAWN[framework](cell)
    for gate in GATES[cell]:
        ours_sigma, theirs_sigma = (np.linalg.svd(p["R" + gate], compute_uv=False) for p in (ours, theirs))
        np.testing.assert_allclose(ours_sigma, theirs_sigma, atol=0.1)
        alone = framework == "flax" or cell == "rnn"
        assert np.allclose(ours_sigma, 1.0) == alone
        assert np.allclose(theirs_sigma, 1.0, atol=1e-5) == alone
    for parameters, tolerance in ((ours, 1e-12), (theirs, 1e-5)):
        gram = sum(parameters["R" + gate].T @ parameters["R" + gate] for gate in GATES[cell])
        total = 1 if framework == "keras" else len(GATES[cell])
        np.testing.assert_allclose(gram, total * np.eye(N), atol=tolerance)
