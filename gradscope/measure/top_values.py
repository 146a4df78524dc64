"""The top values of the chains of a batch without Jacobians: all sequences of one length at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.notation import NAMELESS
from gradscope.cells.stack import block_names, extents_of
from gradscope.custom_types import Array
from gradscope.linearize.budget import SEGMENT_BYTES, tangent_bytes
from gradscope.linearize.gates import followed
from gradscope.linearize.system import System
from gradscope.linearize.tangent_chain import TangentChain
from gradscope.linearize.tangents import TangentSteps, tangents, tangents_without
from gradscope.linearize.trajectory import Segments, Spread, Trajectory
from gradscope.measure.chains import WITHOUT, Ask, measure
from gradscope.measure.cost import TOP_PASSES
from gradscope.measure.measured import Measured
from gradscope.measure.progress import Fraction, Meter
from gradscope.measure.returning import Columns
from gradscope.measure.shares import error_of_shares
from gradscope.product_svd.operator import Operator, Window
from gradscope.product_svd.spectrum import Spectrum, diagonal_spectrum, top_spectra

# Rounding units of an entry that a unit of the largest pre-activation adds, as for all values.
ROUNDINGS_PER_DRIVE = 0.25
# Decades by which what the paths carry may miss sigma_1 where the top vector is followed back.
_ADDS_UP = 0.01


def measure_together(
    system: System, kept: tuple[str, ...], ask: Ask, devices: Sequence[jax.Device], report: Fraction
) -> list[Measured]:
    """What is measured of sequences of one length, of the chain that keeps these paths; and their gates."""
    with system.running():
        meter = Meter(report)
        chains = TangentChains(system, kept, devices, meter.read)
        followed = chains.followed()  # first, as it finds states that their dtype does not hold
        found = measure(chains, ask, meter)
        if ask.only == "all" and found[0].alive:
            found[0] = replace(found[0], returning=chains.returning)
        return [
            replace(_saturated(one, course, ask, system.steps), gates=gates, course=course)
            for one, (gates, course) in zip(found, followed, strict=True)
        ]


class TangentChains:
    """The chains of sequences of one length (see ``Chains``). To be used within ``system.running()``.

    kept : the paths that the full chain is the sum of; read : told how many steps were gone through.
    returning : see measure.returning, of the first sequence, once there are shares.
    """

    def __init__(
        self,
        system: System,
        kept: tuple[str, ...],
        devices: Sequence[jax.Device],
        read: Callable[[int], None],
    ) -> None:
        cell, self.sequences = system.cell, system.batch
        bytes_at_once = self.sequences * tangent_bytes(cell, system.hidden)
        segments = Segments.cover(system.steps, bytes_at_once, SEGMENT_BYTES)
        self._trajectory = Trajectory(system, segments, Spread(tuple(devices[: self.sequences])))
        self._windows = _windows(cell)  # what one layer does to another is a block of the whole product
        self._steps = {"full": tangents(cell, kept)}
        self._paths, self._dtype = kept or (NAMELESS,), system.dtype
        # The one path of a cell of one component is all there is.
        self._same = kept if len(kept) == len(cell.components) == 1 else ()
        for path in kept:
            alone = path not in self._windows and path not in self._same
            own = tangents(cell, (path,), cell.source(path), system.hidden)
            self._steps[path] = own if alone else self._steps["full"]
        self._cell, self._read = cell, read
        self.parts = kept if len(kept) > 1 else ()
        self._full = self._chain(self._steps["full"])
        self._whole: list[Spectrum] = []
        self.returning: Mapping[str, Array] = {}
        self.names = tuple(self._steps)

    def cost(self, name: str, ask: Ask) -> float:
        """About the same for all, but for the full one again."""
        return float(len(self.parts) if name == WITHOUT else name not in self._same)

    def reads(self, name: str, ask: Ask) -> float:
        """Some passes over the chain, and over the parts of it whose lags are asked for."""
        return TOP_PASSES * self._full.steps

    def spectra(self, name: str, ask: Ask) -> list[Spectrum]:
        """The top of them, and some lags."""
        if name != "full" and name not in self._same:
            return self._spectra(name, ask)
        self._whole = self._whole or self._spectra("full", ask)
        return self._whole

    def without(self, ask: Ask) -> Mapping[str, list[Spectrum]]:
        """The first value, and some lags."""
        found = {}
        for path in self.parts:
            chain = self._full.of(tangents_without(self._cell, self.parts, path))
            found[path] = top_spectra(chain, 1, by_lag=True, floor=ask.floor, entry_error=ask.entry_error)
        return found

    def shares(self, full: Sequence[Spectrum]) -> list[tuple[Mapping[str, Array], float]]:
        """See ``Chains``."""
        left, right = (np.array([getattr(one, side) for one in full]) for side in ("left", "right"))
        columns, sigma_1 = Columns(self._full.steps, self._full.size), full[0].log10_singular_values[0]

        def took(first: int, log10: Array, carried: Array) -> None:
            with np.errstate(invalid="ignore"):  # of a chain that is zero
                columns.take(first, log10, np.abs(carried - sigma_1) < _ADDS_UP)

        found, forth, back = self._full.shares(left, right, took)
        self.returning = columns.found
        again = self._full.shares(forth, back)[0] if len(self._paths) > 1 else found
        each, other = (
            [dict(zip(self._paths, one.T, strict=True)) for one in all_] for all_ in (found, again)
        )
        return [
            (one, error_of_shares(top, one, two)) for top, one, two in zip(full, each, other, strict=True)
        ]

    def followed(self) -> list[tuple[dict[str, Array], dict[str, Array]]]:
        """Sums over the gates of every sequence, and its course: by this it is known what steps need."""
        found = followed(self._trajectory, self.sequences)
        self._trajectory.near = any(course["near"][0] for _, course in found)
        return found

    def _spectra(self, name: str, ask: Ask) -> list[Spectrum]:
        assert ask.top is not None
        steps = self._steps[name]
        chain = self._full if steps is self._steps["full"] else self._chain(steps)
        product: Operator = Window(chain, self._windows[name]) if name in self._windows else chain
        top = min(ask.top, product.size)
        if steps.diagonal:
            diagonals = map(chain.diagonals, range(self.sequences))
            return [_diagonal(factors, top, ask.entry_error) for factors in diagonals]
        found = top_spectra(product, top, by_lag=True, floor=ask.floor, entry_error=ask.entry_error)
        found = [replace(one, engine="blocks") for one in found]
        return found if name == "full" else [replace(one, log10_largest_gain=None) for one in found]

    def _chain(self, steps: TangentSteps) -> TangentChain:
        return TangentChain(self._trajectory, steps, self.sequences, self._dtype, self._read)


def _saturated(one: Measured, course: Mapping[str, Array], ask: Ask, steps: int) -> Measured:
    """With what slopes of large pre-activations add to the estimated errors (see error_estimate.SATURATION).

    The logarithm of such a slope is the pre-activation, once or twice, and that is rounded.
    """
    more = max(0.0, float(course["drive"][0]) * ROUNDINGS_PER_DRIVE - 1) * ask.entry_error
    added = 2 * math.sqrt(steps) * more / math.log(10)  # roundings add up like a random walk
    spectra, without = (
        {
            name: replace(
                each, log10_error=each.log10_error + added, log10_norm_error=each.log10_norm_error + added
            )
            for name, each in some.items()
        }
        for some in (one.spectra, one.without)
    )
    return replace(one, spectra=spectra, without=without)


def _diagonal(factors: Array, top: int, entry_error: float) -> Spectrum:
    """Products of numbers, which need no passes; only the top of them, as of the other chains."""
    found = diagonal_spectrum(factors, by_lag=True, entry_error=entry_error)
    return replace(found, log10_singular_values=found.log10_singular_values[:top], exact_zeros=None)


def _windows(cell: Cell) -> dict[str, tuple[slice, slice]]:
    """Rows and columns of the whole product that the chains between two layers of a stack are."""
    part = list(extents_of(cell.members))
    names = block_names(cell.members)
    return {name: (part[j], part[i]) for (i, j), name in names.items() if i != j}
