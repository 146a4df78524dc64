"""Passes of programs over chains: dealt to the devices, loaded, and what came out of each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial

import jax
import numpy as np

from gradscope.compiled_svd.asked import Pass
from gradscope.compiled_svd.graded_step import Form
from gradscope.compiled_svd.runs import gone_in_segments, gone_in_turn
from gradscope.compiled_svd.step_arrays import MOST_SEGMENTS, Cut, Shape, bucket
from gradscope.compiled_svd.stretch import PassResults
from gradscope.machine import cores
from gradscope.product_svd import log_scale
from gradscope.product_svd.error_estimate import EPS, UNRESOLVED
from gradscope.product_svd.graded_chain import LARGEST
from gradscope.product_svd.graded_lu import NOISE, SUSPECT, Graded
from gradscope.product_svd.outcome import Outcome

# What the passes of a piece may take on an accelerator, and about how many matrices each segment takes.
_PIECE_BYTES, _MATRICES = 2 * 2**30, 16
# Pieces under way for each accelerator: while it is at one the host loads the next and finishes the last.
_UNDER_WAY = 3
# Larger chains fill an accelerator one step after the other.
_LARGEST_IN_SEGMENTS = 512

_guard, _locks, _done = threading.Lock(), dict[Hashable, threading.Lock](), set[Hashable]()


def gone_through(
    passes: Sequence[Pass], devices: Sequence[jax.Device], accuracy: str, report: Callable[[], None]
) -> dict[Pass, Outcome | None]:
    """The outcome of every pass, in their order, None where it is in doubt.

    report : called for each pass over unchanged entries.
    """
    found: dict[Pass, Outcome | None] = dict.fromkeys(passes)
    pieces = list(_pieces(passes, devices))

    def one(number: int) -> None:
        piece = pieces[number]
        found.update(zip(piece, _together(piece, devices[number % len(devices)], accuracy), strict=True))
        for each in piece:
            if each.draw is None:
                report()

    workers = cores() if one_for_each_core(devices) else _UNDER_WAY * len(devices)
    pool = ThreadPoolExecutor(workers)
    try:
        list(pool.map(one, range(len(pieces))))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a failure does not wait for the rest
    return found


def _pieces(passes: Sequence[Pass], devices: Sequence[jax.Device]) -> Iterator[list[Pass]]:
    """What goes through a program in one call.

    On a CPU a single pass for each core: a batch of small matrices runs on one, and waits for its slowest. An
    accelerator takes as many as it has room for.
    """
    groups: dict[Hashable, list[Pass]] = {}
    for each in passes:
        groups.setdefault(_key(each, devices), []).append(each)
    for group in groups.values():
        shape = group[0].asked.shape
        most = -(-len(group) // len(devices))
        batch = MOST_SEGMENTS if in_segments(shape, devices) else 1
        size = 1 if one_for_each_core(devices) else at_once(shape, most, batch)
        for i in range(0, len(group), size):
            yield group[i : i + size]


def _key(one: Pass, devices: Sequence[jax.Device]) -> Hashable:
    """Passes that have the same go side by side: of so many steps, or of segments as long and as many."""
    shape, steps = one.asked.shape, len(one.asked.steps)
    alike = in_segments(shape, devices) and len(one.asked.chain.starts) == 1
    return shape, Cut.short(steps) if alike else steps, one.resets


def one_for_each_core(devices: Sequence[jax.Device]) -> bool:
    """Whether a pass at a time goes to every core."""
    return bool(devices[0].platform == "cpu")


def in_segments(shape: Shape, devices: Sequence[jax.Device]) -> bool:
    """Whether segments of time go side by side: work of which a CPU's cores have enough as it is."""
    return not one_for_each_core(devices) and shape.size <= _LARGEST_IN_SEGMENTS


def at_once(shape: Shape, most: int, each: int = 1) -> int:
    """How many passes, each of so many segments, an accelerator takes at once, of ``most``."""
    return max(1, min(most, _PIECE_BYTES // (8 * _MATRICES * each * shape.size**2)))


def _together(piece: list[Pass], device: jax.Device, accuracy: str) -> list[Outcome | None]:
    """The outcome of every pass of a piece."""
    first = piece[0].asked
    batch = 1 << (len(piece) - 1).bit_length()  # few sizes, few programs
    filled = piece + piece[-1:] * (batch - len(piece))
    segments = in_segments(first.shape, [device])
    key = (first.shape, batch, segments, bucket(len(first.steps)), device)
    with _alone_at_first(key), jax.enable_x64(True), jax.default_device(device):
        found = gone_in_segments(filled) if segments else gone_in_turn(filled, accuracy)
    with ThreadPoolExecutor(min(len(piece), cores())) as pool:
        return list(pool.map(partial(_outcome, found), piece, range(len(piece))))


@contextmanager
def _alone_at_first(key: Hashable) -> Iterator[None]:
    """Whoever is the first with a key is alone within: two threads would compile one program twice."""
    with _guard:
        lock = None if key in _done else _locks.setdefault(key, threading.Lock())
    with lock or nullcontext():
        yield
    _done.add(key)


def least_pivot(entry_error: float) -> float:
    """Pivots this small relative to their columns are for the host engine to decide upon.

    Of exact entries those that may be noise; of rounded ones those that are, or that the rounding explains.
    """
    return SUSPECT if entry_error <= EPS else min(SUSPECT, max(NOISE, UNRESOLVED * entry_error))


def _outcome(found: PassResults, one: Pass, number: int) -> Outcome | None:
    """What a pass found; None where it cannot be sure."""
    form = Form(*(part[number] for part in found.form))
    if not found.worst[number] > least_pivot(one.asked.entry_error):  # not <=, or NaN passes
        return None
    if not ((found.sure[number] or not one.by_lag) and found.growth[number] < LARGEST):
        return None
    if not all(np.isfinite(part).all() for part in form):
        return None
    outcome = Outcome()
    if one.by_lag:
        steps = len(one.asked.steps)
        outcome.lags = log_scale.decades(found.sigma[number, :steps], found.exponent[number, :steps])
    graded = Graded(form.x, form.mantissa, form.exponent.astype(np.int64), form.y)
    outcome.finish(graded, vectors=one.draw is None)
    return outcome
