"""The one-step Jacobians on the host in float64: the sum of their paths, and each path's own chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.notation import NAMELESS, is_recurrent
from gradscope.compiled_svd.step_arrays import StepArrays
from gradscope.custom_types import Array
from gradscope.linearize.array_form import layer_arrays
from gradscope.linearize.jacobian_chain import JacobianChain, nonzero, random_row, sums_but_one
from gradscope.linearize.paths import DensePath, Path, UnitPath, most_operations
from gradscope.product_svd.ball_product import exact_numbers
from gradscope.product_svd.extended_range_array import Wide
from gradscope.product_svd.plain_product import InColumns
from gradscope.product_svd.steps import span

# Bytes of steps without each path that are formed at once.
_FORMED = 2**21
# Roundings that two slopes of one ratio differ by at most.
_RATIO = 64


@dataclass(frozen=True)
class CellChain(JacobianChain):
    """The chain of one cell, whose steps are the sums of their paths."""

    paths: tuple[Path, ...]
    steps: int
    size: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of the paths."""
        return tuple(path.name for path in self.paths)

    @property
    def chains(self) -> dict[str, CellChain]:
        """The full chain and each named path's own, within the component that it reads."""
        found = {"full": self}
        for path in self.paths:
            if path.name != NAMELESS:
                chain = CellChain((path.alone,), self.steps, path.alone.width)
                found[path.name] = self if chain.size == self.size and len(self.paths) == 1 else chain
        return found

    def without(self, path: str) -> CellChain:
        """The chain of the other paths."""
        return CellChain(tuple(one for one in self.paths if one.name != path), self.steps, self.size)

    @property
    def diagonal(self) -> Array | None:
        """(T, n) where every step of the chain is diagonal."""
        return self.paths[0].diagonal if len(self.paths) == 1 else None

    def parts(self, t: int) -> list[Array]:
        """Step t as blocks of columns, one per component: (m, n), or (m / n, n) where all is diagonal.

        Of an LSTM's 2n x 2n Jacobian the half that reads c is two diagonals.
        """
        return self._kept_parts[t] if self._kept_parts else self._parts(t)

    @cached_property
    def _kept_parts(self) -> list[list[Array]]:
        return [self._parts(t) for t in range(self.steps)] if self._small else []

    def _parts(self, t: int) -> list[Array]:
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

    def terms(self, t: int) -> list[Array]:
        """Step t by path, (m, m) each."""
        found = np.zeros((len(self.paths), self.size, self.size))
        for term, path in zip(found, self.paths, strict=True):
            path.add_to(term[:, self._columns(path)], t)
        return [*found]

    def beside(self) -> Iterator[InColumns]:
        """The steps without each path, the last first, some of them formed at once."""
        at_once = max(1, _FORMED // (8 * len(self.names) * self.size**2))
        certain = self.survey()[1]
        for high in range(self.steps, 0, -at_once):
            parts = self._but_one(max(0, high - at_once), high)
            spans = self.span if certain else max(span(np.abs(part)) for part in parts)
            for t in reversed(range(len(parts[0]))):
                yield InColumns([part[t] for part in parts], spans)

    def _but_one(self, low: int, high: int) -> list[Array]:
        """Some steps without each path in the parts of ``parts``, (L, P, ..)."""
        parts = []
        for source in range(self.size // self.width):
            units = [path for path in self._units if path.source == source and path.matrix is None]
            others = [path for path in self.paths if path.source == source and path not in units]
            rows = self.size if others else self.size // self.width
            each = np.zeros((len(self.paths), high - low, rows, self.width))
            for own, path in zip(each, self.paths, strict=True):
                if path.source != source:
                    continue
                if isinstance(path, UnitPath) and not others:
                    own += path.diagonals(low, high)
                else:
                    own += path.steps(low, high)
            parts.append(sums_but_one(each))
        return parts

    @cached_property
    def beyond(self) -> bool:  # type: ignore[override]
        """Whether float64 takes slopes of any path as 0 that are not."""
        return any(path.beyond for path in self.paths)

    def wide(self, t: int) -> Wide:
        """Step t, (m, m), added up with an exponent for every entry."""
        found = Wide.zeros(self.size, self.size)
        for _, *block, term in self.wide_terms(t):
            found.put(tuple(block), found[tuple(block)].plus(term))
        return found

    @cached_property
    def operations(self) -> float:  # type: ignore[override]
        """How many it takes to have the slopes of all paths with more digits."""
        return most_operations(self.paths)

    def balls(self, t: int, bits: int) -> Array:
        """Step t, (m, m), added up from balls."""
        found = exact_numbers(np.zeros((self.size, self.size)))
        for path in self.paths:
            found[:, self._columns(path)] += path.balls(t, bits)
        return found

    def wide_terms(self, t: int) -> Iterator[tuple[str, slice, slice, Wide]]:
        """Each path by its name: all rows, the columns of the component that it reads, and its part there."""
        for path in self.paths:
            yield path.name, slice(None), self._columns(path), path.wide(t)

    def survey(self) -> tuple[Array, bool]:
        """By slopes and matrices; nothing is certain of a dense path, or of slopes below float64."""
        if self.beyond or not self.in_units:
            return np.zeros((self.steps, self.size)), False
        probe = random_row(self.size)
        return self.sizes, nonzero(self.push(probe), self.sizes, self.pull(probe))

    @cached_property  # asked for at every step
    def span(self) -> float:
        """Of slopes and links, in bits; the entries of a recurrent matrix are not that far apart."""
        if self.beyond:
            return max(path.bits for path in self.paths)
        links = [span(np.abs(path.link)) for path in self._units if path.link is not None]
        return span(*(np.abs(path.slope) for path in self._units)) + max(links, default=0.0)

    @cached_property
    def rank(self) -> int:
        """At most: units whose two components have slopes in one ratio (no output gate) count once.

        Slopes are right to a few roundings each, so that a gate that is all but 1 is none of these.
        """
        if self.beyond or not self.in_units or self.size != 2 * self.width:
            return self.size
        slopes = np.array([path.slope for path in self._units])  # (P, T, 2, n)
        narrow = np.array_equal(slopes, slopes.astype(np.float32))
        same = _RATIO * np.finfo(np.float32 if narrow else np.float64).eps
        first, second = slopes[:, :, 0], slopes[:, :, 1]
        at = np.abs(first).argmax(axis=0)[None]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.take_along_axis(second, at, 0) / np.take_along_axis(first, at, 0)
            alike = np.abs(second - ratio * first) <= same * np.abs(second)
        return self.size - int(alike.all(axis=0).sum(axis=1).max())

    @property
    def zero_steps(self) -> Array:
        """Of the forget gate's path the first is, where c starts at zero."""
        sure = self.in_units and not self.beyond
        return np.flatnonzero(~self.sizes.any(axis=1)) if sure else super().zero_steps

    def after(self, first: int) -> CellChain:
        """The steps from this one on."""
        return CellChain(tuple(path.after(first) for path in self.paths), self.steps - first, self.size)

    @cached_property
    def step_arrays(self) -> StepArrays | None:
        """The steps as a compiled program takes them; None of dense paths beside others, or below float64."""
        if self.beyond or self.rank < self.size:
            return None
        found = layer_arrays(self.paths, self.size // self.width)
        return None if found is None else StepArrays((found,))

    @property
    def in_units(self) -> bool:
        """Whether no path is dense."""
        return len(self._units) == len(self.paths)

    @cached_property
    def _units(self) -> list[UnitPath]:
        return [path for path in self.paths if isinstance(path, UnitPath)]

    def push(self, vectors: Array) -> Array:
        """J_t a for all t, (T, m), of a (T, m) or (1, m)."""
        return np.asarray(sum(path.push(vectors[:, self._columns(path)]) for path in self.paths))

    def pull(self, vectors: Array) -> Array:
        """J_t^T b for all t, (T, m), of b (T, m) or (1, m), where no path is dense."""
        found = np.zeros((self.steps, self.size))
        for path in self._units:
            found[:, self._columns(path)] += path.pull(vectors)
        return found

    @cached_property
    def sizes(self) -> Array:
        """(T, m) bounds on the entries of every row, where no path is dense."""
        return np.asarray(sum(path.sizes for path in self._units))

    def carried(self, backward: Array, forward: Array) -> dict[str, Array]:
        """b_t^T J_t a_t of every path for all t, {path: (T,)}, of b and a (T, m)."""
        through = {path.name: path.push(forward[:, self._columns(path)]) for path in self.paths}
        return {name: np.asarray((backward * pushed).sum(axis=1)) for name, pushed in through.items()}

    def _columns(self, path: Path) -> slice:
        """Of a step, those of the component that a path reads."""
        return slice(path.source * self.width, (path.source + 1) * self.width)

    @property
    def width(self) -> int:
        """Columns of a part: the hidden size, or the whole state for a cell without a per-unit form."""
        return self.paths[0].width if self.paths else self.size

    def _sum(self, t: int) -> Array:
        out, n = np.zeros((self.size, self.size)), self.width
        for source, part in enumerate(self.parts(t)):
            columns = out[:, source * n : (source + 1) * n]
            if len(part) == self.size:
                columns[:] = part
            else:
                np.einsum("cii->ci", columns.reshape(-1, n, n))[...] = part  # a view
        return out


def split(
    cell: Cell,
    parameters: Mapping[str, Array],
    linearized: Mapping[str, Any],
    cut: Sequence[str] = (),
    hidden: int = 0,
) -> CellChain:
    """The full-state chain (state s_(t-1) to s_t) from what ``linearize`` returned, without ``cut``.

    hidden : units, where paths of a cell without a per-unit form stay in a component.
    """
    steps, size = len(linearized["states"]) - 1, linearized["states"].shape[1]
    paths: list[Path] = []
    far, digits = linearized.get("far") or {}, linearized.get("digits")
    for name in _kept(linearized, cell, cut):
        array = np.asarray(linearized["paths"][name], np.float64)
        source = cell.source(name)
        held = {"far": far.get(name), "digits": digits and digits.at(name)}
        if cell.units is None:
            part = None if source is None else list(cell.extents(hidden).values())[source]
            paths.append(DensePath(name, array, part, **held))
        else:
            matrix = _matrix(parameters, name)
            paths.append(UnitPath(name, array, source or 0, matrix, **held))
    return CellChain(tuple(paths), steps, size)


def cell_view(
    cell: Cell,
    parameters: Mapping[str, Array],
    linearized: Mapping[str, Any],
    cut: Sequence[str] = (),
    before: Array | None = None,
) -> CellChain:
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
    return CellChain(tuple(paths), len(link), link.shape[1])


def _kept(linearized: Mapping[str, Any], cell: Cell, cut: Sequence[str]) -> list[str]:
    """Path names in the cell's own order (JAX sorts the keys of what it returns)."""
    return [name for name in cell.paths or linearized["paths"] if name not in cut]


def _matrix(parameters: Mapping[str, Array], path: str) -> Array | None:
    """The recurrent matrix a path goes through; a cell's own path and the peepholes have none."""
    return np.asarray(parameters[path], np.float64) if is_recurrent(path) else None
