"""Derivatives by the matrix that the state goes through first: the oracle is a copy of the state for each."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradscope.checkpoints.jax.paths import OpaqueError, derivative
from gradscope.linearize.system import precise

N = 3


def drawn():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in ((N, 2 * N), (N, N), (N,), (2, N), (2, N))]


def step(R, U, g, x, copies):
    """A new h from one copy of the old for each matrix that it meets first."""
    a, b = jnp.split(copies["R"] @ (2 * R), 2, -1)
    inner = jnp.tanh(a + x) @ U.T  # through R first
    gate = jax.nn.sigmoid(b * g + jnp.einsum("bi,ij->bj", copies["U"], U))
    return gate * inner + jax.nn.relu(copies["direct"]) - gate * copies["direct"]


def test_each_path_is_the_derivative_by_its_copy():
    R, U, g, x, h = drawn()
    with precise("float64"):
        along = derivative(
            lambda w, given, state: [step(*w, *given, dict.fromkeys(("R", "U", "direct"), state[0]))],
            [R, U, g],
            ["R", "U", ""],
            [x],
            [h],
        )
        direction = np.random.default_rng(1).standard_normal((2, N))
        (found,) = along([direction])
        expected = jax.jacrev(lambda copies: step(R, U, g, x, copies))(dict.fromkeys(found, h))
    for name, tangent in found.items():
        np.testing.assert_allclose(tangent, np.einsum("bibj,bj->bi", expected[name], direction), atol=1e-14)
    assert found.keys() == {"R", "U", "direct"}


def test_slopes_of_saturated_units():
    with precise("float64"):
        along = derivative(
            lambda w, x, s: [jnp.tanh(s[0]), jax.nn.sigmoid(s[0])], [], [], [], [np.array([40.0])]
        )
        tanh, sigmoid = along([np.ones(1)])
    assert float(tanh["direct"][0]) == pytest.approx(4 * math.exp(-80), rel=1e-12)
    assert float(sigmoid["direct"][0]) == pytest.approx(math.exp(-40), rel=1e-12)


def test_what_cannot_be_seen_through_is_not_guessed():
    def looped(w, given, state):
        return [jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ w[0]), state[0])]

    with precise("float64"), pytest.raises(OpaqueError):
        derivative(looped, [np.eye(N)], ["R"], [], [np.ones((1, N))])([np.ones((1, N))])
