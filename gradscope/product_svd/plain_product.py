"""The largest values of chains of one size at every lag, side by side: plain products, and their noise.

A plain product keeps nothing but its largest directions, which is all that is asked for, unless steps that
come later do away with them. Whether they do is seen from rows of noise that every step leaves beside it.
Directions below that noise are shed: few rows are left of a long product. Where the norms are all that is
asked for, so are those that add nothing to them: next to a norm of 1, rows that are orthogonal to its own and
as large as x add x^2 / 2. What later steps make of these is seen from a few random sums of them, which stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd import log_scale
from gradscope.product_svd.error_estimate import EPS, SAFETY
from gradscope.product_svd.lobpcg import leading_left
from gradscope.product_svd.log_scale import LOG10_2
from gradscope.product_svd.norm_by_lag import TIED
from gradscope.product_svd.steps import WILD, multiplied, multiplied_back

# Rows that stand for what rounding left in the product.
NOISE_ROWS = 8
# Lags whose norms are looked for at once, and numbers of theirs that are held.
_LAGS, _NUMBERS = 8, 2**20
# Estimated errors (log10) from which on others are asked.
GOOD = 1e-9
# Rows are shed once 5/8 of them hold the product to so many roundings: half of an LSTM's directions are soon
# gone, the others slowly. Of fewer than so many there is nothing to gain.
_SHED, _FEWEST = 4.0, 32
# Steps after which that is tried, which takes as long as three of them, and how many times as many until
# it is tried again.
_TRIED, _LATER = 32, 2
# Noise that is so many times what a random walk of roundings is, and as much again, may grow with the steps.
_USUAL = 32.0
# Of the norm, what rows that are shed may hold where the norms are all that is asked for; their sums that
# stay. That is tried after the first of these steps already, and most when they are no more than so many.
_ASIDE, _SUMS = 3e-7, 4
_TRIED_NORMS, _WORTH, _MANY_ROWS = 8, 0.75, 512
# Norms of rows outside of these are brought back to about 1.
RANGE = (2.0**-64, 2.0**64)
# A column of a step may be so much smaller than its largest: its digits are there, and its squares fit.
_SMALL_COLUMN = 2.0**-WILD
# The largest entry of a product whose noise is a normal number too.
SMALL = 2.0**-960


class Beside(Protocol):
    """One step of P chains side by side; span : bits that the entries span, at most."""

    @property
    def span(self) -> float: ...  # noqa: D102

    @property
    def columns(self) -> Array:
        """(P, m) norms of the columns."""

    def times(self, y: Array, out: Array) -> None:
        """y @ A of each chain, y (P, r, m); what stays zero in ``out`` may be left as it is."""

    def back(self, x: Array) -> Array:
        """x @ A^T of each chain, x (P, r, m)."""


@dataclass(frozen=True)
class InColumns:
    """A step in blocks of columns, (P, m, n), or (P, m / n, n) diagonals one below the other."""

    parts: Sequence[Array]
    span: float

    def times(self, y: Array, out: Array) -> None:
        """See ``Beside``."""
        multiplied(y, self.parts, out=out)

    def back(self, x: Array) -> Array:
        """See ``Beside``."""
        return multiplied_back(x, self.parts)

    @property
    def columns(self) -> Array:
        """See ``Beside``."""
        return np.concatenate([np.sqrt(np.einsum("pij,pij->pj", part, part)) for part in self.parts], axis=1)


class PlainProducts:
    """P products that grow by one step after the other, the last first, with their norms.

    length : steps; shape : (P, m); floor : as for ``spectrum``; window : rows and columns of the products
    that are asked for; norms : whether vectors on the left are not. lags : (T, P) log10 norms; noise, aside :
    (T, P) what noise as large as a rounding makes of them, and what was shed, both relative; right :
    (P, columns) vectors of the last.
    """

    def __init__(
        self,
        length: int,
        shape: tuple[int, int],
        floor: float = -np.inf,
        window: tuple[slice, slice] | None = None,
        norms: bool = False,
    ) -> None:
        count, size = shape
        first = np.eye(size)[slice(None) if window is None else window[0]]
        self._columns = None if window is None else window[1]
        self._length, self._floor, self._rng = length, floor, np.random.default_rng(0)
        self._held, self._at = np.empty((0, 0, 0, 0)), 0
        self._norms, self._beside = norms, NOISE_ROWS + (_SUMS if norms else 0)
        more = len(first) + self._beside
        self._hold(np.broadcast_to(np.pad(first, ((0, self._beside), (0, 0))), (count, more, size)))
        self._try = _TRIED_NORMS if norms else _TRIED  # to shed rows, at that step
        self._shed: Array | None = None  # (P, rows, r) what takes those that are left back to all
        self._rounded = np.zeros(shape)  # of the columns, over EPS, by the last step
        self._exponents = np.zeros((length + 1, count), np.int64)
        self._row = np.ones(count)  # largest norm of a row of the last product
        self.lags = np.empty((length, count))
        self.noise, self.aside = np.zeros((2, length, count))
        self._left = self._rng.normal(size=(count, len(first)))
        self.right = np.zeros((count, self._seen(first).shape[1]))
        self._sure = np.ones(count, bool)
        self._done = 0

    @property
    def left(self) -> Array:
        """(P, rows) vectors of the last product."""
        return self._left if self._shed is None else np.einsum("pmr,pr->pm", self._shed, self._left)

    @property
    def rows(self) -> int:
        """How many are left of the last product."""
        return int(self._held.shape[2]) - self._beside

    @property
    def hopeful(self) -> bool:
        """Whether any of the products may be right to the end."""
        return bool(self._sure.any())

    def times(self, step: Beside) -> None:
        """Multiply by one more step from the right."""
        at, rows = self._at, self.rows
        new, columns = self._held[at], step.columns
        signs = self._rng.normal(size=(NOISE_ROWS, columns.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):  # of what is infinite others know more
            step.times(self._held[at - 1], new)
            rounded = self._row[:, None] * columns
            new[:, rows : rows + NOISE_ROWS] += (EPS * rounded)[:, None] * signs
            row = largest_row(new[:, :rows])
        self._sure &= even(columns)  # of others, others know more
        carried = np.zeros(len(new), np.int64)
        if not (self._sure & (row > RANGE[0]) & (row < RANGE[1])).all():
            carried = self._in_range(new)
            row = largest_row(new[:, :rows])
            rounded[~self._sure] = 0.0
        self._row, self._rounded = row, rounded * np.ldexp(1.0, -carried)[:, None]
        self._done += 1
        self._exponents[self._done] = self._exponents[self._done - 1] + carried
        self._at += 1
        if self._at == len(self._held) or self._done == self._length:
            self._measure(self._at)
            self._at %= len(self._held)
            if self._try <= self._done < self._length:
                self._shed_rows()

    def _in_range(self, new: Array) -> Array:
        """The exponents (P,) by which products are divided, in place; those that are not sure are no more."""
        product = new[:, : self.rows]
        largest = np.maximum(product.max(axis=(1, 2)), -product.min(axis=(1, 2)))  # no copy of what is large
        self._sure &= (largest > SMALL) & np.isfinite(largest)  # of others, others know more
        new[~self._sure] = 0.0
        carried = np.frexp(np.where(self._sure, largest, 0.0))[1]
        new *= np.ldexp(1.0, -carried)[:, None, None]
        return np.asarray(carried, np.int64)

    def last(self, chain: int) -> tuple[Array, Array, float]:
        """The rows that are left of a chain's last product, those of its noise, and log10 of their scale."""
        held = self._seen(self._held[self._at - 1, chain])
        noise = held[self.rows : self.rows + NOISE_ROWS]
        return held[: self.rows], noise, float(self._exponents[self._done, chain]) * LOG10_2

    def _seen(self, products: Array) -> Array:
        """The columns of them that are asked for."""
        return products if self._columns is None else products[..., self._columns]

    def _hold(self, product: Array) -> None:
        """Begin with this product and its noise, (P, r + NOISE_ROWS, m), as the last."""
        at_once = max(2, min(_LAGS, _NUMBERS // product.size))
        self._held = np.zeros((at_once, *product.shape))  # the last products, one below the other
        self._held[-1], self._at = product, 0

    def _shed_rows(self) -> None:
        """Fewer rows, orthonormal combinations of all, if they hold all that is asked for."""
        last, rows = self._held[-1], self.rows
        self._try = _LATER * self._done
        if rows < _FEWEST or not self.hopeful:
            return
        chosen = self._for_norms(last[:, :rows]) if self._norms else self._but_roundings(last[:, :rows])
        if chosen is None:
            return
        basis, kept, sums = chosen
        beside = last[:, rows:].copy()
        beside[:, NOISE_ROWS:] += sums
        self._shed = basis if self._shed is None else self._shed @ basis
        self._left = np.einsum("pmr,pm->pr", basis, self._left)
        self._row = largest_row(kept)
        self._hold(np.concatenate([kept, beside], axis=1))

    def _but_roundings(self, product: Array) -> tuple[Array, Array, float] | None:
        """A basis of rows that hold all but roundings, these, and sums of what is shed."""
        few = self.rows * 5 // 8
        rounded = np.maximum(self._rounded, np.linalg.norm(product, axis=1))
        some = np.where(rounded > 0, rounded, 1.0)[:, None]
        drawn = self._rng.normal(size=(len(product), product.shape[2], few))
        basis = np.linalg.qr((product / some) @ drawn)[0]
        kept = basis.transpose(0, 2, 1) @ product
        lost = np.linalg.norm(product - basis @ kept, axis=1)
        return None if (lost > _SHED * EPS * rounded)[self._sure].any() else (basis, kept, 0.0)

    def _for_norms(self, product: Array) -> tuple[Array, Array, Array] | None:
        """The same of those whose norms are all but those of the product."""
        if self.rows > _MANY_ROWS:
            return None
        values, vectors = np.linalg.eigh(product @ product.transpose(0, 2, 1))
        allowed = _ASIDE**2 * values[:, -1:]
        shed = int((np.maximum(values, 0.0).cumsum(axis=1) <= allowed / 2)[self._sure].sum(axis=1).min())
        few = self.rows - shed
        if few > _WORTH * self.rows or few + self._beside >= self.rows:
            return None
        turned = vectors.transpose(0, 2, 1) @ product
        aside, kept = turned[:, :shed], turned[:, shed:]
        if (np.einsum("pij,pij->p", aside, aside) > allowed[:, 0])[self._sure].any():
            return None
        return vectors[:, :, shed:], kept, self._rng.normal(size=(len(product), _SUMS, shed)) @ aside

    def _measure(self, count: int) -> None:
        """The norms of the last ``count`` products, or where they are small enough bounds on them."""
        some = slice(self._done - count, self._done)
        held = self._seen(self._held[:count])
        products, noise, sums = np.split(held, [self.rows, self.rows + NOISE_ROWS], axis=2)
        exponents = self._exponents[1:][some]
        with np.errstate(divide="ignore"):
            bound = np.log10(np.einsum("lpij,lpij->lp", held, held)) / 2 + exponents * LOG10_2
        peak = np.max(self.lags[: some.start], axis=0, initial=-np.inf)
        wanted = ~(bound < np.minimum(self._floor, peak) - TIED)
        wanted[-1] |= self._done == self._length
        if self._columns is not None:  # they may be next to nothing beside the others
            self._sure &= (np.abs(products).max(axis=(2, 3)) > SMALL).all(axis=0)
        wanted &= self._sure
        self.lags[some] = bound
        if not wanted.any():
            return
        chains = np.nonzero(wanted)[1]
        chosen = products.reshape(-1, *products.shape[2:]) if wanted.all() else products[wanted]
        found = leading_left(chosen, self._left[chains], self._rng)
        self.lags[some][wanted] = log_scale.log10(found.sigma, exponents[wanted])
        along = np.einsum("nsj,nj->ns", noise[wanted], found.right) / found.sigma[:, None]
        with np.errstate(over="ignore"):  # nothing but noise
            self.noise[some][wanted] = np.sqrt((along**2).mean(axis=1))
            size = np.sqrt(np.einsum("nsj,nsj->n", sums[wanted], sums[wanted]) / _SUMS)
            self.aside[some][wanted] = size / found.sigma
        self._left[chains], self.right[chains] = found.left, found.right  # of the longest lag

    def errors(self, entry_error: float) -> Array:
        """(T, P) of log10, estimated: what noise as large as the roundings makes of it, and what was shed."""
        return error_of_noise(self.noise, entry_error) + self._shed_errors

    @property
    def _shed_errors(self) -> Array:
        return SAFETY / math.log(10) / 2 * self.aside**2

    def sure(self, entry_error: float) -> Array:
        """(P,) whether all norms are right, to what the entries allow."""
        return self._sure & trusted(self.noise, self.errors(entry_error), self._shed_errors)


def trusted(noise: Array, errors: Array, others: Array | float = 0.0) -> Array:
    """(P,) whether all norms are right, to what the entries allow; others : errors but for that of noise."""
    usual = _USUAL * (1 + np.sqrt(np.arange(1, len(noise) + 1)))[:, None] * EPS
    return np.asarray(((errors <= GOOD) | (noise <= usual) & (others <= GOOD)).all(axis=0))


def even(columns: Array) -> Array:
    """(P,) whether of steps whose columns have these norms (P, m) none is next to nothing but for zeros."""
    smallest = columns.min(axis=1, where=columns > 0, initial=np.inf)
    return np.asarray(smallest > _SMALL_COLUMN * columns.max(axis=1))


def largest_row(products: Array) -> Array:
    """(P,) the largest norm of a row."""
    return np.asarray(np.sqrt(np.einsum("pij,pij->pi", products, products).max(axis=1)))


def error_of_noise(noise: Array, entry_error: float) -> Array:
    """Of log10, estimated: ``noise`` is what a rounding makes of a value, relative."""
    return np.asarray(SAFETY * (EPS + entry_error) / EPS / math.log(10) * noise)
