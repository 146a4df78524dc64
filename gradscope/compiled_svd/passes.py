"""Passes of programs over chains: dealt to the devices, loaded, and what came out of each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np

from gradscope.compiled_svd.chain_program import How, Progress, advanced
from gradscope.compiled_svd.device_steps import ChainArrays
from gradscope.compiled_svd.graded_step import Form
from gradscope.compiled_svd.step_arrays import Shape, StepArrays, bucket
from gradscope.custom_types import Array
from gradscope.machine import cores
from gradscope.product_svd import log_scale
from gradscope.product_svd.error_estimate import EPS, UNRESOLVED, Outcome, grouped_for
from gradscope.product_svd.graded_chain import LARGEST
from gradscope.product_svd.graded_lu import NOISE, SUSPECT, Graded
from gradscope.product_svd.steps import Steps

# Random factors of entries, beyond those of one step; and random vectors, which are taken in turn.
_POOL, _NOISE = 4096, 64
# What the passes of a piece may take on an accelerator, in all, and about how many matrices each takes.
_PIECE_BYTES, _MATRICES = 4 * 2**30, 16

_guard, _locks, _done = threading.Lock(), dict[Hashable, threading.Lock](), set[Hashable]()


class Segment(Protocol):
    """Some steps of a chain."""

    @property
    def step_arrays(self) -> StepArrays | None:
        """The steps as a program takes them; None where none takes them."""


class ArraySource(Protocol):
    """A chain in segments that begin at ``starts``."""

    starts: Sequence[int]

    def segment(self, i: int) -> Segment:
        """The steps of segment i."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A chain whose spectrum is asked for; entry_error : rounding unit of its entries."""

    chain: ArraySource
    steps: Steps
    shape: Shape
    entry_error: float

    def arrays(self, i: int) -> StepArrays:
        """The steps of segment i."""
        found = self.chain.segment(i).step_arrays
        assert found is not None
        return found


@dataclass(frozen=True)
class Pass:
    """One pass over a chain: ``draw`` of its changed entries, or None for them as they are.

    resets : whether x is made well conditioned again and again, see graded_chain.prefixes; by_lag : whether
    the norm at every lag is wanted.
    """

    asked: Asked
    draw: int | None
    resets: bool
    by_lag: bool

    @property
    def key(self) -> tuple[Shape, int, bool]:
        """Passes that have the same go side by side."""
        return self.asked.shape, len(self.asked.steps), self.resets


