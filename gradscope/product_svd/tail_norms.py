"""Norms of the products of the last steps, all lags in one pass: Lanczos from a space that they share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.error_estimate import SAFETY
from gradscope.product_svd.operator import Operator

# Passes to and fro, at most.
_MOST = 30
# What grows from one pass to the next by so much may grow by so many times that before it is found.
CAUTION = 10.0
# How much of every vector of the start is drawn: the residuals then see what no vector of the space meets.
_DRAWN = 0.1
# Columns that all lags begin with, at most.
_WIDTH = 16
# Lags that are gone through at once have two columns each.
_COLUMNS = 2


class _Found(NamedTuple):
    """Of lags (B, L): log10 norms, what they may lack and what rounding does to them, both relative.

    open : whether something beside them may be larger.
    """

    log10: Array
    lacking: Array
    rounding: Array
    open: Array


def tail_norms(operator: Operator, lags: Array, near: Array, tolerance: float) -> Array:
    """(B, L) log10 sigma_1(A_T ... A_(T-k+1)), NaN where it is not known to 100 times ``tolerance``.

    lags : (L,) ascending; near : (B, r, b) orthonormal, about the left vectors of the longest lags;
    tolerance : relative.

    The space of each lag begins with ``near``, a tenth of it drawn anew, and a vector that is drawn: a larger
    value whose vectors are orthogonal to ``near`` is found from there. Every pass to and fro adds the
    residual of the first Ritz pair and the next vector of the drawn start (block Lanczos that begins with a
    space: Wu, Simon 2000).
    """
    found = np.full((operator.sequences, len(lags)), np.nan)
    at_once = operator.beside // _COLUMNS
    for first in range(0, len(lags), at_once):
        some = slice(first, first + at_once)
        found[:, some] = _at_once(operator, np.asarray(lags[some]), near, tolerance)
    return found


def _at_once(operator: Operator, lags: Array, near: Array, tolerance: float) -> Array:
    norms = np.full((operator.sequences, len(lags)), np.nan)
    spaces, numbers = _Spaces(operator, lags, near), np.arange(len(lags))
    for _ in range(_MOST):
        found = spaces.pushed()
        known = np.maximum(found.lacking, SAFETY * found.rounding) <= 100 * tolerance
        norms[:, numbers] = np.where(known & ~found.open, found.log10, np.nan)
        going = np.asarray((found.open | (found.lacking > tolerance)).any(axis=0))
        if not going.any():
            break
        numbers = numbers[going]
        spaces.pulled(going)
    return norms


class _Rows:
    """Rows (B, L, j, r) of L spaces, to which more are added in room that is there already."""

    def __init__(self, rows: Array) -> None:
        self._held, self._count = np.array(rows), rows.shape[2]

    @property
    def all(self) -> Array:
        """Those that there are."""
        return self._held[:, :, : self._count]

    def add(self, rows: Array) -> None:
        """More of every space."""
        before, self._count = self._count, self._count + rows.shape[2]
        if self._count > self._held.shape[2]:
            sequences, lags, _, size = self._held.shape
            held = np.empty((sequences, lags, 2 * self._count, size))
            held[:, :, :before] = self._held[:, :, :before]
            self._held = held
        self._held[:, :, before : self._count] = rows

    def keep(self, spaces: Array) -> None:
        """Those of some spaces."""
        if not spaces.all():
            self._held = self._held[:, spaces]


class _Spaces:
    """Left spaces (B, L, j, r) of lags, orthonormal rows, and images by P^T (B, L, j, c) / 2**exponent."""

    def __init__(self, operator: Operator, lags: Array, near: Array) -> None:
        self._operator, self.lags = operator, lags
        near = near[:, :, : min(near.shape[1], _WIDTH) - 1]
        count, size, kept = near.shape
        drawn = np.random.default_rng(0).normal(size=(count, size, kept + 1)) / np.sqrt(size)
        start = np.linalg.qr(np.concatenate([near, drawn[:, :, kept:]], axis=2) + _DRAWN * drawn)[0]
        images, exponents = operator.images(start, lags)
        self.exponent = exponents.max(axis=2)
        scale = _power(exponents - self.exponent[..., None])
        self._images = _Rows((images * scale[:, :, None]).swapaxes(2, 3))
        rows = start.swapaxes(1, 2)[:, None]
        self._left = _Rows(np.broadcast_to(rows, (len(rows), len(lags), *rows.shape[2:])))
        self._gram = self._images.all @ self._images.all.swapaxes(2, 3)
        self._second = np.zeros(self.exponent.shape)
        self._next = self._images.all[:, :, :0]

    def pushed(self) -> _Found:
        """What the spaces tell of the norms, and one pass that tells how good that is."""
        left, images = self._left.all, self._images.all
        values, vectors = np.linalg.eigh(self._gram)
        sigma = np.sqrt(np.maximum(values[..., -1], 0))
        some = np.where(sigma > 0, sigma, 1.0)
        first = vectors[..., -1][..., None, :]
        u, v = (first @ left)[:, :, 0], (first @ images)[:, :, 0] / some[..., None]
        drawn = images[:, :, -1]
        size = np.linalg.norm(drawn, axis=2)
        drawn = drawn / np.where(size > 0, size, 1.0)[..., None]
        ahead = self._through(np.stack([v, drawn], axis=2), back=False)
        rayleigh = (u * ahead[:, :, 0]).sum(axis=2)
        residual = ahead[:, :, 0] - sigma[..., None] * u
        self._next = np.stack([residual, ahead[:, :, 1]], axis=2)
        relative = np.linalg.norm(residual, axis=2) / some
        beside = np.sqrt(np.maximum(values[..., -2], 0)) / some if values.shape[-1] > 1 else 0 * sigma
        along, size = np.linalg.norm(ahead[:, :, 1], axis=2) / some, size / some
        grows = np.minimum(along + CAUTION * (along - size), beside + CAUTION * (beside - self._second))
        self._second = beside
        with np.errstate(divide="ignore"):
            log10 = np.log10(sigma) + self.exponent * np.log10(2.0)
        full = left.shape[2] >= left.shape[3]
        return _Found(
            log10,
            lacking(relative, beside),
            np.abs(rayleigh / some - 1) * (sigma > 0),
            (np.maximum(grows, along) >= 1) & (sigma > 0) & (not full),
        )

    def pulled(self, going: Array) -> None:
        """The lags that go on with what the pass has found in their spaces."""
        self.lags, self.exponent = self.lags[going], self.exponent[:, going]
        self._second, gram = self._second[:, going], self._gram[:, going]
        self._left.keep(going)
        self._images.keep(going)
        new = orthonormal(self._next[:, going], self._left.all)
        self._left.add(new)
        images = self._through(new, back=True)
        self._images.add(images)
        self._gram = bordered(gram, images @ self._images.all.swapaxes(2, 3))

    def _through(self, vectors: Array, back: bool) -> Array:
        """Two (B, L, 2, .) of each lag through its steps, by 2**exponent."""
        sequences, count, columns, size = vectors.shape
        block = vectors.reshape(sequences, count * columns, size).swapaxes(1, 2)
        found, exponents = self._operator.tails(block, np.repeat(self.lags, columns), back)
        scale = _power(exponents - np.repeat(self.exponent, columns, axis=1))
        return (found * scale[:, None]).swapaxes(1, 2).reshape(sequences, count, columns, -1)


def _power(exponent: Array) -> Array:
    return np.ldexp(1.0, np.clip(exponent, -1000, 1000).astype(np.int64))


def orthonormal(new: Array, left: Array) -> Array:
    """(B, L, k, r) orthonormal rows, and orthogonal to those of (B, L, j, r); zero where nothing is left."""
    rows, size = _unit(new), np.empty((*new.shape[:3], 1))
    for _ in range(2):
        rows = rows - (rows @ left.swapaxes(2, 3)) @ left
        for k in range(rows.shape[2]):
            before, row = rows[:, :, :k], rows[:, :, k : k + 1]
            row -= (row @ before.swapaxes(2, 3)) @ before
            size[:, :, k : k + 1] = np.linalg.norm(row, axis=3, keepdims=True)
            row[:] = _unit(row)
    # The second time nothing is taken away but where rounding was all that the first had left.
    return np.where(size > 0.5, rows, 0.0)


def _unit(rows: Array) -> Array:
    size = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(size > 0, size, 1.0))


def bordered(gram: Array, more: Array) -> Array:
    """All products of rows, from those of the old ones (.., j, j) and of new ones with all (.., k, j + k)."""
    above = more[..., : gram.shape[-1]].swapaxes(-1, -2)
    return np.concatenate([np.concatenate([gram, above], axis=-1), more], axis=-2)


def lacking(residual: Array, ratio: Array) -> Array:
    """How much larger than a Ritz value the value may be, relative, of the next one so many times as large.

    The square of the residual over the gap, or where that is small the residual.
    """
    gap = np.maximum(1 - ratio, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        quadratic = residual**2 / (gap * (1 + ratio))
    return np.asarray(np.where(residual >= 0.1 * gap, residual, quadratic))
