"""Steps of a chain as arrays on the host, for a program: no JAX, workers import it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradscope.custom_types import Array

# Steps of a segment of time, a power of two at least; segments of a chain that go side by side, at most.
SHORT, MOST_SEGMENTS = 8, 32


@dataclass(frozen=True)
class Shape:
    """What a program is compiled for.

    components : of the state; gates : with a matrix; source : the component that these read; units : n of a
    component; dense : whether steps are given whole, of one component.
    """

    components: int
    gates: int
    source: int
    units: int
    dense: bool

    @property
    def size(self) -> int:
        """States m."""
        return self.components * self.units

    @property
    def entries(self) -> int:
        """Entries of a step, those of its diagonals counted for themselves."""
        return self.size * self.units + self.components**2 * self.units


@dataclass(frozen=True)
class StepArrays:
    """Steps J = diagonals + sum over gates of diag(slope) R_g diag(link), or whole ones.

    slopes : (T, G, C, n), by the component that is written; matrices : (G, n, n); links : (T, n) scales of
    the columns read; diagonals : (T, C, C, n), by component written and read; source : the component that the
    gates read; dense : (T, m, m) whole steps, which everything else is added to, or None.
    """

    slopes: Array
    matrices: Array
    links: Array
    diagonals: Array
    source: int
    dense: Array | None = None

    @property
    def shape(self) -> Shape:
        """What a program for them is compiled for."""
        _, gates, components, units = self.slopes.shape
        return Shape(components, gates, self.source, units, self.dense is not None)

    @classmethod
    def whole(cls, stack: Array) -> StepArrays:
        """Of steps (T, m, m)."""
        steps, m, _ = stack.shape
        return cls(
            np.zeros((steps, 0, 1, m)),
            np.zeros((0, m, m)),
            np.ones((steps, m)),
            np.zeros((steps, 1, 1, m)),
            0,
            stack,
        )


def bucket(steps: int) -> int:
    """Rounded up to quarters of an octave (.. 160, 192, 224, 256, 320 ..): neighbours share a program."""
    quarter = 1 << max(0, (steps - 1).bit_length() - 3)
    return math.ceil(steps / quarter) * quarter


@dataclass(frozen=True)
class Cut:
    """Some steps as ``count`` segments of time, each of so many; room : for how many its arrays are."""

    count: int
    steps: int
    room: int

    @classmethod
    def whole(cls, steps: int) -> Cut:
        """In one piece."""
        return cls(1, steps, bucket(steps))

    @classmethod
    def short(cls, steps: int) -> Cut:
        """In segments of few steps, which go side by side: few of their lengths and counts, few programs."""
        length = max(SHORT, 1 << max(0, math.ceil(steps / MOST_SEGMENTS) - 1).bit_length())
        return cls(bucket(math.ceil(steps / length)), length, length)
