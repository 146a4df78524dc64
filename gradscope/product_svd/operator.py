"""A product of matrices as what it does to blocks of vectors: the protocol, a block of it, dense steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


class DenseOperator:
    """A chain of (m, m) steps as an Operator."""

    sequences = 1
    eps = float(np.finfo(np.float64).eps)

    def __init__(self, source: Steps, size: int, steps: int | None = None) -> None:
        self.source, self.size = source, size
        self.columns = size
        self.steps = len(source) if steps is None else steps

    def forward(self, block: Array, every: int, take: Callable[[Array], None]) -> Array:
        """P block = Q R_G ... R_1, see operator.Operator."""
        first = len(self.source) - self.steps
        return self._through((self.source[first + t] for t in range(self.steps)), block, every, take)

    def backward(self, block: Array, every: int, take: Callable[[Array], None]) -> Array:
        """The same for P^T."""
        last = len(self.source) - 1
        return self._through((self.source[last - t].T for t in range(self.steps)), block, every, take)

    def tail(self, lag: int) -> DenseOperator:
        """The last ``lag`` steps alone."""
        return DenseOperator(self.source, self.size, lag)

    def _through(
        self, steps: Iterable[Array], block: Array, every: int, take: Callable[[Array], None]
    ) -> Array:
        q = block[0]
        with np.errstate(over="ignore", invalid="ignore"):
            for done, a in enumerate(steps, 1):
                q = a @ q
                if done % every == 0 or done == self.steps:
                    q, r = np.linalg.qr(q)
                    take(r[None, None])
        return np.asarray(q[None])


def tame(source: Steps) -> bool:
    """Whether float64 holds every step times a unit vector."""
    return all(np.abs(weights).max(initial=0) < LARGEST for weights in source.weights)
