"""One step of a stack without each of its blocks, side by side, by what its layers read of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.steps import multiplied, multiplied_back

# From which layer to which.
Block = tuple[int, int]


@dataclass(frozen=True)
class StackBeside:
    """See ``plain_product.Beside``.

    formed : the step, (m, m), once it is wanted; extents : the states of every layer; reads : what is read,
    (rows, columns, matrix), the last layer's first; own : the parts of every layer's own step; without : of
    each chain the blocks that it is without, last its own.
    """

    formed: Callable[[], Array]
    extents: Sequence[slice]
    reads: Sequence[tuple[slice, slice, Array]]
    own: Sequence[list[Array]]
    without: Sequence[Sequence[Block]]
    span: float

    @property
    def columns(self) -> Array:
        """See ``Beside``."""
        step = self.formed()
        blocks = np.array([np.einsum("ij,ij->j", rows, rows) for rows in map(step.__getitem__, self.extents)])
        each = np.repeat(blocks[None], len(self.without), axis=0)
        for chain, (*_, (i, j)) in zip(each, self.without, strict=True):
            chain[j, self.extents[i]] = 0.0
        return np.asarray(np.sqrt(each.sum(axis=1)))

    def times(self, y: Array, out: Array) -> None:
        """See ``Beside``: a layer's rows of a product are zero beyond its own states, and stay it.

        Unless there are fewer: then they are combinations of all.
        """
        if y.shape[1] < y.shape[2]:
            self._of_rows(len(self.extents), y, out)
            return
        for layers, own in enumerate(self.extents, 1):
            rows = slice(own.start, own.stop if layers < len(self.extents) else None)
            self._of_rows(layers, y[:, rows, : own.stop], out[:, rows, : own.stop])

    def _of_rows(self, layers: int, y: Array, out: Array) -> None:
        """The same of rows that see some layers."""
        some, at = _variants(self._cut, layers, False)
        met = self._but(y, some)
        for rows, columns, matrix in self.reads:
            if rows.stop <= y.shape[-1]:
                met[:, columns] += met[:, rows] @ matrix
        met = met.reshape(len(some), *y.shape[1:])
        for own, parts, chosen in zip(self.extents, self.own, at, strict=False):
            block = met[chosen, :, own]
            out[..., own] = multiplied(block.reshape(-1, block.shape[-1]), parts).reshape(block.shape)

    def back(self, x: Array) -> Array:
        """See ``Beside``."""
        some, at = _variants(self._cut, len(self.extents), True)
        own, flat = np.empty_like(x), x.reshape(-1, x.shape[-1])
        for extent, parts in zip(self.extents, self.own, strict=True):
            own[..., extent] = multiplied_back(flat[:, extent], parts).reshape(*x.shape[:2], -1)
        met = self._but(own, some)
        for rows, columns, matrix in reversed(self.reads):
            met[:, rows] += met[:, columns] @ matrix.T
        met, out = met.reshape(len(some), *x.shape[1:]), np.empty_like(x)
        for extent, chosen in zip(self.extents, at, strict=True):
            out[..., extent] = met[chosen, :, extent]
        return out

    @property
    def _cut(self) -> tuple[tuple[Block, ...], ...]:
        return tuple(map(tuple, self.without))

    def _but(self, y: Array, some: Sequence[tuple[int, frozenset[int]]]) -> Array:
        """Rows of chains, each without the states of some layers, one below the other."""
        found = y[[chain for chain, _ in some]]
        for one, (_, zero) in zip(found, some, strict=True):
            for layer in zero:
                one[:, self.extents[layer]] = 0.0
        return found.reshape(-1, y.shape[-1])


@cache
def _variants(
    without: tuple[tuple[Block, ...], ...], layers: int, back: bool
) -> tuple[list[tuple[int, frozenset[int]]], list[list[int]]]:
    """Which rows are to be multiplied: of which chain, without what layers; and those that each layer takes.

    Of a block that is cut, what enters it is: rows of the layer it goes to, or ``back`` of that it is from.
    """
    numbers: dict[tuple[int, frozenset[int]], int] = {}
    at = [
        [
            numbers.setdefault((chain, zero), len(numbers))
            for chain, blocks in enumerate(without)
            for zero in [frozenset(b[1 - back] for b in blocks if b[back] == layer and max(b) < layers)]
        ]
        for layer in range(layers)
    ]
    return [*numbers], at
