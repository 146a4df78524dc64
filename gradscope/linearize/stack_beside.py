"""One step of a stack without each of its blocks, side by side, by what its layers read of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.steps import multiplied

# From which layer to which.
Block = tuple[int, int]


@dataclass(frozen=True)
class StackBeside:
    """See ``plain_product.Beside``.

    step : (m, m); extents : the states of every layer; reads : what is read, (rows, columns, matrix), the
    last layer's first; own : the parts of every layer's own step; without : of each chain the blocks that it
    is without, last its own.
    """

    step: Array
    extents: Sequence[slice]
    reads: Sequence[tuple[slice, slice, Array]]
    own: Sequence[list[Array]]
    without: Sequence[Sequence[Block]]
    span: float

    @property
    def columns(self) -> Array:
        """See ``Beside``."""
        blocks = np.array(
            [np.einsum("ij,ij->j", rows, rows) for rows in map(self.step.__getitem__, self.extents)]
        )
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
        """The same of rows that see some layers; for what lacks a block once more without what it takes."""
        met = self._met(y)
        for i in range(layers):
            self._into(i, met, out)
        for chain, blocks in enumerate(self.without):
            for i in {i for i, j in blocks if j < layers}:
                some = y[chain].copy()
                for j in (j for k, j in blocks if k == i and j < layers):
                    some[:, self.extents[j]] = 0.0
                self._into(i, self._met(some, i), out[chain])

    def _met(self, y: Array, first: int = 0) -> Array:
        """y, and what it makes of all that is read of the layers from ``first`` on."""
        y = y.copy()
        for rows, columns, matrix in self.reads:
            if rows.stop <= y.shape[-1] and columns.start >= self.extents[first].start:
                y[..., columns] += y[..., rows] @ matrix
        return y

    def _into(self, i: int, met: Array, out: Array) -> None:
        own = self.extents[i]
        out[..., own] = multiplied(met[..., own], self.own[i])
