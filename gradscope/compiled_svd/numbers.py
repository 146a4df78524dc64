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
    """Largest absolute entry of every row. XLA takes ten times as long, on a CPU, for one maximum of abs."""
    return jnp.maximum(rows.max(axis=-1), -rows.min(axis=-1))


def permuted_by(swaps: Any) -> Any:
    """(B, m) where each row came from, once row k was swapped with row ``swaps[k]`` >= k, for each k in turn.

    JAX's own takes a loop of m iterations.
    """
    m = swaps.shape[-1]
    at = jnp.arange(m, dtype=swaps.dtype)

    def latest(position: Any) -> Any:
        """The last swap before each one by which a row came to ``position``, or -1."""
        return jnp.where((swaps[:, None] == position[..., None]) & (at < at[:, None]), at, -1).max(axis=-1)

    before = latest(at)
    before = jnp.where(before < 0, at, before)
    for _ in range((m - 1).bit_length()):
        before = jnp.take_along_axis(before, before, -1)
    last = latest(swaps)
    return jnp.where(last < 0, swaps, jnp.take_along_axis(before, jnp.maximum(last, 0), -1))


def inverse_of(permutation: Any) -> Any:
    """(B, m) where each row went to, of where each came from."""
    batch, m = permutation.shape
    at = jnp.arange(m, dtype=permutation.dtype)
    chain = jnp.arange(batch)[:, None]
    return (
        jnp.zeros_like(permutation)
        .at[chain, permutation]
        .set(at, unique_indices=True, mode="promise_in_bounds")
    )
