"""A step of a chain in parts, and products with it that never form it."""

from __future__ import annotations

from itertools import islice

import numpy as np

from gradscope.custom_types import Array

# Rows and columns of the parts of a step that are added to it first, and, of the blocks on its diagonal,
# the states and how many parts they have.
Layout = tuple[tuple[tuple[slice, slice], ...], tuple[tuple[slice, int], ...]]


def multiplied(y: Array, parts: list[Array], layout: Layout | None = None) -> Array:
    """y @ A for A in blocks of columns: a block is (m, n), or (m / n, n) diagonals one below the other.

    With a layout, A is (1 + first part) (1 + second part) ... times the blocks on its diagonal, whose parts
    follow.
    """
    if layout is not None:
        return _in_blocks(y, parts, layout)
    m = y.shape[1]
    out = np.empty((len(y), sum(part.shape[1] for part in parts)))
    start = 0
    for part in parts:
        n = part.shape[1]
        block = out[:, start : start + n]
        if len(part) == m:
            np.matmul(y, part, out=block)
        else:
            np.multiply(y[:, :n], part[0], out=block)
            for k in range(1, len(part)):
                block += y[:, k * n : (k + 1) * n] * part[k]
        start += n
    return out


def _in_blocks(y: Array, parts: list[Array], layout: Layout) -> Array:
    added, diagonal = layout
    y, out, rest = y.copy(), np.empty_like(y), iter(parts)
    for rows, columns in added:
        y[:, columns] += y[:, rows] @ next(rest)
    for own, count in diagonal:
        out[:, own] = multiplied(y[:, own], list(islice(rest, count)))
    return out
