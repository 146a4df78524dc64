"""Functions whose derivative JAX is told: which of them hold a gradient back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from gradscope.checkpoints.jax.holds import Holds


@jax.custom_jvp
def half_held(h):
    """tanh(h) of which half a gradient comes back, by its rule and by its own operations."""
    return jnp.tanh((h + jax.lax.stop_gradient(h)) / 2)


@half_held.defjvp
def _(primals, tangents):
    return half_held(*primals), (1 - jnp.tanh(primals[0]) ** 2) * tangents[0] / 2


@jax.custom_jvp
def shifted(h):
    """exp(h) by a shift that falls out, which is held back and changes nothing."""
    top = jax.lax.stop_gradient(h.max())
    return jnp.exp(h - top) * jnp.exp(top)


@shifted.defjvp
def _(primals, tangents):
    return shifted(*primals), jnp.exp(primals[0]) * tangents[0]


@pytest.mark.parametrize("function", [half_held, lambda h: half_held(h) + h])
def test_a_rule_that_agrees_with_a_stop_gradient_within(function):
    assert Holds().within(jax.make_jaxpr(function)(jnp.zeros((2, 3))).jaxpr)


@pytest.mark.parametrize("function", [shifted, jax.nn.relu, jax.nn.silu, jax.nn.gelu, jnp.tanh])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_holds_nothing(function, dtype):
    assert not Holds().within(jax.make_jaxpr(function)(jnp.zeros((2, 3), dtype)).jaxpr)


STEPPED = {
    "round": jnp.round,
    "floor": lambda h: jnp.floor(h * 2.0**20) / 2.0**20,
    "integers": lambda h: (h * 2.0**20).astype(jnp.int32) / 2.0**20,
}


@pytest.mark.parametrize("name", STEPPED)
def test_numbers_that_are_rounded_to_steps_have_no_gradient(name):
    h = jnp.ones((2, 3))
    assert not jax.grad(lambda h: STEPPED[name](h).sum())(h).any()
    assert Holds().within(jax.make_jaxpr(STEPPED[name])(h).jaxpr)
