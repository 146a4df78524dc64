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

    size : min(r, c); columns : c; steps : T; sequences : B; eps : rounding unit of the products; beside : how
    many columns ``tails`` takes at once.
    """

    size: int
    columns: int
    steps: int
    sequences: int
    eps: float
    beside: int

    def forward(self, block: Array, every: int, take: Take) -> Array:
        """P block = Q R_G ... R_1 for an orthonormal ``block`` (B, c, b); returns Q (B, r, b).

        every : steps between two QRs; take : called with triangular factors (B, g, b, b), in order.
        """

    def backward(self, block: Array, every: int, take: Take) -> Array:
        """The same for P^T."""

    def tails(self, block: Array, lags: Array, back: bool) -> tuple[Array, Array]:
        """Columns (B, ., n) each through as many of the last steps as ``lags`` (n,) says, by P^T if ``back``.

        Returns columns, and exponents (B, n) of the powers of two that they are to be multiplied by.
        """

    def images(self, block: Array, lags: Array) -> tuple[Array, Array]:
        """A block (B, r, n) through the last steps by P^T, for all ``lags`` (L,), which ascend.

        Returns (B, L, c, n) and exponents (B, L, n) as ``tails`` does.
        """


class Window:
    """The block ``rows``, ``columns`` of an operator's square product, as an Operator."""

    def __init__(self, whole: Operator, window: tuple[slice, slice]) -> None:
        self.whole, self.window = whole, window
        rows, self.columns = (len(range(whole.columns)[part]) for part in window)
        self.size = min(rows, self.columns)
        self.steps, self.sequences, self.eps = whole.steps, whole.sequences, whole.eps
        self.beside = whole.beside

    def forward(self, block: Array, every: int, take: Take) -> Array:
        """P block = Q R_G ... R_1, see Operator."""
        return self._through(self.whole.forward, block, every, take, *self.window[::-1])

    def backward(self, block: Array, every: int, take: Take) -> Array:
        """The same for P^T."""
        return self._through(self.whole.backward, block, every, take, *self.window)

    def tails(self, block: Array, lags: Array, back: bool) -> tuple[Array, Array]:
        """See Operator."""
        enter, leave = self.window if back else self.window[::-1]
        found, exponents = self.whole.tails(self._embedded(block, enter), lags, back)
        return found[:, leave], exponents

    def images(self, block: Array, lags: Array) -> tuple[Array, Array]:
        """See Operator."""
        found, exponents = self.whole.images(self._embedded(block, self.window[0]), lags)
        return found[:, :, self.window[1]], exponents

    def _embedded(self, block: Array, enter: slice) -> Array:
        start = np.zeros((len(block), self.whole.columns, block.shape[2]))
        start[:, enter] = block
        return start

    def _through(
        self, run: Callable[..., Array], block: Array, every: int, take: Take, enter: slice, leave: slice
    ) -> Array:
        q, r = np.linalg.qr(run(self._embedded(block, enter), every, take)[:, leave])
        take(r[:, None])
        return np.asarray(q)


class DenseOperator:
    """A chain of (m, m) steps as an Operator."""

    sequences, beside = 1, 48
    eps = float(np.finfo(np.float64).eps)

    def __init__(self, source: Steps, size: int) -> None:
        self.source, self.size = source, size
        self.columns, self.steps = size, len(source)

    def forward(self, block: Array, every: int, take: Take) -> Array:
        """P block = Q R_G ... R_1, see operator.Operator."""
        q = block[0]
        with np.errstate(over="ignore", invalid="ignore"):
            for done in range(1, self.steps + 1):
                q = self.source[done - 1] @ q
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

    def tails(self, block: Array, lags: Array, back: bool) -> tuple[Array, Array]:
        """See Operator."""
        q, exponents = block[0].copy(), np.zeros(len(lags), np.int64)
        steps = range(self.steps - int(lags.max()), self.steps)
        for t in reversed(steps) if back else steps:
            some = t >= self.steps - lags
            step = self.source[t].T if back else self.source[t]
            q[:, some], carried = _scaled(step @ q[:, some])
            exponents[some] += carried
        return q[None], exponents[None]

    def images(self, block: Array, lags: Array) -> tuple[Array, Array]:
        """See Operator."""
        q, exponents = block[0], np.zeros(block.shape[2], np.int64)
        found = []
        for k in range(1, int(lags.max()) + 1):
            q, carried = _scaled(self.source[self.steps - k].T @ q)
            exponents = exponents + carried
            if k in lags:
                found.append((q, exponents))
        return np.stack([q for q, _ in found])[None], np.stack([e for _, e in found])[None]

    def _factored(self, q: Array, done: int, every: int, take: Take) -> Array:
        """Orthonormal again where it is time for that."""
        if done % every and done != self.steps:
            return q
        q, r = np.linalg.qr(q)
        take(r[None, None])
        return np.asarray(q)


def _scaled(q: Array) -> tuple[Array, Array]:
    """Columns with a largest entry of about 1, and the exponents of what they were divided by."""
    carried = np.frexp(np.abs(q).max(axis=0))[1]
    return np.ldexp(q, -carried), carried.astype(np.int64)


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
