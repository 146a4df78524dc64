"""Powers of two, exact, and largest entries of rows: what scales numbers on a device."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

_SMALLEST, _LARGEST = -1022, 1023


def power_of_two(exponent: Any) -> Any:
    """2 ** exponent in float64, for integers; the ends of float64 beyond them."""
    biased = jnp.clip(exponent, _SMALLEST, _LARGEST).astype(jnp.int64) + _LARGEST
    return lax.bitcast_convert_type(biased << 52, jnp.float64)


def largest(rows: Any) -> Any:
    """Largest absolute entry of every row."""
    return jnp.abs(rows).max(axis=-1)
