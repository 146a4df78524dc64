"""Singular values of a graded product X^T diag(d) Y: QR passes, then preconditioned Jacobi."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.gejsv import gejsv
from gradscope.product_svd.graded_lu import Graded, powers_of_two
from gradscope.product_svd.lapack import dormqr

# Bits a block of columns may span: dgejsv works with squares of norms.
SPAN = 830
# Coupling between unit columns below which two blocks do not see each other.
NEGLIGIBLE = 1e-17
MAX_PASSES = 60
# Reflections that LAPACK takes at once, at most: what it wants room for.
_WORK = 64


def decomposed(graded: Graded, pairs: int | None = None) -> Graded:
    """The same product with x and y orthonormal and d the singular values, descending.

    pairs : of so many of the first values x and y are wanted, by default of all; they have no more rows.

    Drmac and Veselic, New fast and accurate Jacobi SVD algorithm (2008): one-sided Jacobi finds
    every singular value of C diag(d) to a relative error of eps times the condition of C,
    whatever d. The QR step here brings the product to that form.
    """
    if graded.rank == 0:
        return graded
    pairs = graded.rank if pairs is None else pairs
    x, mantissa, exponent, y = _sorted(graded)
    # P^T = Y^T D X; with X^T = Q R it is (Y^T K) D Q^T, K = D R^T D^-1 bounded as d descends.
    turns_x, turns_y = _Turns(pairs > 0), _Turns(pairs > 0)
    columns = y.T @ _graded_transpose(turns_x.triangle(x.T), mantissa, exponent)
    cuts = [0, len(mantissa)]
    if exponent[0] - exponent[-1] > SPAN:
        columns, cuts = _uncoupled(columns, mantissa, exponent, turns_x, turns_y)
    blocks = _Blocks(columns, mantissa, exponent, cuts, pairs)
    left, right = (turns.turned(side).T for turns, side in ((turns_x, blocks.v), (turns_y, blocks.u)))
    return Graded(left, blocks.mantissa, blocks.exponent, np.ascontiguousarray(right))


def _uncoupled(
    columns: Array, mantissa: Array, exponent: Array, turns_x: _Turns, turns_y: _Turns
) -> tuple[Array, list[int]]:
    """R of the columns, turned until its blocks hold no values that float64 can not hold side by side.

    Every QR pass multiplies the coupling of two values by their squared ratio, so that far values come apart.
    Returns where the blocks begin and end as well.
    """
    r = turns_y.triangle(columns)
    for _ in range(MAX_PASSES):
        cuts = _cuts(r)
        if all(exponent[i] - exponent[j - 1] <= SPAN for i, j in pairwise(cuts)):
            break
        # R D = D S with S = D^-1 R D; S^T = Q R' turns it into (D R'^T D^-1) D Q^T.
        swapped = turns_x.triangle(_graded_transpose(r, mantissa, exponent))
        r = turns_y.triangle(_graded_transpose(swapped, mantissa, exponent))
    return r, cuts


class _Turns:
    """Orthogonal factors of QR steps, one after the other, as the reflections that LAPACK has them as.

    kept : whether there is anything to turn. To form them and their product would take longer than all else.
    """

    def __init__(self, kept: bool) -> None:
        self._kept = kept
        self._factors: list[tuple[Array, Array]] = []

    def triangle(self, a: Array) -> Array:
        """R of a (m, n), whose Q is one more factor."""
        reflections, scales = np.linalg.qr(a, mode="raw")
        if self._kept:
            self._factors.append((reflections.T, scales))
        return np.triu(reflections.T[: a.shape[1]])

    def turned(self, columns: Array) -> Array:
        """The product of all factors times columns (n, k)."""
        for reflections, scales in reversed(self._factors):
            missing = len(reflections) - len(columns)
            columns = np.asfortranarray(np.pad(columns, ((0, missing), (0, 0))))
            work = _WORK * (_WORK + 1 + columns.shape[1])
            columns, _, _ = dormqr(b"L", b"N", reflections, scales, columns, work, overwrite_c=True)
        return columns


class _Blocks:
    """Singular values and vectors of columns @ diag(d), of diagonal blocks that begin and end at ``cuts``.

    columns : (m, n), of one block any m >= n. mantissa, exponent : (n,) of all values, descending; u, v :
    (m, pairs) and (n, pairs), vectors of the first of them.
    """

    def __init__(self, columns: Array, mantissa: Array, exponent: Array, cuts: list[int], pairs: int) -> None:
        self._of = columns, mantissa, exponent
        ends = list(pairwise(cuts))
        found = [self._decomposed(i, j, i < pairs) for i, j in ends]
        mantissa, exponent = (np.concatenate([one[k] for one in found]) for k in range(2))
        order = np.lexsort((-mantissa, -exponent))
        self.mantissa, self.exponent = mantissa[order], exponent[order]
        self.u, self.v = np.zeros((len(columns), pairs)), np.zeros((len(order), pairs))
        for (i, j), one in zip(ends, found, strict=True):
            places = np.flatnonzero((order[:pairs] >= i) & (order[:pairs] < j))
            if places.size:  # which need not be in the blocks of the largest d
                _, _, u, v = one if one[2] is not None else self._decomposed(i, j, True)
                chosen = order[places] - i
                self.u[self._rows(i, j), places], self.v[i:j, places] = u[:, chosen], v[:, chosen]

    def _rows(self, i: int, j: int) -> slice:
        """Of a block; of the only one all."""
        return slice(i, j) if j - i < self._of[0].shape[1] else slice(None)

    def _decomposed(self, i: int, j: int, vectors: bool) -> tuple[Array, Array, Any, Any]:
        """Mantissas and exponents of the values of one block, and its vectors."""
        columns, mantissa, exponent = self._of
        mid = int(exponent[i] + exponent[j - 1]) // 2
        block = columns[self._rows(i, j), i:j] * np.ldexp(mantissa[i:j], exponent[i:j] - mid)
        sigma, u, v = gejsv(block, vectors=vectors)
        sigma, carried = np.frexp(sigma)
        return sigma, carried.astype(np.int64) + mid, u, v


def _sorted(graded: Graded) -> tuple[Array, Array, Array, Array]:
    """Rows of x and y of norm 1, d positive and descending."""
    norm_x, norm_y = np.linalg.norm(graded.x, axis=1), np.linalg.norm(graded.y, axis=1)
    mantissa, carried = np.frexp(graded.mantissa * norm_x * norm_y)
    exponent = graded.exponent + carried
    order = np.lexsort((-np.abs(mantissa), -exponent))
    x = graded.x[order] / (norm_x * np.sign(mantissa))[order, None]
    y = graded.y[order] / norm_y[order, None]
    return x, np.abs(mantissa[order]), exponent[order], y


def _graded_transpose(r: Array, mantissa: Array, exponent: Array) -> Array:
    """D R^T D^-1: lower triangular, entries shrunk by the ratio of the values they couple."""
    ratio = powers_of_two(exponent[:, None] - exponent)
    return np.tril(r.T * (mantissa[:, None] / mantissa)) * ratio


def _cuts(r: Array) -> list[int]:
    """Indices where the columns of r fall into blocks that do not couple."""
    n = len(r)
    norm = np.linalg.norm(r, axis=0)
    unit = np.abs(r) / np.where(norm > 0, norm, 1.0)  # 0 of columns that are too small for float64
    reach = np.where(np.triu(unit, 1) > NEGLIGIBLE, np.arange(n), 0).max(axis=1)
    furthest = np.maximum.accumulate(np.maximum(reach, np.arange(n)))
    return [0, *(int(i) + 1 for i in np.flatnonzero(furthest == np.arange(n)))]
