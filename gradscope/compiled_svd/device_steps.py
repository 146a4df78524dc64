"""Steps on a device: J = diagonals + sum over gates of diag(d_g) R_g is formed when it is needed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from gradscope.compiled_svd.step_arrays import LayerShape, Shape


class LayerBatch(NamedTuple):
    """Steps of a layer in a batch of B chains, see step_arrays.LayerArrays, scaled as ``times`` says.

    slopes : (B, T, G, C, n), by gate and the component written; matrices : (B, G, n, n); links : (B, T, n)
    scales of the columns read; diagonals : (B, T, C, C, n) by component written and read, with their factors
    of the pool; dense : (B, T, m, m) where steps are given whole, else (B, T, 0, 0).
    """

    slopes: Any
    matrices: Any
    links: Any
    diagonals: Any
    dense: Any


class ReadingBatch(NamedTuple):
    """What a layer reads of another.

    slopes : (B, T, G, C, n); matrices : (B, G, n, columns); links : (B, T, columns) scales of those.
    """

    slopes: Any
    matrices: Any
    links: Any


class ChainArrays(NamedTuple):
    """A batch of B chains of T steps.

    layers, readings : as ``Shape`` has them; weights : (B, T + 1, m) exponents of the sizes of the rows of
    every step, step t at t + 1, and what comes before at 0; pool : (B, P) factors of entries, and starts :
    (B, T) where those of a step begin.
    """

    layers: tuple[LayerBatch, ...]
    readings: tuple[ReadingBatch, ...]
    weights: Any
    pool: Any
    starts: Any


def serving(chains: ChainArrays, count: int) -> ChainArrays:
    """Matrices and factors for each of so many segments, of which every chain has as many as any other."""

    def repeated(array: Any) -> Any:
        return jnp.repeat(array, count // len(array), axis=0)

    layers = tuple(one._replace(matrices=repeated(one.matrices)) for one in chains.layers)
    readings = tuple(one._replace(matrices=repeated(one.matrices)) for one in chains.readings)
    return chains._replace(layers=layers, readings=readings, pool=repeated(chains.pool))


def times(shape: Shape, chains: ChainArrays, y: Any, t: Any) -> Any:
    """y @ A_t of every chain, its rows scaled by 2**-weights and its columns by those of the step before.

    Returns these too, and what they are short by. The arrays of ``chains`` are scaled so already.
    """
    after = _at(chains.weights, t)
    factors, done = _factors(shape, chains, t), 0
    for one, read, (rows, columns) in zip(shape.readings, chains.readings, shape.read, strict=True):
        begin, end = shape.extents[one.layer]
        changed = factors[:, done : (done := done + rows * columns)].reshape(-1, rows, columns)
        y = y.at[:, :, one.start : one.stop].add(y[:, :, begin:end] @ (_linked(read, t) * changed))
    written = []
    for layer, steps, (begin, end) in zip(shape.layers, chains.layers, shape.extents, strict=True):
        changed = factors[:, done : (done := done + layer.entries)]
        written.append(_through(layer, steps, y[:, :, begin:end], t, changed))
    return jnp.concatenate(written, axis=-1), after, after.max(axis=-1, keepdims=True)


def _through(shape: LayerShape, layer: LayerBatch, y: Any, t: Any, factors: Any) -> Any:
    """y @ A_t of a layer; factors : of its entries."""
    n, parts = shape.units, shape.components
    block = _at(layer.dense, t) if shape.dense else _linked(layer, t)
    dense = y @ (block * factors[:, : shape.size * n].reshape(block.shape))
    split, diagonals = y.reshape(len(y), -1, parts, n), _at(layer.diagonals, t)
    # One array for all components: joined from several it would be formed entry by entry.
    written = sum(split[:, :, c, None] * diagonals[:, None, c] for c in range(parts))
    read = jnp.arange(parts)[:, None] == shape.source
    return (written + jnp.where(read, dense[:, :, None], 0.0)).reshape(y.shape)


def _linked(layer: LayerBatch | ReadingBatch, t: Any) -> Any:
    """(B, C n, columns) the block of step t."""
    return _gated(layer, t) * _at(layer.links, t)[:, None]


def _gated(layer: LayerBatch | ReadingBatch, t: Any) -> Any:
    """(B, C n, columns) sum over gates of diag(slope) times their matrix, at step t."""
    slopes, matrices = _at(layer.slopes, t), layer.matrices
    block = sum(slopes[:, g, :, :, None] * matrices[:, g, None] for g in range(matrices.shape[1]))
    return block.reshape(len(block), -1, matrices.shape[-1])


def _factors(shape: Shape, chains: ChainArrays, t: Any) -> Any:
    """(B, entries) factors of the entries of step t."""
    starts = _at(chains.starts, t)
    if len(chains.pool) == 1:
        return lax.dynamic_slice_in_dim(chains.pool, starts[0], shape.entries, 1)
    return jnp.take_along_axis(chains.pool, starts[:, None] + jnp.arange(shape.entries), 1)


def _at(array: Any, t: Any) -> Any:
    return lax.dynamic_index_in_dim(array, t, 1, keepdims=False)
