"""Singular values of a graded product X^T diag(d) Y: QR passes, then preconditioned Jacobi."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.gejsv import gejsv
from gradscope.product_svd.graded_lu import Graded, powers_of_two

# Bits a block of columns may span: dgejsv works with squares of norms.
SPAN = 830
# Coupling between unit columns below which two blocks do not see each other.
NEGLIGIBLE = 1e-17
MAX_PASSES = 60


def decomposed(graded: Graded, *, vectors: bool = True) -> Graded:
    """The same product with x and y orthonormal and d the singular values, descending.

    vectors : whether x and y are wanted, which are nothing else.

    Drmac and Veselic, New fast and accurate Jacobi SVD algorithm (2008): one-sided Jacobi finds
    every singular value of C diag(d) to a relative error of eps times the condition of C,
    whatever d. The QR step here brings the product to that form.
    """
    if graded.rank == 0:
        return graded
    x, mantissa, exponent, y = _sorted(graded)
    # P^T = Y^T D X; with X^T = Q R it is (Y^T K) D Q^T, K = D R^T D^-1 bounded as d descends.
    basis_x, r = _qr(x.T, vectors)
    columns = y.T @ _graded_transpose(r, mantissa, exponent)
    if exponent[0] - exponent[-1] <= SPAN:
        sigma, powers, u, v = _jacobi(columns, mantissa, exponent, vectors)
        return _in_order(sigma, powers, _turned(basis_x, v), u)
    return _by_blocks(columns, mantissa, exponent, basis_x)


def _qr(a: Array, vectors: bool) -> tuple[Array | None, Array]:
    """Q, where vectors are wanted, and R."""
    if vectors:
        q, r = np.linalg.qr(a)
        return q, r
    return None, np.asarray(np.linalg.qr(a, mode="r"))


def _turned(basis: Array | None, q: Array | None) -> Array | None:
    return None if basis is None or q is None else np.asarray(basis @ q)


def _in_order(mantissa: Array, exponent: Array, left: Array | None, right: Array | None) -> Graded:
    order = np.lexsort((-mantissa, -exponent))
    if left is None or right is None:
        left = right = np.zeros((0, len(order)))
    return Graded(
        np.asfortranarray(left[:, order].T),
        mantissa[order],
        exponent[order],
        np.ascontiguousarray(right[:, order].T),
    )


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


def _jacobi(
    columns: Array, mantissa: Array, exponent: Array, vectors: bool
) -> tuple[Array, Array, Array | None, Array | None]:
    """Singular values (mantissa, exponent) and vectors u, v of columns @ diag(d)."""
    mid = int(exponent[0] + exponent[-1]) // 2
    sigma, u, v = gejsv(columns * np.ldexp(mantissa, exponent - mid), vectors=vectors)
    sigma, carried = np.frexp(sigma)
    return sigma, carried.astype(np.int64) + mid, u, v


def _by_blocks(columns: Array, mantissa: Array, exponent: Array, basis_x: Array | None) -> Graded:
    """As _jacobi, for values no float64 can hold side by side.

    Every QR pass multiplies the coupling of two values by their squared ratio, so that far values
    come apart, until no block of coupled ones spans more than SPAN.
    """
    vectors = basis_x is not None
    basis_y, r = _qr(columns, vectors)
    for _ in range(MAX_PASSES):
        cuts = _cuts(r)
        if all(exponent[i] - exponent[j - 1] <= SPAN for i, j in pairwise(cuts)):
            break
        # R D = D S with S = D^-1 R D; S^T = Q R' turns it into (D R'^T D^-1) D Q^T.
        q, swapped = _qr(_graded_transpose(r, mantissa, exponent), vectors)
        basis_x = _turned(basis_x, q)
        q, r = _qr(_graded_transpose(swapped, mantissa, exponent), vectors)
        basis_y = _turned(basis_y, q)
    found = [_jacobi(r[i:j, i:j], mantissa[i:j], exponent[i:j], vectors) for i, j in pairwise(cuts)]
    sigma, powers = (np.concatenate(each) for each in list(zip(*found, strict=True))[:2])
    left, right = (
        _block_wise(basis, [one[k] for one in found], cuts) for basis, k in ((basis_x, 3), (basis_y, 2))
    )
    return _in_order(sigma, powers, left, right)


def _block_wise(basis: Array | None, turns: list[Any], cuts: list[int]) -> Array | None:
    """The basis with each block of its columns turned."""
    if basis is None:
        return None
    each = (basis[:, i:j] @ turn for (i, j), turn in zip(pairwise(cuts), turns, strict=True))
    return np.concatenate(list(each), axis=1)


def _cuts(r: Array) -> list[int]:
    """Indices where the columns of r fall into blocks that do not couple."""
    n = len(r)
    norm = np.linalg.norm(r, axis=0)
    unit = np.abs(r) / np.where(norm > 0, norm, 1.0)  # 0 of columns that are too small for float64
    reach = np.where(np.triu(unit, 1) > NEGLIGIBLE, np.arange(n), 0).max(axis=1)
    furthest = np.maximum.accumulate(np.maximum(reach, np.arange(n)))
    return [0, *(int(i) + 1 for i in np.flatnonzero(furthest == np.arange(n)))]
