"""All that is measured of one sequence, from its Jacobians alone: it runs in worker processes too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradscope.chain import Spectrum, diagonal_spectrum, spectrum
from gradscope.flow import shares
from gradscope.loaded import Loaded
from gradscope.path import Array
from gradscope.segmented import Segmented, keeping_recent
from gradscope.stretches import log10_largest_gain

# A chain is gone through about so many times.
_PASSES = 4
_SECONDS_BETWEEN_REPORTS = 0.1


@dataclass(frozen=True)
class Task:
    """How to measure a chain of ``steps`` Jacobians in segments that begin at ``starts``.

    entry_error : rounding unit of their entries; floor : log10 gain below which the norm by lag of a
    path alone may be an upper bound; accuracy, workers : as for ``spectrum``; watched : whether
    somebody wants to know how far it is; top : how many values, None is all; known : paths whose own
    chains are measured elsewhere.
    """

    starts: Sequence[int]
    steps: int
    entry_error: float
    floor: float
    accuracy: str = "full"
    workers: int = 1
    watched: bool = False
    top: int | None = None
    known: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Measured:
    """Of one sequence: {chain: Spectrum}, the full one first, and {path: (T,) shares}."""

    spectra: dict[str, Spectrum]
    shares: dict[str, Array]

    @property
    def alive(self) -> bool:
        """Whether any gradient gets through."""
        return bool(self.spectra["full"].log10_singular_values[0] > -np.inf)


def measure(task: Task, segment: Callable[[int], Loaded], report: Callable[[float], None]) -> Measured:
    """Spectra of the full chain and of every path alone, and the shares of the paths.

    segment : number -> the Jacobians of that segment; report : called with the fraction done.
    """
    recent = keeping_recent(segment)
    whole: Any = recent(0)
    meter = _Meter(_unknown(whole.chains, task), task.steps, report)
    if len(task.starts) > 1 or task.watched:
        whole = Segmented(recent, task.starts, task.steps, meter.read if task.watched else None)
    spectra: dict[str, Spectrum] = {}
    for name, chain in _unknown(whole.chains, task).items():
        itself = chain is whole and name != "full"
        spectra[name] = spectra["full"] if itself else _spectrum(name, chain, task)
        meter.finished(name)
    full = spectra["full"] = replace(spectra["full"], log10_largest_gain=log10_largest_gain(whole))
    share = shares(whole, full.left, full.right, float(full.log10_singular_values[0]))
    return Measured(spectra, share)


def _unknown(chains: Mapping[str, Any], task: Task) -> dict[str, Any]:
    return {name: chain for name, chain in chains.items() if name not in task.known}


def _spectrum(name: str, chain: Any, task: Task) -> Spectrum:
    """Every lag of the full chain; of a path alone, or a top, only what horizon and peak need."""
    if task.top is not None:
        top = min(task.top, len(chain[0]))
        return spectrum(chain, top, by_lag=True, floor=task.floor, entry_error=task.entry_error)
    if chain.diagonal is not None and name != "full":
        return diagonal_spectrum(chain.diagonal, by_lag=True, entry_error=task.entry_error)
    return spectrum(
        chain,
        by_lag=True,
        floor=-math.inf if name == "full" else task.floor,
        entry_error=task.entry_error,
        accuracy=task.accuracy,
        workers=task.workers,
        window=chain.window,
    )


class _Meter:
    """How far the work is, from the steps that were read; a chain costs as its size squared."""

    def __init__(self, chains: Mapping[str, Any], steps: int, report: Callable[[float], None]) -> None:
        full = chains["full"]
        self._costs = {n: len(c[0]) ** 2 for n, c in chains.items() if n == "full" or c is not full}
        self._total = sum(self._costs.values())
        self._left = self._total
        self._reads, self._expected = 0, _PASSES * steps
        self._report, self._reported = report, time.monotonic()

    def read(self) -> None:
        """One more step was read."""
        self._reads += 1
        if time.monotonic() > self._reported + _SECONDS_BETWEEN_REPORTS:
            self._tell()

    def finished(self, name: str) -> None:
        """The chain called ``name`` is done."""
        self._left -= self._costs.pop(name, 0)
        self._reads = 0
        self._tell()

    def _tell(self) -> None:
        under_way = next(iter(self._costs.values()), 0) * min(1.0, self._reads / self._expected)
        self._reported = time.monotonic()
        self._report((self._total - self._left + under_way) / self._total)
