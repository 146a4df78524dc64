"""Passes of a block of vectors through a chain, and the values that each of them finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.product_svd import log_scale
from gradscope.product_svd.graded_lu import Graded
from gradscope.product_svd.jacobi_svd import decomposed
from gradscope.product_svd.operator import Operator

# Steps between two QRs, where the steps are not too ill-conditioned for it.
EVERY = 8

OVERFLOW = (
    "the steps overflow where they act on unit vectors, expected entries well inside the range of their "
    "dtype: use float64, or rescale the states"
)


# A pivot this many roundings below the largest column of its factor is noise.
NOISE = 64.0
# Below this the values of a factor span too much to be right to ten digits.
NARROW = 1e-4
# Numbers held at a time.
_CHUNK = 2**20
# Larger ratios of two entries of d than this have lost their columns' digits anyway.
_LARGEST = 500.0


@dataclass(frozen=True)
class Image:
    """What one pass made of a block: log10 (r,) values, and vectors (m, b), the first r of them."""

    log10: Array
    input: Array
    output: Array


class Passes:
    """Passes through a chain, with as many QRs as it needs.

    largest : (B,) log10 of the largest gain over any stretch of steps that the first vector of a block met;
    behind : of the last pass back, see Growth.so_far.
    """

    def __init__(self, operator: Operator) -> None:
        self.operator, self.back = operator, False
        self.every, self.done = EVERY, 0
        self.largest = np.full(operator.sequences, -np.inf)
        self.behind = [np.zeros(0)] * operator.sequences

    def sides(self, image: Image) -> tuple[Array, Array]:
        """Left and right vectors of what the last pass returned."""
        # The next pass would go back where this one went forward.
        return (image.output, image.input) if self.back else (image.input, image.output)

    def __call__(self, block: Array) -> list[Image]:
        """One pass, in the direction that the last one did not have."""
        direction = self.operator.backward if self.back else self.operator.forward
        self.back, self.done = not self.back, self.done + 1
        while True:
            triangles = [Triangle(block.shape[2], self.operator.eps) for _ in block]
            growths = [Growth() for _ in block]

            def take(
                factors: Array, triangles: list[Triangle] = triangles, growths: list[Growth] = growths
            ) -> None:
                for triangle, growth, factor in zip(triangles, growths, factors, strict=True):
                    triangle.times(factor)
                    growth.by(factor[:, 0, 0])

            image = direction(block, self.every, take)
            if self.every == 1 or all(t.narrow for t in triangles):
                break
            self.every = 1  # the chain is one of those whose steps span many decades
        if not all(t.finite for t in triangles):
            raise InputError(OVERFLOW)
        if self.back:  # so that this one was forward, where factors are those of whole steps
            self.largest = np.maximum(self.largest, [growth.largest for growth in growths])
        else:
            self.behind = [np.array(growth.so_far) for growth in growths]
        return [_image(*each) for each in zip(triangles, image, block, strict=True)]


def _image(triangle: Triangle, image: Array, block: Array) -> Image:
    with np.errstate(invalid="ignore"):  # a column may underflow
        graded = decomposed(triangle.graded())
    held = graded.mantissa > 0
    log10 = log_scale.log10(graded.mantissa[held], graded.exponent[held])
    return Image(log10, input=_rotated(block, graded.y[held]), output=_rotated(image, graded.x[held]))


def _rotated(block: Array, rotation: Array) -> Array:
    rank = len(rotation)
    return np.concatenate([block[:, :rank] @ rotation.T, block[:, rank:]], axis=1)


class Growth:
    """log10 of products of factors. largest : of any in a row; so_far : of all up to each of them."""

    def __init__(self) -> None:
        self._now, self.largest = 0.0, -np.inf
        self.so_far = [0.0]

    def by(self, factors: Array) -> None:
        """More factors, in order."""
        with np.errstate(divide="ignore", invalid="ignore"):
            for log in np.log10(np.abs(np.asarray(factors, np.float64))).tolist():
                self._now = max(self._now, 0.0) + log
                self.largest = max(self.largest, self._now)
                self.so_far.append(self.so_far[-1] + log)


class Triangle:
    """R_G ... R_1 = diag(d) N, with N unit upper triangular and d as logarithm.

    The diagonal of a product of triangles is the product of the diagonals, and what is left,
    N = K_G ... K_1 with K_g = D_g^-1 R_g D_(g-1), is bounded as d descends (this is the UDT form of
    Tomas, Chang, Scalettar, Bai 2012 for factors that are triangular already).

    rank : how many leading columns no factor has reduced to its own rounding; the rest is dropped.
    narrow : no factor's pivots span too many decades; finite : no factor holds NaN or infinity.
    """

    def __init__(self, width: int, eps: float) -> None:
        self.rank, self.eps = width, eps
        self.narrow = self.finite = True
        self.n = np.eye(width)
        self.sign = np.ones(width)
        self.exponent = np.zeros(width, np.int64)
        self.log2 = np.zeros(width, np.longdouble)  # of the mantissas: small, so that it stays exact

    def times(self, factors: Array) -> None:
        """Multiply by factors (g, b, b) from the left, the first ones first."""
        size = max(1, _CHUNK // factors.shape[1] ** 2)
        for at in range(0, len(factors), size):
            self._times(np.asarray(factors[at : at + size], np.float64))

    def _times(self, r: Array) -> None:
        if not np.isfinite(r).all():
            self.narrow = self.finite = False
            self._keep(0)
        r = self._without_noise(r)
        if self.rank == 0:
            return
        pivots = np.diagonal(r, axis1=1, axis2=2)
        mantissa, exponent = np.frexp(np.abs(pivots))
        after_exponent = self.exponent + np.cumsum(exponent, axis=0)
        after_log2 = self.log2 + np.cumsum(np.log2(mantissa.astype(np.longdouble)), axis=0)
        log2 = (after_exponent + after_log2).astype(np.float64)
        before = np.vstack([(self.exponent + self.log2).astype(np.float64), log2[:-1]])
        signs = self.sign * np.cumprod(np.sign(pivots), axis=0)
        turned = np.vstack([self.sign, signs[:-1]])
        ratio = (
            turned[:, None, :]
            * turned[:, :, None]
            * np.exp2(np.clip(before[:, None, :] - before[:, :, None], -_LARGEST, _LARGEST))
        )
        self.n = _product(np.triu(r / pivots[:, :, None] * ratio)) @ self.n
        self.exponent, self.log2, self.sign = after_exponent[-1], after_log2[-1], signs[-1]

    def _without_noise(self, r: Array) -> Array:
        """The factors on the columns that survive them."""
        r = r[:, : self.rank, : self.rank]
        if not self.rank:
            return r
        pivots = np.abs(np.diagonal(r, axis1=1, axis2=2))
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = pivots / np.abs(r).max(axis=(1, 2))[:, None]  # NaN where a factor is zero
        self.narrow &= bool((relative > NARROW).all())
        lost = ~(relative > NOISE * self.eps).all(axis=0)
        self._keep(int(lost.argmax()) if lost.any() else self.rank)
        return r[:, : self.rank, : self.rank]

    def _keep(self, rank: int) -> None:
        """Leading columns of a triangle depend on no others."""
        self.rank = rank
        self.n, self.sign = self.n[:rank, :rank], self.sign[:rank]
        self.exponent, self.log2 = self.exponent[:rank], self.log2[:rank]

    def graded(self) -> Graded:
        """The product as X^T diag(d) Y with X the identity."""
        whole = np.floor(self.log2)
        mantissa = self.sign * np.exp2((self.log2 - whole).astype(np.float64))
        return Graded(
            np.eye(self.rank, order="F"), mantissa, self.exponent + whole.astype(np.int64), self.n.copy()
        )


def _product(factors: Array) -> Array:
    """K_g ... K_1 by pairs."""
    while len(factors) > 1:
        if len(factors) % 2:
            factors = np.concatenate([factors[:-2], factors[-1:] @ factors[-2:-1]])
        else:
            factors = factors[1::2] @ factors[::2]
    return np.asarray(factors[0])
