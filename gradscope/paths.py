"""The one-step Jacobians on the host in float64: the sum of their paths, and each path's own chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.path import Array, DensePath, Path, UnitPath

if TYPE_CHECKING:  # a worker process reads chains, and starts without JAX
    from gradscope.cells.base import Cell

# A row that a probe finds this much smaller than its bound may be an exact zero, rounded.
_CANCELS = 1e-13
# The one path of a cell that names none.
NAMELESS = "state"

_KEEP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Jacobians(Sequence[Array]):
    """The chain: item t is the (m, m) Jacobian of step t, the sum of its paths."""

    paths: tuple[Path, ...]
    steps: int
    size: int
    starts = (0,)  # one segment, as Segmented has them

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, t: Any) -> Any:
        if not 0 <= t < self.steps:
            raise IndexError(t)
        return self._kept[t] if self._kept else self._sum(t)

    def segment(self, i: int) -> Jacobians:
        """The chain itself."""
        return self

    @property
    def chains(self) -> dict[str, Jacobians]:
        """The full chain and each named path's own: itself again where a path is all there is."""
        found = {"full": self}
        for path in self.paths:
            if path.name != NAMELESS:
                chain = Jacobians((path.alone,), self.steps, self.width)
                found[path.name] = self if chain.size == self.size and len(self.paths) == 1 else chain
        return found

    @property
    def diagonal(self) -> Array | None:
        """(T, n) where every step of the chain is diagonal."""
        path = self.paths[0]
        if (
            len(self.paths) > 1
            or self.size > self.width
            or isinstance(path, DensePath)
            or path.matrix is not None
        ):
            return None
        return path.slope[:, 0] * (1.0 if path.link is None else path.link)

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
    cell: Cell,
    parameters: Mapping[str, Array],
    linearized: Mapping[str, Any],
    cut: Sequence[str] = (),
    before: Array | None = None,
) -> Jacobians:
    """The n x n chain dc_t/dc_(t-1), t = 2..T, of an LSTM, with h_(t-1) = o_(t-1) squash(c_(t-1)).

    linearized : what ``linearize`` returned, and what ``link`` did as ``link``; before : (n,) the link
    of the step before the first of them, with which the chain begins at t = 1.
    o is held fixed: what is left are the carousel, the forget gate, the input gate and the block
    input (and the peepholes of the first two gates).
    """
    link = np.asarray(linearized["link"], np.float64)[:-1]
    first = 1
    if before is not None:
        link, first = np.concatenate([before[None], link]), 0
    paths: list[Path] = []
    for name in _kept(linearized, cell, ("R_o", *cut)):  # the output gate writes h alone
        slope = np.asarray(linearized["paths"][name], np.float64)[first:, :1]
        matrix = _matrix(parameters, name)
        paths.append(UnitPath(name, slope, 0, matrix, link if matrix is not None else None))
    return Jacobians(tuple(paths), len(link), link.shape[1])


def _kept(linearized: Mapping[str, Any], cell: Cell, cut: Sequence[str]) -> list[str]:
    """Path names in the cell's own order (JAX sorts the keys of what it returns)."""
    return [name for name in cell.paths or linearized["paths"] if name not in cut]


def _matrix(parameters: Mapping[str, Array], path: str) -> Array | None:
    """The recurrent matrix a path goes through; a cell's own path and the peepholes have none."""
    return np.asarray(parameters[path], np.float64) if path.startswith("R") else None
