"""The one-step Jacobians on the host in float64: per path, and their sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradscope.cells.base import Cell
from gradscope.jacobians import NAMELESS

Array = np.ndarray[Any, np.dtype[np.float64]]

# A row that a probe finds this much smaller than its bound may be an exact zero, rounded.
_CANCELS = 1e-13
_KEEP_BYTES = 32 * 2**20


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
    def diagonal(self) -> Array | None:
        """(T, n) factors of the path's own chain where every step of it is diagonal."""
        if self.matrix is not None:
            return None
        return self.slope[:, self.source] * (1.0 if self.link is None else self.link)

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

    def block(self, t: int) -> Array:
        """The step within the component that is read, (n, n): what the path's chain multiplies."""
        return self._factor(t, self.source)

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
    diagonal: None = None

    source = 0

    def add_to(self, columns: Array, t: int) -> None:
        """Add this path's Jacobian of step t to ``columns`` (m, m)."""
        columns += self.stack[t]

    def block(self, t: int) -> Array:
        """The step itself: the chain of such a path is over the whole state."""
        return np.asarray(self.stack[t])

    def bilinear(self, backward: Array, forward: Array) -> Array:
        """b_t^T J_t a_t for all t: ``backward`` and ``forward`` are (T, m), the result (T,)."""
        return np.asarray(np.einsum("ti,tij,tj->t", backward, self.stack, forward))


Path = UnitPath | DensePath


@dataclass(frozen=True)
class Jacobians(Sequence[Array]):
    """The chain: item t is the (m, m) Jacobian of step t, the sum of its paths."""

    paths: tuple[Path, ...]
    steps: int
    size: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, t: Any) -> Any:
        if not 0 <= t < self.steps:
            raise IndexError(t)
        return self._kept[t] if self._kept else self._sum(t)

    @property
    def chains(self) -> dict[str, Jacobians | PathChain]:
        """The full chain and each named path's own: itself again where a path is all there is."""
        found: dict[str, Jacobians | PathChain] = {"full": self}
        for path in self.paths:
            if path.name != NAMELESS:
                alone = len(self.paths) == 1 and len(path.block(0)) == self.size
                found[path.name] = self if alone else PathChain(path, self.steps)
        return found

    @cached_property
    def _kept(self) -> list[Array]:
        """All steps at once, if they are small: they are gone through several times."""
        if 8 * self.steps * self.size**2 > _KEEP_BYTES:
            return []
        return [self._sum(t) for t in range(self.steps)]

    def parts(self, t: int) -> list[Array]:
        """Step t as blocks of columns, one per component: (m, n), or (m / n, n) where all is diagonal.

        Of an LSTM's 2n x 2n Jacobian the half that reads c is two diagonals.
        """
        parts = []
        for source in range(self.size // self.width):
            paths = [path for path in self.paths if path.source == source]
            diagonal = all(isinstance(path, UnitPath) and path.matrix is None for path in paths)
            part = np.zeros((self.size // self.width if diagonal else self.size, self.width))
            for path in paths:
                if diagonal and isinstance(path, UnitPath):
                    path.add_diagonals(part, t)
                else:
                    path.add_to(part, t)
            parts.append(part)
        return parts

    def survey(self) -> tuple[Array, bool]:
        """Bounds on the size of every row, (T, m), and whether certainly none is zero, nor any column.

        Without forming a step: where J w and J^T w of a random w have no zero, neither has J.
        """
        units = [path for path in self.paths if isinstance(path, UnitPath)]
        shape = (self.steps, self.size // self.width, self.width)
        rows, columns, sizes = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        if len(units) < len(self.paths):
            return sizes.reshape(self.steps, -1), False
        for path in units:
            path.probe(rows, columns, sizes, _probe(shape[1:]))
        certain = bool((np.abs(rows) > _CANCELS * sizes).all() and columns.all())
        return sizes.reshape(self.steps, -1), certain

    @property
    def width(self) -> int:
        """Columns of a part: the hidden size, or the whole state for a cell without a per-unit form."""
        path = self.paths[0]
        return path.slope.shape[-1] if isinstance(path, UnitPath) else self.size

    def _sum(self, t: int) -> Array:
        out = np.zeros((self.size, self.size))
        for path in self.paths:
            path.add_to(out[:, path.source * self.width :][:, : self.width], t)
        return out


def _probe(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).normal(size=shape)


@dataclass(frozen=True)
class PathChain(Sequence[Array]):
    """The chain of one path alone."""

    path: Path
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, t: Any) -> Any:
        if not 0 <= t < self.steps:
            raise IndexError(t)
        return self.path.block(t)

    def __iter__(self) -> Iterator[Array]:
        return map(self.path.block, range(self.steps))

    @property
    def diagonal(self) -> Array | None:
        """(T, n) where every step of the chain is diagonal."""
        return self.path.diagonal


def split(
    cell: Cell, parameters: Mapping[str, Array], linearized: Mapping[str, Any], cut: Sequence[str] = ()
) -> Jacobians:
    """The full-state chain (state s_(t-1) to s_t) from what ``linearize`` returned, without ``cut``."""
    steps, size = len(linearized["states"]) - 1, linearized["states"].shape[1]
    paths: list[Path] = []
    for name in _kept(linearized, cell, cut):
        array = np.asarray(linearized["paths"][name], np.float64)
        source = cell.source(name)
        if source is None:
            paths.append(DensePath(name, array))
        else:
            paths.append(UnitPath(name, array, source, _matrix(parameters, name)))
    return Jacobians(tuple(paths), steps, size)


def cell_view(
    cell: Cell, parameters: Mapping[str, Array], linearized: Mapping[str, Any], cut: Sequence[str] = ()
) -> Jacobians:
    """The n x n chain dc_t/dc_(t-1), t = 2..T, of an LSTM, with h_(t-1) = o_(t-1) squash(c_(t-1)).

    linearized : what ``linearize`` returned, and what ``link`` did as ``link``.
    o is held fixed: what is left are the carousel, the forget gate, the input gate and the block
    input (and the peepholes of the first two gates).
    """
    link = np.asarray(linearized["link"], np.float64)[:-1]
    paths: list[Path] = []
    for name in _kept(linearized, cell, ("R_o", *cut)):  # the output gate writes h alone
        slope = np.asarray(linearized["paths"][name], np.float64)[1:, :1]
        matrix = _matrix(parameters, name)
        paths.append(UnitPath(name, slope, 0, matrix, link if matrix is not None else None))
    return Jacobians(tuple(paths), len(link), link.shape[1])


def _kept(linearized: Mapping[str, Any], cell: Cell, cut: Sequence[str]) -> list[str]:
    """Path names in the cell's own order (JAX sorts the keys of what it returns)."""
    return [name for name in cell.paths or linearized["paths"] if name not in cut]


def _matrix(parameters: Mapping[str, Array], path: str) -> Array | None:
    """The recurrent matrix a path goes through; a cell's own path and the peepholes have none."""
    return np.asarray(parameters[path], np.float64) if path.startswith("R") else None