def shape_of(chain: ArraySource) -> Shape | None:
    """The program that a chain needs; None if there is none for it."""
    arrays = chain.segment(0).step_arrays
    return None if arrays is None else arrays.shape


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

    workers = cores() if one_for_each_core(devices) else len(devices)
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
    groups: dict[tuple[Shape, int, bool], list[Pass]] = {}
    for each in passes:
        groups.setdefault(each.key, []).append(each)
    for (shape, *_), group in groups.items():
        size = 1 if one_for_each_core(devices) else at_once(shape, -(-len(group) // len(devices)))
        for i in range(0, len(group), size):
            yield group[i : i + size]


def one_for_each_core(devices: Sequence[jax.Device]) -> bool:
    """Whether a pass at a time goes to every core."""
    return bool(devices[0].platform == "cpu")


def at_once(shape: Shape, most: int) -> int:
    """How many passes an accelerator takes at once, of ``most``."""
    return max(1, min(most, _PIECE_BYTES // (8 * _MATRICES * shape.size**2)))


def _together(piece: list[Pass], device: jax.Device, accuracy: str) -> list[Outcome | None]:
    """The outcome of every pass of a piece."""
    first = piece[0].asked
    batch = 1 << (len(piece) - 1).bit_length()  # few sizes, few programs
    filled = piece + piece[-1:] * (batch - len(piece))
    key = (first.shape, batch, bucket(len(first.steps)), device)
    with _alone_at_first(key), jax.enable_x64(True), jax.default_device(device):
        progress = _start(filled)
        for i in reversed(range(len(first.chain.starts))):
            steps, chains = _loaded(filled, i)
            how = _how(filled, accuracy, last=i == 0)
            progress = advanced(first.shape, progress, chains, np.int32(steps), how)
        found: Progress = jax.device_get(progress)
    return [_outcome(one, number, found) for number, one in enumerate(piece)]


@contextmanager
def _alone_at_first(key: Hashable) -> Iterator[None]:
    """Whoever is the first with a key is alone within: two threads would compile one program twice."""
    with _guard:
        lock = None if key in _done else _locks.setdefault(key, threading.Lock())
    with lock or nullcontext():
        yield
    _done.add(key)


def _start(piece: list[Pass]) -> Progress:
    """Before the last step: empty products, their columns scaled as the rows of that step are."""
    batch, m, steps = len(piece), piece[0].asked.shape.size, len(piece[0].asked.steps)
    after = np.array([one.asked.steps.weights[-1] for one in piece], np.int32)
    shift = after.max(axis=1, keepdims=True)
    eye = np.broadcast_to(np.eye(m), (batch, m, m))
    y = eye * np.ldexp(1.0, after - shift)[:, None]
    form = Form(eye, np.ones((batch, m)), np.repeat(shift, m, axis=1), y)
    norms = np.zeros((batch, bucket(steps)))
    zero, one = np.int32(0), np.ones(batch)
    vector = np.repeat(_noise(m)[:1], batch, axis=0)
    exponents = norms.astype(np.int32)
    return Progress(form, after, vector, zero, np.int32(1), zero, one, one, one > 0, norms, exponents)


def _how(piece: list[Pass], accuracy: str, last: bool) -> How:
    resets = piece[0].resets
    want = np.array([one.by_lag for one in piece])
    grouped = grouped_for(accuracy) if resets else np.inf
    return How(_noise(piece[0].asked.shape.size), want, np.bool_(last), np.bool_(resets), np.float64(grouped))


def _noise(m: int) -> Array:
    """Random unit vectors, always the same."""
    vectors = np.random.default_rng(0).normal(size=(_NOISE, m))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _loaded(piece: list[Pass], i: int) -> tuple[int, ChainArrays]:
    """How many steps segment i of the chains has, and the segment as a program takes it."""
    first, shape = piece[0].asked, piece[0].asked.shape
    arrays = {one.asked: one.asked.arrays(i) for one in piece}
    each = [arrays[one.asked] for one in piece]
    low, steps = first.chain.starts[i], len(each[0].links)
    length = bucket(steps)

    def of_steps(values: list[Array]) -> Array:
        found = np.zeros((len(values), length, *values[0].shape[1:]))
        for row, value in zip(found, values, strict=True):
            row[:steps] = value
        return found

    weights = np.zeros((len(piece), length + 1, shape.size), np.int32)
    for row, one in zip(weights, piece, strict=True):
        row[1 : steps + 1] = one.asked.steps.weights[low : low + steps]
        if i:
            row[0] = one.asked.steps.weights[low - 1]
    pools, starts = zip(*(_changes(one, low, length) for one in piece), strict=True)
    return steps, ChainArrays(
        of_steps([a.slopes for a in each]),
        np.array([a.matrices for a in each]),
        of_steps([a.links for a in each]),
        of_steps([a.diagonals for a in each]),
        of_steps([np.zeros((steps, 0, 0)) if a.dense is None else a.dense for a in each]),
        weights,
        np.array(pools),
        np.array(starts),
    )


def _changes(one: Pass, low: int, length: int) -> tuple[Array, Array]:
    """Factors 1 + error and 1 - error, at random but always the same, and where each step's begin."""
    size = one.asked.shape.entries + _POOL
    if one.draw is None:
        return np.ones(size), np.zeros(length, np.int32)
    rng = np.random.default_rng(20240229 + one.draw)
    pool = 1 + one.asked.entry_error * rng.choice([-1.0, 1.0], size=size)
    starts = np.random.default_rng([one.draw, low]).integers(_POOL, size=length)
    return pool, starts.astype(np.int32)


def least_pivot(entry_error: float) -> float:
    """Pivots this small relative to their columns are for the host engine to decide upon.

    Of exact entries those that may be noise; of rounded ones those that are, or that the rounding explains.
    """
    return SUSPECT if entry_error <= EPS else min(SUSPECT, max(NOISE, UNRESOLVED * entry_error))


def _outcome(one: Pass, number: int, found: Progress) -> Outcome | None:
    """What a pass found; None where it cannot be sure."""
    form = Form(*(part[number] for part in found.form))
    if not found.worst[number] > least_pivot(one.asked.entry_error):  # not <=, or NaN passes
        return None
    if not (found.sure[number] and found.growth[number] < LARGEST):
        return None
    if not all(np.isfinite(part).all() for part in form):
        return None
    outcome = Outcome()
    if one.by_lag:
        steps = len(one.asked.steps)
        outcome.lags = log_scale.decades(found.sigma[number, :steps], found.exponent[number, :steps])
    outcome.finish(Graded(form.x, form.mantissa, form.exponent.astype(np.int64), form.y))
    return outcome
