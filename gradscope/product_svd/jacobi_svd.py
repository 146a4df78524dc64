"""Singular values of a graded product X^T diag(d) Y: QR passes, then preconditioned Jacobi."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from scipy.linalg.lapack import dgejsv

from gradscope.custom_types import Array
from gradscope.product_svd.graded_lu import Graded, powers_of_two

# Bits a block of columns may span: dgejsv works with squares of norms.
SPAN = 830
# Coupling between unit columns below which two blocks do not see each other.
NEGLIGIBLE = 1e-17
MAX_PASSES = 60


def decomposed(graded: Graded) -> Graded:
    """The same product with x and y orthonormal and d the singular values, descending.

    Drmac and Veselic, New fast and accurate Jacobi SVD algorithm (2008): one-sided Jacobi finds
    every singular value of C diag(d) to a relative error of eps times the condition of C,
    whatever d. The QR step here brings the product to that form.
    """
    if graded.rank == 0:
        return graded
    x, mantissa, exponent, y = _sorted(graded)
    # P^T = Y^T D X; with X^T = Q R it is (Y^T K) D Q^T, K = D R^T D^-1 bounded as d descends.
    basis_x, r = np.linalg.qr(x.T)
    columns = y.T @ _graded_transpose(r, mantissa, exponent)
    if exponent[0] - exponent[-1] <= SPAN:
        sigma, powers, u, v = _jacobi(columns, mantissa, exponent)
        return _in_order(sigma, powers, basis_x @ v, u)
    return _by_blocks(columns, mantissa, exponent, basis_x)


def orthonormal(graded: Graded) -> Graded:
    """The same product with x orthonormal: X^T = Q R, and D^-1 R D, bounded as d descends, goes to y."""
    x, mantissa, exponent, y = _sorted(graded)
    q, r = np.linalg.qr(x.T)
    y = _graded_transpose(r, mantissa, exponent).T @ y
    return replace(graded, x=q.T, mantissa=mantissa, exponent=exponent, y=y)


def _in_order(mantissa: Array, exponent: Array, left: Array, right: Array) -> Graded:
    order = np.lexsort((-mantissa, -exponent))
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


def _jacobi(columns: Array, mantissa: Array, exponent: Array) -> tuple[Array, Array, Array, Array]:
    """Singular values (mantissa, exponent) and vectors u, v of columns @ diag(d)."""
    mid = int(exponent[0] + exponent[-1]) // 2
    a = columns * np.ldexp(mantissa, exponent - mid)
    if a.shape == (1, 1):  # dgejsv refuses it
        sigma, u, v = np.abs(a[0]), np.sign(a), np.ones((1, 1))
    else:
        # joba C: no test of the condition; jobr N: keep tiny columns; jobt, jobp N: a as it is.
        sigma, u, v, work, _, info = dgejsv(a, joba=0, jobu=0, jobv=0, jobr=0, jobt=0, jobp=0)
        if info != 0:
            raise ArithmeticError(f"dgejsv did not converge: info {info}")
        sigma = sigma * (work[0] / work[1])
    sigma, carried = np.frexp(sigma)
    return sigma, carried.astype(np.int64) + mid, u, v


def _by_blocks(columns: Array, mantissa: Array, exponent: Array, basis_x: Array) -> Graded:
    """As _jacobi, for values no float64 can hold side by side.

    Every QR pass multiplies the coupling of two values by their squared ratio, so that far values
    come apart, until no block of coupled ones spans more than SPAN.
    """
    basis_y, r = np.linalg.qr(columns)
    for _ in range(MAX_PASSES):
        cuts = _cuts(r)
        if all(exponent[i] - exponent[j - 1] <= SPAN for i, j in pairwise(cuts)):
            break
        # R D = D S with S = D^-1 R D; S^T = Q R' turns it into (D R'^T D^-1) D Q^T.
        q, swapped = np.linalg.qr(_graded_transpose(r, mantissa, exponent))
        basis_x = basis_x @ q
        q, r = np.linalg.qr(_graded_transpose(swapped, mantissa, exponent))
        basis_y = basis_y @ q
    parts = []
    for i, j in pairwise(cuts):
        sigma, powers, u, v = _jacobi(r[i:j, i:j], mantissa[i:j], exponent[i:j])
        parts.append((sigma, powers, basis_x[:, i:j] @ v, basis_y[:, i:j] @ u))
    sigma, powers, left, right = (np.concatenate(p, axis=-1) for p in zip(*parts, strict=True))
    return _in_order(sigma, powers, left, right)


def _cuts(r: Array) -> list[int]:
    """Indices where the columns of r fall into blocks that do not couple."""
    n = len(r)
    unit = np.abs(r) / np.linalg.norm(r, axis=0)
    reach = np.where(np.triu(unit, 1) > NEGLIGIBLE, np.arange(n), 0).max(axis=1)
    furthest = np.maximum.accumulate(np.maximum(reach, np.arange(n)))
    return [0, *(int(i) + 1 for i in np.flatnonzero(furthest == np.arange(n)))]
