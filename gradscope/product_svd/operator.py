"""A stack of dense Jacobians as what it does to blocks of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.steps import Steps

# Powers of two up to which the entries of a step can be multiplied as they are.
LARGEST = 900


class Stack:
    """A chain of (m, m) steps as an Operator (see passes)."""

    sequences = 1
    eps = float(np.finfo(np.float64).eps)

    def __init__(self, source: Steps, size: int, steps: int | None = None) -> None:
        self.source, self.size = source, size
        self.columns = size
        self.steps = len(source) if steps is None else steps

    def forward(self, block: Array, every: int, take: Callable[[Array], None]) -> Array:
        """P block = Q R_G ... R_1, see passes.Operator."""
        first = len(self.source) - self.steps
        return self._through((self.source[first + t] for t in range(self.steps)), block, every, take)

    def backward(self, block: Array, every: int, take: Callable[[Array], None]) -> Array:
        """The same for P^T."""
        last = len(self.source) - 1
        return self._through((self.source[last - t].T for t in range(self.steps)), block, every, take)

    def tail(self, lag: int) -> Stack:
        """The last ``lag`` steps alone."""
        return Stack(self.source, self.size, lag)

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
