"""The setting of one knob that reaches a goal: first order opens, a bracket is found, Brent ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from gradscope.advise.goals import CLOSE_ENOUGH

# Evaluations of one knob, at most; the one that verifies what is said, shares with it, is the twelfth.
MOST = 11
# Without a derivative the first step is this part of the way, and a step is at least so small a part of it.
_BLIND, _SMALLEST = 0.05, 1e-3


class _EnoughError(Exception):
    """The search is over."""


@dataclass
class KnobSearch:
    """The excess over a goal at every u that was tried.

    evaluate : u -> excess in decades, to be 0; low, high : how far u goes; start : where ``excess`` is known.
    """

    evaluate: Callable[[float], float]
    low: float
    high: float
    start: float
    excess: float
    tried: dict[float, float] = field(default_factory=dict)

    def run(self, guess: float | None) -> None:
        """Try at most so many settings; guess : where to begin, None where nothing is known."""
        try:
            bracket = self._bracket(guess)
            if bracket:
                self._brent(*bracket)
        except _EnoughError:
            pass

    @property
    def monotone(self) -> bool:
        """Whether the excess rises, or falls, all the way through what was tried."""
        points = sorted((self.tried | {self.start: self.excess}).items())
        rises = [b[1] - a[1] for a, b in itertools.pairwise(points)]
        return all(rise >= 0 for rise in rises) or all(rise <= 0 for rise in rises)

    def _at(self, u: float) -> float:
        if u == self.start:
            return self.excess
        if u in self.tried:
            return self.tried[u]
        if len(self.tried) == MOST:
            raise _EnoughError
        self.tried[u] = found = self.evaluate(u)
        if abs(found) <= CLOSE_ENOUGH:
            raise _EnoughError
        return found

    def _bracket(self, first: float | None) -> tuple[float, float] | None:
        """Two settings, above and below the goal; None where there are none to be found."""
        rising = self.high if first is None or first >= self.start else self.low
        falling = self.low if rising == self.high else self.high
        for end, guess in ((rising, first), (falling, None)):
            if end != self.start and (found := self._towards(end, guess)):
                return found
        return None

    def _towards(self, end: float, guess: float | None) -> tuple[float, float] | None:
        """Steps that double, up to an end; the first is the guess."""
        way = end - self.start
        step = (guess - self.start) / way if guess is not None else _BLIND
        step = min(max(step, _SMALLEST), 1.0) if math.isfinite(step) else 1.0
        before = self.start
        while True:
            here = self.start + way * step
            if self._at(here) * self.excess < 0:
                return before, here
            if step == 1.0:
                return None
            before, step = here, min(1.0, 2 * step if step >= _BLIND else max(2 * step, _BLIND))

    def _brent(self, one: float, other: float) -> None:
        from scipy.optimize import brentq

        brentq(self._at, one, other, xtol=1e-6, rtol=1e-9, maxiter=MOST, disp=False)
