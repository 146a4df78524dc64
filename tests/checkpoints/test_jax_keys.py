"""A loop in a model of JAX among whose arrays are keys of random numbers, which are no numbers themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradscope.checkpoints.jax.loop import jax_loops


def test_keys_of_layers_that_are_stacked():
    weights = {"keys": jax.random.split(jax.random.key(0), 2), "w": jnp.ones((2, 1, 1)) / 2}

    def call(arrays, args, keywords):
        keys, w = arrays
        (x,) = args
        for key, matrix in zip(keys, w, strict=True):
            x = jnp.cumsum(x, axis=1) * (1 + 0 * jax.random.normal(key))
            h, steps = jnp.zeros((2, 1)), []
            for t in range(3):
                h = jnp.tanh(x[:, t] + h @ matrix)
                steps.append(h)
            x = jnp.stack(steps, axis=1)
        return x

    found = jax_loops(call, weights, jnp.ones((2, 3, 1)), "jax", lambda name: "loop", ())
    assert [loop.loop.last - loop.loop.first for loop in found.values()] == [3, 3]
