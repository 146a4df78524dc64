"""An axis of a picture, in pixels, or of lines of text, in characters: where values stand, and its ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradscope.custom_types import Array


@dataclass(frozen=True)
class Axis:
    """From ``low`` at pixel ``start`` to ``high`` at pixel ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, apart: float, least: float = 0.0) -> list[float]:
        """Round values, at least so many pixels apart, and no nearer to each other than ``least``."""
        step = _round_up((self.high - self.low) * apart / max(abs(self.end - self.start), apart))
        step = max(step, least)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def _round_up(step: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def spread(values: Sequence[float] | Array, least: float) -> tuple[float, float]:
    """From the lowest to the highest, and no less than ``least`` apart."""
    low, high = float(np.min(values)), float(np.max(values))
    missing = max(0.0, least - (high - low)) / 2
    return low - missing, high + missing
