"""One path of the one-step Jacobians on the host, in float64: as slopes of units, or dense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class UnitPath:
    """A path of the fast form: step t is diag(slope_t) M diag(link_t) for each component it writes.

    slope : (T, components, n); matrix : M (n, n), None is the identity; link : (T, n), None is ones;
    source : index of the component that is read.
    """

    name: str
    slope: Array
    source: int
    matrix: Array | None
    link: Array | None = None

    @property
    def alone(self) -> UnitPath:
        """The path within the component that it reads: what its own chain multiplies."""
        return replace(self, slope=self.slope[:, self.source : self.source + 1], source=0)

    @cached_property
    def writes(self) -> tuple[int, ...]:
        """Components that the path changes at any step: an output gate leaves c alone."""
        return tuple(np.flatnonzero(self.slope.any(axis=(0, 2))).tolist())

    def _factor(self, t: int, component: int) -> Array:
        matrix = np.eye(self.slope.shape[-1]) if self.matrix is None else self.matrix
        left = self.slope[t, component][:, None] * matrix
        return np.asarray(left if self.link is None else left * self.link[t])

    def add_to(self, columns: Array, t: int) -> None:
        """Add step t to the ``columns`` (m, n) of the component that is read."""
        n = self.slope.shape[-1]
        for component in self.writes:
            columns[component * n : (component + 1) * n] += self._factor(t, component)

    def add_diagonals(self, diagonals: Array, t: int) -> None:
        """The same for a path without a matrix: ``diagonals`` is (components, n)."""
        diagonals += self.slope[t] if self.link is None else self.slope[t] * self.link[t]

    def probe(self, rows: Array, columns: Array, sizes: Array, probe: Array) -> None:
        """Add J_t w to ``rows`` and J_t^T w to ``columns``, and bounds on the rows of J_t to ``sizes``.

        All are (T, components, n); w is ``probe``, (components, n).
        """
        link = np.ones((len(self.slope), 1)) if self.link is None else self.link
        matrix = np.eye(self.slope.shape[-1]) if self.matrix is None else self.matrix
        rows += self.slope * (link * probe[self.source] @ matrix.T)[:, None]
        columns[:, self.source] += ((self.slope * probe).sum(axis=1) @ matrix) * link
        largest = np.abs(matrix).max(axis=1) * np.abs(link).max(axis=1, keepdims=True)
        sizes += np.abs(self.slope) * largest[:, None]

    def bilinear(self, backward: Array, forward: Array) -> Array:
        """b_t^T J_t a_t for all t: ``backward`` and ``forward`` are (T, m), the result (T,)."""
        steps, components, n = self.slope.shape
        written = (backward.reshape(steps, components, n) * self.slope).sum(1)
        read = forward.reshape(steps, components, n)[:, self.source]
        read = read if self.link is None else read * self.link
        return np.asarray((written * (read if self.matrix is None else read @ self.matrix.T)).sum(1))


@dataclass(frozen=True)
class DensePath:
    """A path of a cell without a per-unit form: its Jacobians as they are, (T, m, m)."""

    name: str
    stack: Array

    source = 0

    def add_to(self, columns: Array, t: int) -> None:
        """Add this path's Jacobian of step t to ``columns`` (m, m)."""
        columns += self.stack[t]

    @property
    def alone(self) -> DensePath:
        """The path itself: its chain is over the whole state."""
        return self

    def bilinear(self, backward: Array, forward: Array) -> Array:
        """b_t^T J_t a_t for all t: ``backward`` and ``forward`` are (T, m), the result (T,)."""
        return np.asarray(np.einsum("ti,tij,tj->t", backward, self.stack, forward))


Path = UnitPath | DensePath
