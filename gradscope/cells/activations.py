"""Activation functions whose derivatives keep their digits where the unit saturates.

From the value, 1 - h^2 and s (1 - s) lose every digit that h and s share with 1; from the pre-activation
the same slopes are right to a few roundings, down to the smallest number of the dtype. What subtracts a
sigmoid from 1 takes ``sigmoid(-a)`` in its place, for the same reason.

A new one is a function of its own here, with its derivative wherever JAX's would cancel.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

relu = jax.nn.relu  # its slope at 0 is 0, as in PyTorch


@jax.custom_jvp
def tanh(a: Any) -> Any:
    """Hyperbolic tangent; its slope is sech(a)^2."""
    return jnp.tanh(a)


@jax.custom_jvp
def sigmoid(a: Any) -> Any:
    """The logistic function s; its slope is s(a) s(-a)."""
    return jax.nn.sigmoid(a)


def _sech(a: Any) -> Any:
    e = jnp.exp(-jnp.abs(a))
    return 2.0 * e / (1.0 + e * e)


def _tanh_slope(a: Any) -> Any:
    sech = _sech(a)  # squared last: the exponential of 2 a ends sooner, where XLA takes tiny numbers as 0
    return sech * sech


def _sigmoid_slope(a: Any) -> Any:
    e = jnp.exp(-jnp.abs(a))
    return e / ((1.0 + e) * (1.0 + e))


tanh.defjvps(lambda tangent, _, a: _tanh_slope(a) * tangent)
sigmoid.defjvps(lambda tangent, _, a: _sigmoid_slope(a) * tangent)
