"""Steps of a chain as arrays on the host, for a program."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from gradscope.custom_types import Array

# Steps of a segment of time, a power of two at least; segments of a chain that go side by side, at most.
SHORT, MOST_SEGMENTS = 8, 32


@dataclass(frozen=True)
class LayerShape:
    """What of the steps of one layer a program is compiled for.

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
        """States of the layer."""
        return self.components * self.units

    @property
    def entries(self) -> int:
        """Entries of a step, those of its diagonals counted for themselves."""
        return self.size * self.units + self.components**2 * self.units


@dataclass(frozen=True)
class ReadingShape:
    """The same of what a layer reads: layer : whose states get it; start, stop : the states that are read."""

    layer: int
    gates: int
    start: int
    stop: int


@dataclass(frozen=True)
class Shape:
    """What a program is compiled for: one layer, or a stack of them with what they read of each other."""

    layers: tuple[LayerShape, ...]
    readings: tuple[ReadingShape, ...] = ()

    @property
    def size(self) -> int:
        """States m."""
        return sum(layer.size for layer in self.layers)

    @property
    def extents(self) -> list[tuple[int, int]]:
        """Where the states of every layer begin and end."""
        ends = list(accumulate(layer.size for layer in self.layers))
        return list(pairwise([0, *ends]))

    @property
    def read(self) -> list[tuple[int, int]]:
        """Rows and columns of what is read."""
        return [(self.layers[one.layer].size, one.stop - one.start) for one in self.readings]

    @property
    def entries(self) -> int:
        """Entries of a step: of what is read, then of the layers."""
        read = sum(rows * columns for rows, columns in self.read)
        return read + sum(layer.entries for layer in self.layers)


@dataclass(frozen=True)
class LayerArrays:
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
    def shape(self) -> LayerShape:
        """What of a program is compiled for them."""
        _, gates, components, units = self.slopes.shape
        return LayerShape(components, gates, self.source, units, self.dense is not None)


@dataclass(frozen=True)
class ReadingArrays:
    """What ``layer`` reads, B = sum over gates of diag(slope) W_g, of the states from ``start`` on.

    slopes : (T, G, C, n), by the component that is written; matrices : (G, n, columns).
    """

    slopes: Array
    matrices: Array
    layer: int
    start: int

    @property
    def shape(self) -> ReadingShape:
        """What of a program is compiled for it."""
        gates, _, columns = self.matrices.shape
        return ReadingShape(self.layer, gates, self.start, self.start + columns)


@dataclass(frozen=True)
class StepArrays:
    """Steps of layers, (1 + B) of every reading, the last layer's first, times the layers side by side."""

    layers: tuple[LayerArrays, ...]
    readings: tuple[ReadingArrays, ...] = ()

    def __len__(self) -> int:
        return len(self.layers[0].links)

    @property
    def shape(self) -> Shape:
        """What a program for them is compiled for."""
        return Shape(tuple(one.shape for one in self.layers), tuple(one.shape for one in self.readings))

    @classmethod
    def whole(cls, stack: Array) -> StepArrays:
        """Of steps (T, m, m)."""
        steps, m, _ = stack.shape
        nothing, one = np.zeros((steps, 1, 1, m)), np.ones((steps, m))
        return cls((LayerArrays(nothing[:, :0], np.zeros((0, m, m)), one, nothing, 0, stack),))


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
