"""A product of matrices as what it does to blocks of vectors: the protocol, a block of it, dense steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.steps import Steps

# Powers of two up to which the entries of a step can be multiplied as they are.
LARGEST = 900


Take = Callable[[Array], None]


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

    def last(self, count: int) -> Array | None:
        """So many of the last steps, (B, count, m, m), if P is a product of steps that are not at hand."""


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

    def last(self, count: int) -> None:
        """None: P is no product of blocks."""

    def _through(
        self, run: Callable[..., Array], block: Array, every: int, take: Take, enter: slice, leave: slice
    ) -> Array:
        start = np.zeros((len(block), self.whole.columns, block.shape[2]))
        start[:, enter] = block
        q, r = np.linalg.qr(run(start, every, take)[:, leave])
        take(r[:, None])
        return np.asarray(q)


class DenseOperator:
    """A chain of (m, m) steps as an Operator."""

    sequences = 1
    eps = float(np.finfo(np.float64).eps)

    def __init__(self, source: Steps, size: int, steps: int | None = None) -> None:
        self.source, self.size = source, size
        self.columns = size
        self.steps = len(source) if steps is None else steps

    def forward(self, block: Array, every: int, take: Take) -> Array:
        """P block = Q R_G ... R_1, see operator.Operator."""
        q, first = block[0], len(self.source) - self.steps
        with np.errstate(over="ignore", invalid="ignore"):
            for done in range(1, self.steps + 1):
                q = self.source[first + done - 1] @ q
                q = self._factored(q, done, every, take)
        return np.asarray(q[None])

    def backward(self, block: Array, every: int, take: Take) -> Array:
        """The same for P^T.

        Of rows that differ much in size, A = D B, A^T = B^T D is two steps, with a QR between them.
        """
        q, last = block[0], len(self.source) - 1
        with np.errstate(over="ignore", invalid="ignore"):
            for done in range(1, self.steps + 1):
                step, weights = self.source[last + 1 - done], self.source.weights[last + 1 - done]
                if weights.any():
                    q = _weighted(q, weights, take)
                    step = step * np.ldexp(1.0, -weights)[:, None]
                q = self._factored(step.T @ q, done, every, take)
        return np.asarray(q[None])

    def tail(self, lag: int) -> DenseOperator:
        """The last ``lag`` steps alone."""
        return DenseOperator(self.source, self.size, lag)

    def last(self, count: int) -> None:
        """None: of steps that are small enough all values are found."""

    def _factored(self, q: Array, done: int, every: int, take: Take) -> Array:
        """Orthonormal again where it is time for that."""
        if done % every and done != self.steps:
            return q
        q, r = np.linalg.qr(q)
        take(r[None, None])
        return np.asarray(q)


def _weighted(q: Array, weights: Array, take: Take) -> Array:
    """Q of diag(2**weights) q = Q R.

    Large rows first: only so is a Householder QR right to every row's own size (Cox, Higham, Stability of
    Householder QR factorization for weighted least squares problems, 1998). Otherwise a large row that comes
    later leaves of the small ones what rounding leaves beside it.
    """
    order, largest = np.argsort(-weights, kind="stable"), int(weights.max())
    rows = q * np.ldexp(1.0, weights - largest)[:, None]
    found = np.empty_like(q)
    found[order], r = np.linalg.qr(rows[order])
    take(np.ldexp(r, largest)[None, None])
    return found


def tame(source: Steps) -> bool:
    """Whether float64 holds every step times a unit vector."""
    return all(np.abs(weights).max(initial=0) < LARGEST for weights in source.weights)
