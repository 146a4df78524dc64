"""Steps on a device: J = diagonals + sum over gates of diag(d_g) R_g is formed when it is needed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from gradscope.compiled_svd.numbers import power_of_two
from gradscope.compiled_svd.step_arrays import Shape


class ChainArrays(NamedTuple):
    """A batch of B chains of T steps.

    slopes : (B, T, G, C, n), by gate and the component written; matrices : (B, G, n, n); links : (B, T, n)
    scales of the columns read; diagonals : (B, T, C, C, n) by component written and read; dense :
    (B, T, m, m) where steps are given whole, else (B, T, 0, 0); weights : (B, T + 1, m) exponents of the
    sizes of the rows of every step, step t at t + 1, and what comes before at 0;
    pool : (B, P) factors of entries, and starts : (B, T) where those of a step begin.
    """

    slopes: Any
    matrices: Any
    links: Any
    diagonals: Any
    dense: Any
    weights: Any
    pool: Any
    starts: Any


def serving(chains: ChainArrays, count: int) -> ChainArrays:
    """Matrices and factors for each of so many segments, of which every chain has as many as any other."""
    once = (jnp.repeat(a, count // len(a), axis=0) for a in (chains.matrices, chains.pool))
    return chains._replace(**dict(zip(("matrices", "pool"), once, strict=True)))


def times(shape: Shape, chains: ChainArrays, y: Any, t: Any) -> Any:
    """y @ A_t of every chain, its rows scaled by 2**-weights and its columns by those of the step before.

    Returns these too, and what they are short by.
    """
    batch, n, parts = len(y), shape.units, shape.components
    weight, after = _at(chains.weights, t + 1), _at(chains.weights, t)
    y = y * power_of_two(-weight)[:, None]
    factors = _factors(shape, chains, t)
    slopes, links = _at(chains.slopes, t), _at(chains.links, t)
    if shape.dense:
        block = _at(chains.dense, t)
    else:
        block = sum(slopes[:, g, :, :, None] * chains.matrices[:, g, None] for g in range(shape.gates))
        block = (block * links[:, None, None, :]).reshape(batch, shape.size, n)
    split = y.reshape(batch, -1, parts, n)
    rest = factors[:, shape.size * n :].reshape(batch, parts, parts, n)
    diagonals = _at(chains.diagonals, t) * rest
    written = [
        sum(split[:, :, c] * diagonals[:, None, c, read] for c in range(parts)) for read in range(parts)
    ]
    dense = block * factors[:, : shape.size * n].reshape(block.shape)
    written[shape.source] = written[shape.source] + y @ dense
    shift = after.max(axis=-1, keepdims=True)
    return jnp.concatenate(written, axis=-1) * power_of_two(after - shift)[:, None], after, shift


def _factors(shape: Shape, chains: ChainArrays, t: Any) -> Any:
    """(B, entries) factors of the entries of step t."""
    starts = _at(chains.starts, t)
    if len(chains.pool) == 1:
        return lax.dynamic_slice_in_dim(chains.pool, starts[0], shape.entries, 1)
    return jnp.take_along_axis(chains.pool, starts[:, None] + jnp.arange(shape.entries), 1)


def _at(array: Any, t: Any) -> Any:
    return lax.dynamic_index_in_dim(array, t, 1, keepdims=False)
