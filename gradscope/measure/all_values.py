"""Every value of one sequence's chains, from its Jacobians on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    known: Mapping[str, Spectrum] | None = None,
    returning: bool = False,
) -> Measured:
    """What is measured of one sequence.

    report : told how far it is; known : chains whose spectra are there already; returning : whether the top
    vector is followed back, see ``measure.returning``.
    """
    meter = Meter(report or (lambda _: None))
    read = meter.read if report else None
    chains = JacobianChains(sequence.segment, sequence.starts, sequence.steps, read, known)
    (found,) = measure(chains, ask, meter)
    return replace(found, returning=chains.returning(found)) if returning and found.alive else found


class JacobianChains:
    """The chains of one sequence (see ``Chains``); of some values only all are computed, or by blocks.

    segment, starts, steps : as for ``SegmentedChain``; read : called at every step that is read; known :
    spectra that are there already.
    """

    sequences = 1

    def __init__(
        self,
        segment: Callable[[int], JacobianChain],
        starts: Sequence[int],
        steps: int,
        read: Callable[[], None] | None = None,
        known: Mapping[str, Spectrum] | None = None,
    ) -> None:
        self._known = known or {}
        recent = keeping_recent(segment)
        first = recent(0)
        self._sizes = {name: chain.size for name, chain in first.chains.items()}
        self._diagonal = {name: chain.diagonal is not None for name, chain in first.chains.items()}
        self._full: JacobianChain | SegmentedChain = first
        if len(starts) > 1 or read:
            self._full = SegmentedChain(recent, starts, steps, read)
        self._chains = self._full.chains
        self._whole: list[Spectrum] = []
        self.names = tuple(self._chains)
        self.parts = first.names if len(first.names) > 1 else ()

    def cost(self, name: str, ask: Ask) -> float:
        """By its size; the full one again costs nothing, and a diagonal one next to nothing."""
        if name in self._known:
            return KNOWN
        if name == WITHOUT:
            return without_cost(self._sizes["full"], len(self.parts))
        if name != "full" and (self._is_full(name) or self._diagonal[name]):
            return 0.0
        size, rows, steps = self._sizes[name], self._rows(name), len(self._full)
        if self._few(name, ask):
            return plain_cost(size, rows)
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
        shape = (len(self.parts), self._sizes["full"])
        found: Sequence[Spectrum | None] = [None] * len(self.parts)
        if not self._full.beyond:
            found = plain_spectra(self._full.beside(), len(self._full), shape, ask.entry_error, ask.floor)
        pairs = zip(self.parts, found, strict=True)
        return {part: [one or self._first_without(part, ask)] for part, one in pairs}

    def _first_without(self, path: str, ask: Ask) -> Spectrum:
        """The same where a plain product may have lost it."""
        found = spectrum(
            self._full.without(path),
            by_lag=True,
            floor=ask.floor,
            entry_error=ask.entry_error,
            workers=ask.threads,
            only_first=True,
        )
        first = found.log10_singular_values[:1]
        return replace(found, log10_singular_values=first, exact_zeros=None, lost=int(np.isnan(first[0])))

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
        if name in self._known:
            return self._known[name]
        chain = self._chains[name]
        if chain.diagonal is not None and name != "full":
            return diagonal_spectrum(chain.diagonal, by_lag=True, entry_error=ask.entry_error).first(ask.top)
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
