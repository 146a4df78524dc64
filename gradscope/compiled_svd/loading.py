"""Steps of chains as the arrays that a program takes, in segments of time that go through it as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from gradscope.compiled_svd.asked import Pass
from gradscope.compiled_svd.chain_program import How, Progress
from gradscope.compiled_svd.device_steps import ChainArrays, LayerBatch, ReadingBatch
from gradscope.compiled_svd.graded_step import Form
from gradscope.compiled_svd.step_arrays import Cut, LayerArrays, LayerShape, ReadingArrays, bucket
from gradscope.custom_types import Array
from gradscope.product_svd.error_estimate import grouped_for
from gradscope.product_svd.perturbed import changes

# Random factors of entries, beyond those of one step; and random vectors, which are taken in turn.
_POOL, _NOISE = 4096, 64


def begun(batch: int, m: int, steps: int) -> Progress:
    """Before the last step: empty products, with room for the norms of so many."""
    eye = np.broadcast_to(np.eye(m), (batch, m, m))
    rows, zeros, one = np.ones((batch, m)), np.zeros((batch, m), np.int32), np.ones(batch)
    norms, none = np.zeros((batch, bucket(steps))), np.int32(0)
    return Progress(
        form=Form(eye, rows, zeros, eye),
        after=zeros,
        vector=np.repeat(random_vectors(m)[:1], batch, axis=0),
        lag=none,
        group=np.int32(1),
        alone=none,
        worst=one,
        growth=one,
        sure=one > 0,
        sigma=norms,
        exponent=norms.astype(np.int32),
    )


def how(piece: Sequence[Pass], accuracy: str, last: bool) -> How:
    """How these passes go."""
    want, resets = np.array([one.by_lag for one in piece]), piece[0].resets
    noise, grouped = random_vectors(piece[0].asked.shape.size), grouped_for(accuracy) if resets else np.inf
    return How(noise, want, np.bool_(last), np.bool_(resets), np.float64(grouped))


@cache
def random_vectors(m: int) -> Array:
    """Random unit vectors, always the same."""
    vectors = np.random.default_rng(0).normal(size=(_NOISE, m))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def loaded(piece: Sequence[Pass], i: int, cut: Cut) -> ChainArrays:
    """Segment i of the chains as a program takes it, as segments of time as ``cut`` has them.

    Those of a chain follow each other in the batch, the last steps first; the earliest begins with steps that
    change nothing, where there are not enough.
    """
    arrays = {one.asked: one.asked.arrays(i) for one in piece}
    each, shape = [arrays[one.asked] for one in piece], piece[0].asked.shape
    lows = [one.asked.chain.starts[i] for one in piece]
    passes = list(zip(piece, lows, map(len, each), strict=True))
    pools, places = zip(*(_changes(*one) for one in passes), strict=True)
    weights = np.concatenate([_weights(*one, cut) for one in passes])
    scales = _Scales.of(weights)
    layers, done = [], sum(rows * columns for rows, columns in shape.read)
    for k, (one, extent) in enumerate(zip(shape.layers, shape.extents, strict=True)):
        factors = [_of_diagonals(one, *drawn, done) for drawn in zip(pools, places, strict=True)]
        layers.append(_layer(one, [a.layers[k] for a in each], factors, scales.of_layer(one, extent), cut))
        done += one.entries
    readings = []
    for k, read in enumerate(shape.readings):
        its = scales.of_layer(shape.layers[read.layer], shape.extents[read.layer])
        columns = 1 / scales.down[..., read.start : read.stop]
        readings.append(_reading([a.readings[k] for a in each], its, columns, cut))
    return ChainArrays(tuple(layers), tuple(readings), weights, np.array(pools), _of_steps(places, cut))


@dataclass(frozen=True)
class _Scales:
    """Powers of two that rows of every step are multiplied by, and its columns: (B, T, ...)."""

    down: Array
    up: Array

    @classmethod
    def of(cls, weights: Array) -> _Scales:
        """Of (B, T + 1, m) exponents."""
        before = weights[:, :-1]
        return cls(np.ldexp(1.0, -weights[:, 1:]), np.ldexp(1.0, before - before.max(axis=-1, keepdims=True)))

    def of_layer(self, layer: LayerShape, extent: tuple[int, int]) -> _Scales:
        """Those of a layer's states, by component: (B, T, C, n)."""
        states = (*self.down.shape[:2], layer.components, layer.units)
        return _Scales(*(scale[..., slice(*extent)].reshape(states) for scale in (self.down, self.up)))


