"""Passes of a block of vectors through a chain, and the values that each of them finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.product_svd.jacobi_svd import decomposed
from gradscope.product_svd.norm_by_lag import LOG10_2
from gradscope.product_svd.triangle import Triangle

Take = Callable[[Array], None]

# Steps between two QRs, where the steps are not too ill-conditioned for it.
EVERY = 8

OVERFLOW = (
    "the steps overflow where they act on unit vectors, expected entries well inside the range of their "
    "dtype: use float64, or rescale the states"
)


class Operator(Protocol):
    """The product P = A_T ... A_1 of each of B sequences, (r, c).

    size : min(r, c); columns : c; steps : T; sequences : B; eps : rounding unit of the products.
    """

    size: int
    columns: int
    steps: int
    sequences: int
    eps: float

    def forward(self, block: Array, every: int, take: Take) -> Array:
        """P block = Q R_G ... R_1 for an orthonormal ``block`` (B, c, b); returns Q (B, r, b).

        every : steps between two QRs; take : called with triangular factors (B, g, b, b), in order.
        """

    def backward(self, block: Array, every: int, take: Take) -> Array:
        """The same for P^T."""

    def tail(self, lag: int) -> Operator:
        """The product of the last ``lag`` steps alone."""


class Window:
    """The block ``rows``, ``columns`` of an operator's square product, as an Operator."""

    def __init__(self, whole: Operator, window: tuple[slice, slice]) -> None:
        self.whole, self.window = whole, window
        rows, self.columns = (len(range(whole.columns)[part]) for part in window)
        self.size = min(rows, self.columns)
        self.steps, self.sequences, self.eps = whole.steps, whole.sequences, whole.eps

    def forward(self, block: Array, every: int, take: Take) -> Array:
        """P block = Q R_G ... R_1, see Operator."""
        return self._through(self.whole.forward, block, every, take, *self.window[::-1])

    def backward(self, block: Array, every: int, take: Take) -> Array:
        """The same for P^T."""
        return self._through(self.whole.backward, block, every, take, *self.window)

    def tail(self, lag: int) -> Window:
        """The last ``lag`` steps alone."""
        return Window(self.whole.tail(lag), self.window)

    def _through(
        self, run: Callable[..., Array], block: Array, every: int, take: Take, enter: slice, leave: slice
    ) -> Array:
        start = np.zeros((len(block), self.whole.columns, block.shape[2]))
        start[:, enter] = block
        q, r = np.linalg.qr(run(start, every, take)[:, leave])
        take(r[:, None])
        return np.asarray(q)


@dataclass(frozen=True)
class Image:
    """What one pass made of a block: log10 (r,) values, and vectors (m, b), the first r of them."""

    log10: Array
    input: Array
    output: Array


class Passes:
    """Passes through a chain, with as many QRs as it needs."""

    def __init__(self, operator: Operator) -> None:
        self.operator, self.back = operator, False
        self.every, self.done = EVERY, 0

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

            def take(factors: Array, triangles: list[Triangle] = triangles) -> None:
                for triangle, factor in zip(triangles, factors, strict=True):
                    triangle.times(factor)

            image = direction(block, self.every, take)
            if self.every == 1 or all(t.narrow for t in triangles):
                break
            self.every = 1  # the chain is one of those whose steps span many decades
        if not all(t.finite for t in triangles):
            raise InputError(OVERFLOW)
        return [_image(*each) for each in zip(triangles, image, block, strict=True)]


def _image(triangle: Triangle, image: Array, block: Array) -> Image:
    with np.errstate(invalid="ignore"):  # a column may underflow
        graded = decomposed(triangle.graded())
    held = graded.mantissa > 0
    mantissa, exponent = graded.mantissa[held].astype(np.longdouble), graded.exponent[held]
    log10 = np.log10(mantissa) + exponent * LOG10_2
    return Image(log10, input=_rotated(block, graded.y[held]), output=_rotated(image, graded.x[held]))


def _rotated(block: Array, rotation: Array) -> Array:
    rank = len(rotation)
    return np.concatenate([block[:, :rank] @ rotation.T, block[:, rank:]], axis=1)
