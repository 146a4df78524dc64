"""Every value of one sequence's chains, from its Jacobians on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Protocol

import numpy as np

from gradscope.custom_types import Array
from gradscope.linearize.jacobian_chain import JacobianChain
from gradscope.linearize.segmented import SegmentedChain, keeping_recent
from gradscope.measure.chains import WITHOUT, Ask, measure
from gradscope.measure.cost import KNOWN, chain_cost, plain_cost, runs, without_cost
from gradscope.measure.measured import Measured
from gradscope.measure.progress import Fraction, Meter
from gradscope.measure.returning import returning
from gradscope.measure.shares import error_of_shares, shares
from gradscope.measure.zero_steps import after_zero_steps, with_zero_steps
from gradscope.product_svd.arguments import window_of
from gradscope.product_svd.largest_gain import log10_largest_gain
from gradscope.product_svd.plain_values import few_of_many
from gradscope.product_svd.spectrum import Spectrum, diagonal_spectrum, plain_spectra, spectrum


class Segmented(Protocol):
    """A chain of ``steps`` Jacobians in segments that begin at ``starts``."""

    starts: Sequence[int]
    steps: int

    def segment(self, i: int) -> JacobianChain:
        """The Jacobians of segment i."""


def measure_sequence(
    sequence: Segmented,
    ask: Ask,
    report: Fraction | None = None,
    known: Callable[[], Mapping[str, Spectrum]] = dict,
    returning: bool = False,
    beside: bool = False,
) -> Measured:
    """What is measured of one sequence.

    report : told how far it is; known : finds the chains whose spectra come from elsewhere; returning :
    whether the top vector is followed back, see ``measure.returning``; beside : whether another thread of
    ``ask`` is at the chains without each path meanwhile.
    """
    meter = Meter(report or (lambda _: None))
    read = meter.read if report else None
    chains = JacobianChains(sequence.segment, sequence.starts, sequence.steps, read)
    with chains.without_beside(ask) if beside else nullcontext():
        chains.known = known()
        (found,) = measure(chains, ask, meter)
    return replace(found, returning=chains.returning(found)) if returning and found.alive else found


class JacobianChains:
    """The chains of one sequence (see ``Chains``); of some values only all are computed, or by blocks.

    segment, starts, steps : as for ``SegmentedChain``; read : called at every step that is read. known :
    spectra that are there already.
    """

    sequences = 1

    def __init__(
        self,
        segment: Callable[[int], JacobianChain],
        starts: Sequence[int],
        steps: int,
        read: Callable[[], None] | None = None,
    ) -> None:
        self.known: Mapping[str, Spectrum] = {}
        self._begun: Future[Mapping[str, list[Spectrum]]] | None = None
        recent = keeping_recent(segment)
        first = recent(0)
        self._sizes = {name: chain.size for name, chain in first.chains.items()}
        self._diagonal = {name: chain.diagonal is not None for name, chain in first.chains.items()}
        self._full: JacobianChain | SegmentedChain = first
        self._unread = self._full if len(starts) == 1 else SegmentedChain(recent, starts, steps)
        if len(starts) > 1 or read:
            self._full = SegmentedChain(recent, starts, steps, read)
        self._chains = self._full.chains
        self._whole: list[Spectrum] = []
        self.names = tuple(self._chains)
        self.parts = first.names if len(first.names) > 1 else ()

    def cost(self, name: str, ask: Ask) -> float:
        """By its size; the full one again costs nothing, and a diagonal one next to nothing."""
        if name in self.known:
            return KNOWN
        if name == WITHOUT:
            return without_cost(self._sizes["full"], len(self.parts), steps=len(self._full))
        if name != "full" and (self._is_full(name) or self._diagonal[name]):
            return 0.0
        size, rows, steps = self._sizes[name], self._rows(name), len(self._full)
        if self._few(name, ask):
            return plain_cost(size, rows, steps=steps, top=ask.top or 1)
        return chain_cost(size, steps, rows=rows, path=name != "full" and not rows)

    def _rows(self, name: str) -> int:
        """Of a block of the product, or 0."""
        window = self._chains[name].window
        return 0 if window is None else len(range(self._sizes[name])[window[0]])

    def _few(self, name: str, ask: Ask) -> bool:
        """Whether a few of many of its values are asked for, which a plain product has."""
        count = self._rows(name) or self._sizes[name]
        return not ask.paths or (ask.top is not None and few_of_many(count, ask.top))

    def reads(self, name: str, ask: Ask) -> float:
        """So many as there are runs over the chain; of a block every step is looked at besides."""
        if name == WITHOUT:
            return len(self._full)
        if self._few(name, ask):
            return 2.0 * len(self._full)  # its parts, and all of it for the sizes
        looks = 3 if self._rows(name) else 0
        return len(self._full) * (runs(self._sizes[name]) + looks)

    def spectra(self, name: str, ask: Ask) -> list[Spectrum]:
        """Every lag of the full chain; of a path alone, or a top, only what horizon and peak need."""
        if not self._is_full(name):
            return [self._spectrum(name, ask)]
        if not self._whole:
            found = self._spectrum("full", ask)
            largest = log10_largest_gain(self._full)
            if self._full.beyond:  # which lets through what is zero in float64
                largest = max(largest, float(np.fmax.reduce(np.asarray(found.log10_norm_by_lag))))
            self._whole = [replace(found, log10_largest_gain=largest)]
        return self._whole

    def without(self, ask: Ask) -> Mapping[str, list[Spectrum]]:
        """Every lag, below the vanishing threshold an upper bound."""
        return self._without(self._full, ask) if self._begun is None else self._begun.result()

    @contextmanager
    def without_beside(self, ask: Ask) -> Iterator[None]:
        """Within, another thread is at what ``without`` finds: products in large pieces, which hold no lock.

        Only where there is more than one thread for them.
        """
        if ask.threads == 1 or not ask.paths or not self.parts:
            yield
            return
        pool = ThreadPoolExecutor(1)
        try:
            self._begun = pool.submit(self._without, self._unread, ask)
            yield
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interrupt does not wait for it

    def _without(self, full: JacobianChain | SegmentedChain, ask: Ask) -> Mapping[str, list[Spectrum]]:
        shape = (len(self.parts), self._sizes["full"])
        found: Sequence[Spectrum | None] = [None] * len(self.parts)
        if not full.beyond:
            found = plain_spectra(full.beside(), len(full), shape, ask.entry_error, ask.floor)
        pairs = zip(self.parts, found, strict=True)
        return {part: [one or _first_without(full.without(part), ask)] for part, one in pairs}

    def shares(self, full: Sequence[Spectrum]) -> list[tuple[Mapping[str, Array], float]]:
        """See ``Chains``."""
        (one,) = full
        found = shares(self._full, one.left, one.right, float(one.log10_singular_values[0]))
        return [(found, error_of_shares(one, found))]

    def returning(self, found: Measured) -> Mapping[str, Array]:
        """Where its gradient is on the way back."""
        return returning(self._full, found.full.left, found.shares)

    def _is_full(self, name: str) -> bool:
        """Whether a path is all there is."""
        return self._chains[name] is self._full

    def _spectrum(self, name: str, ask: Ask) -> Spectrum:
        if name in self.known:
            return self.known[name]
        chain = self._chains[name]
        if chain.diagonal is not None and name != "full":
            return diagonal_spectrum(chain.diagonal, by_lag=True, entry_error=ask.entry_error).first(ask.top)
        after = None if name == "full" else after_zero_steps(chain)
        if after and len(after[0]):  # the lags are all that there is
            return with_zero_steps(_first(after[0], ask), after[1]).first(ask.top)
        bounds = ask.only == "verdict" or name != "full" or ask.top is not None
        parts = window_of(chain.window, self._sizes[name])
        count = min(len(range(self._sizes[name])[part]) for part in parts)
        return spectrum(
            chain,
            None if ask.top is None else min(ask.top, count),
            by_lag=True,
            floor=ask.floor if bounds else -math.inf,
            entry_error=ask.entry_error,
            accuracy=ask.accuracy,
            workers=ask.threads,
            window=chain.window,
            only_first=not ask.paths and ask.top is None,
        )


def _first(chain: Sequence[Array], ask: Ask) -> Spectrum:
    """The first value of a chain and every lag, below the vanishing threshold an upper bound."""
    return spectrum(
        chain,
        by_lag=True,
        floor=ask.floor,
        entry_error=ask.entry_error,
        workers=ask.threads,
        only_first=True,
    )


def _first_without(chain: JacobianChain | SegmentedChain, ask: Ask) -> Spectrum:
    """Those of a chain without a path, where a plain product may have lost them."""
    found = _first(chain, ask)
    first = found.log10_singular_values[:1]
    return replace(found, log10_singular_values=first, exact_zeros=None, lost=int(np.isnan(first[0])))
