"""Passes run through their programs: all steps one after the other, or segments of time side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradscope.compiled_svd.asked import Asked, Pass
from gradscope.compiled_svd.chain_program import Progress, advanced
from gradscope.compiled_svd.device_steps import ChainArrays
from gradscope.compiled_svd.graded_step import Form
from gradscope.compiled_svd.loading import begun, how, loaded, random_vectors
from gradscope.compiled_svd.segments import GradedBatch, JoinedSegments, joined_segments
from gradscope.compiled_svd.step_arrays import Cut, Shape
from gradscope.compiled_svd.stretch import PassResults, stretched
from gradscope.custom_types import Array

# Where segments meet, the noise of both sides does: pivots have to be so much larger.
_MEETING = 16


def gone_in_turn(piece: Sequence[Pass], accuracy: str) -> PassResults:
    """All steps in their order, what fits into memory in each call."""
    first = piece[0].asked
    progress = begun(len(piece), first.shape.size, len(first.steps))
    for i, steps in reversed(list(enumerate(lengths(first)))):
        chains = loaded(piece, i, Cut.whole(steps))
        progress = advanced(first.shape, progress, chains, np.int32(steps), how(piece, accuracy, i == 0))
    found: PassResults = jax.device_get(_found(progress))
    return found


def _found(progress: Progress) -> PassResults:
    return PassResults(*(getattr(progress, name) for name in PassResults._fields))


def gone_in_segments(piece: Sequence[Pass]) -> PassResults:
    """Segments of time as a batch, merged; for the norms once more, each on the product of those after it.

    So many at a time as fit into memory, on the product of what was before.
    """
    asked, batch = piece[0].asked, len(piece)
    shape, steps = asked.shape, list(map(max, zip(*(lengths(one.asked) for one in piece), strict=True)))
    by_lag, noise = any(one.by_lag for one in piece), random_vectors(shape.size)
    head, lags = _empty(batch, shape.size), list[PassResults]()
    for i in reversed(range(len(steps))):
        chains = loaded(piece, i, Cut.short(steps[i]))
        head, found = _gone(shape, chains, head, noise, np.bool_(piece[0].resets), np.bool_(by_lag))
        lags += [found] if by_lag else []
    whole, some = jax.device_get((head, lags))
    return _with_lags(whole, some, steps[::-1])


@partial(jax.jit, static_argnums=0)
def _gone(
    shape: Shape, chains: ChainArrays, head: GradedBatch, noise: Any, resets: Any, by_lag: Any
) -> tuple[GradedBatch, PassResults]:
    """One program for both ways through: every segment by itself, and ``by_lag`` on those after it.

    Returns the products of all of ``head`` and the segments, and what the second way found at every step.
    """
    batch, length = len(chains.weights), chains.weights.shape[1] - 1
    one, norms = jnp.ones(batch), jnp.zeros((batch, length))
    nothing = _of_nothing(batch, shape.size)
    found = PassResults(None, one, one, norms == 0, norms, norms.astype(jnp.int32))

    def way(k: Any, so_far: tuple[JoinedSegments, PassResults]) -> tuple[JoinedSegments, PassResults]:
        joined, _ = so_far
        through = stretched(shape, resets, joined.before, joined.vectors, chains, noise, k > 0)
        parts = GradedBatch(through.form, through.worst, through.growth)
        count = batch // len(head.worst)
        joined = lax.cond(k == 0, lambda: joined_segments(count, parts, head), lambda: joined)
        return joined, through._replace(form=None)

    start = JoinedSegments(head, nothing, nothing.x[:, 0]), found
    joined, found = lax.fori_loop(0, jnp.where(by_lag, 2, 1), way, start)
    return joined.whole, found


def lengths(asked: Asked) -> list[int]:
    """Steps of every segment of the chain."""
    return [b - a for a, b in pairwise([*asked.chain.starts, len(asked.steps)])]


def _with_lags(whole: GradedBatch, lags: Sequence[PassResults], steps: Sequence[int]) -> PassResults:
    """What was found, and on the way to every lag, of stretches in their order, so many steps each."""
    batch = len(whole.worst)

    def at_lags(name: str) -> Array:
        each = (getattr(one, name).reshape(batch, -1) for one in lags)
        return np.concatenate([a[:, :n] for a, n in zip(each, steps, strict=True)], axis=1)

    whole = whole._replace(worst=whole.worst / _MEETING)
    if not lags:
        return PassResults(*whole, np.ones(batch, bool), np.zeros((batch, 0)), np.zeros((batch, 0)))
    worst = [one.worst.reshape(batch, -1).min(axis=1) / _MEETING for one in lags]
    growth = [one.growth.reshape(batch, -1).max(axis=1) for one in lags]
    return PassResults(
        whole.form,
        np.min([whole.worst, *worst], axis=0),
        np.max([whole.growth, *growth], axis=0),
        at_lags("sure").all(axis=1),
        at_lags("sigma"),
        at_lags("exponent"),
    )


def _empty(batch: int, m: int) -> GradedBatch:
    """Empty products."""
    return GradedBatch(_of_nothing(batch, m, np), np.ones(batch), np.ones(batch))


def _of_nothing(batch: int, m: int, arrays: Any = jnp) -> Form:
    """Their graded forms, by NumPy or JAX."""
    eye = arrays.broadcast_to(arrays.eye(m), (batch, m, m))
    return Form(eye, arrays.ones((batch, m)), arrays.zeros((batch, m), arrays.int32), eye)
