"""What can be asked of the chains of a problem, however they are computed; and the one loop that asks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gradscope.custom_types import Array
from gradscope.measure.measured import Measured
from gradscope.measure.progress import Meter
from gradscope.product_svd.spectrum import Spectrum
from gradscope.settings import Only

# What the chains without each path are called where what they take is told.
WITHOUT = "without each path"


@dataclass(frozen=True)
class Ask:
    """What is asked of every chain.

    entry_error : rounding unit of the entries of the Jacobians; floor : log10 gain below which the norm by
        lag of a path alone may be an upper bound, and which is looked for where some lags are known only.
    accuracy : "full" or "fast"; top : how many values, None is all; known : chains that are measured
        elsewhere; threads : of one sequence.
    only : what is measured, see ``Settings.only``.
    """

    entry_error: float
    floor: float
    accuracy: str = "full"
    top: int | None = None
    known: frozenset[str] = frozenset()
    threads: int = 1
    only: Only = "all"

    @property
    def paths(self) -> bool:
        """Whether the paths are measured too, their shares, and the whole chain without each of them."""
        return self.only in ("paths", "all")


class Chains(Protocol):
    """The chains of some sequences of one length.

    names : "full" first, then each path or block; parts : the paths that the full chain is the sum of, none
    where there is only one. There are two kinds: ``JacobianChains`` (every value, on the host) and
    ``TangentChains`` (the top values, without Jacobians, on the devices).
    """

    sequences: int
    names: tuple[str, ...]
    parts: tuple[str, ...]

    def cost(self, name: str, ask: Ask) -> float:
        """How long a chain takes, beside the others."""

    def reads(self, name: str, ask: Ask) -> float:
        """How many steps are read for it, about."""

    def spectra(self, name: str, ask: Ask) -> list[Spectrum]:
        """The spectrum of a chain, for every sequence."""

    def without(self, ask: Ask) -> Mapping[str, list[Spectrum]]:
        """The first value of the full chain without each path, for every sequence, and its norm by lag."""

    def shares(self, full: Sequence[Spectrum]) -> list[tuple[Mapping[str, Array], float]]:
        """Each path's share in carrying the gradient at every step, {path: (T,)}, and the error of the means.

        For every sequence, see ``measure.shares``.
        """


def measure(chains: Chains, ask: Ask, meter: Meter) -> list[Measured]:
    """Spectra of the full chain, of every path alone, of all but it, and the shares, for every sequence."""
    names = [name for name in chains.names if name not in ask.known] if ask.paths else ["full"]
    every = [*names, WITHOUT] if ask.paths and chains.parts else names
    meter.begin(
        costs={name: chains.cost(name, ask) for name in every},
        reads={name: chains.reads(name, ask) for name in every},
    )
    found: dict[str, list[Spectrum]] = {}
    for name in names:
        found[name] = chains.spectra(name, ask)
        meter.finished(name)
    shares = chains.shares(found["full"]) if ask.paths else [({}, math.nan)] * chains.sequences
    without = chains.without(ask) if WITHOUT in every else {}
    meter.finished(WITHOUT)
    return [
        Measured(
            {name: each[number] for name, each in found.items()},
            shares[number][0],
            without={part: each[number] for part, each in without.items()},
            shares_error=shares[number][1],
        )
        for number in range(chains.sequences)
    ]