def _layer(
    shape: LayerShape, each: Sequence[LayerArrays], factors: Sequence[Array], scales: _Scales, cut: Cut
) -> LayerBatch:
    diagonal, dense = np.eye(shape.components)[..., None], np.zeros((0, 0))
    down, up = scales.down, scales.up
    if shape.dense:
        diagonal, dense = 0 * diagonal, np.eye(shape.size)
    whole = _of_steps([_whole(a) for a in each], cut, dense)
    if shape.dense:
        whole *= down[:, :, 0, :, None]
        whole *= up[:, :, 0, None]
    diagonals = [a.diagonals * factor for a, factor in zip(each, factors, strict=True)]
    return LayerBatch(
        slopes=_of_steps([a.slopes for a in each], cut) * down[:, :, None],
        matrices=np.array([a.matrices for a in each]),
        links=_of_steps([a.links for a in each], cut) * up[:, :, shape.source],
        diagonals=_of_steps(diagonals, cut, diagonal) * down[:, :, :, None] * up[:, :, None],
        dense=whole,
    )


def _of_diagonals(layer: LayerShape, pool: Array, places: Array, before: int) -> Array:
    """(T, C, C, n) factors of a layer's diagonals, which stand after ``before`` and its block's."""
    first, last = before + layer.size * layer.units, before + layer.entries
    chosen = pool[places[:, None] + np.arange(first, last)]
    return chosen.reshape(-1, layer.components, layer.components, layer.units)


def _reading(each: Sequence[ReadingArrays], scales: _Scales, columns: Array, cut: Cut) -> ReadingBatch:
    slopes = _of_steps([a.slopes for a in each], cut) * scales.down[:, :, None]
    return ReadingBatch(slopes, np.array([a.matrices for a in each]), columns)


def _of_steps(values: Sequence[Array], cut: Cut, nothing: Array | float = 0.0) -> Array:
    return np.concatenate([_cut(value, cut, nothing) for value in values])


def _whole(arrays: LayerArrays) -> Array:
    return np.zeros((len(arrays.links), 0, 0)) if arrays.dense is None else arrays.dense


def _cut(values: Array, cut: Cut, nothing: Array | float) -> Array:
    """(count, room, ...): what there is of every step by segments, after so many steps of nothing."""
    found = np.zeros((cut.count, cut.room, *values.shape[1:]), values.dtype)
    missing = cut.count * cut.steps - len(values)
    for number, row in enumerate(found[::-1]):
        start = number * cut.steps - missing
        some = values[max(0, start) : max(0, start + cut.steps)]
        row[: cut.steps - len(some)] = nothing
        row[cut.steps - len(some) : cut.steps] = some
    return found


def _weights(one: Pass, low: int, total: int, cut: Cut) -> Array:
    """(count, room + 1, m) weights of every step, in each segment that of the step before it first."""
    weights = np.asarray(one.asked.steps.weights[low : low + total], np.int32)
    before = np.asarray(one.asked.steps.weights[low - 1 : low], np.int32) if low else 0 * weights[:1]
    found = np.zeros((cut.count, cut.room + 1, weights.shape[1]), np.int32)
    found[:, 1:] = _cut(weights, cut, before[0])
    ends = found[1:, cut.steps]
    found[:, 0] = np.concatenate([ends, before])
    return found


def _changes(one: Pass, low: int, steps: int) -> tuple[Array, Array]:
    """Factors 1 + error and 1 - error, at random but always the same, and where each step's begin."""
    size = one.asked.shape.entries + _POOL
    if one.draw is None:
        return np.ones(size), np.zeros(steps, np.int32)
    rng = np.random.default_rng(20240229 + one.draw)
    pool = 1 + one.asked.entry_error * changes(rng, size)
    starts = np.random.default_rng([one.draw, low]).integers(_POOL, size=steps)
    return pool, starts.astype(np.int32)
