"""A stack's one-step Jacobians on the host: those of its layers, and what outputs do to the layers above."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from itertools import accumulate, product
from typing import Any

import numpy as np

from gradscope.cells.cell import Cell, Member
from gradscope.cells.stack import block_names
from gradscope.compiled_svd.step_arrays import StepArrays
from gradscope.custom_types import Array
from gradscope.linearize.array_form import reading_arrays
from gradscope.linearize.cell_chain import CellChain, split
from gradscope.linearize.jacobian_chain import JacobianChain, nonzero, random_row
from gradscope.linearize.more_digits import Some
from gradscope.linearize.paths import DensePath, Path, UnitPath, most_operations
from gradscope.linearize.stack_beside import StackBeside
from gradscope.product_svd.ball_product import exact_numbers
from gradscope.product_svd.extended_range_array import Wide, wide_product
from gradscope.product_svd.steps import Layout, span


@dataclass(frozen=True)
class Reading:
    """What a layer reads of one before it: d(its state)/d(that output) within a step is the sum of paths.

    source : which of the layers is read; output : where in that one's state; paths : one per gate.
    """

    source: int
    output: slice
    paths: tuple[Path, ...]

    def at(self, t: int, rows: int) -> Array:
        """Step t, (rows, n)."""
        found = np.zeros((rows, self.output.stop - self.output.start))
        for path in self.paths:
            path.add_to(found, t)
        return found

    def balls(self, t: int, bits: int) -> Array:
        """Step t as balls, of so many bits."""
        found: Array = reduce(operator.add, (path.balls(t, bits) for path in self.paths))
        return found

    def wide(self, t: int, rows: int) -> Wide:
        """Step t with exponents of its own."""
        found = Wide.zeros(rows, self.output.stop - self.output.start)
        for path in self.paths:
            found = found.plus(path.wide(t))
        return found

    def push(self, vectors: Array) -> Array:
        """For all t, (T, m) in the state of the layer, of (T, m) in that which is read."""
        return np.asarray(sum(path.push(vectors[:, self.output]) for path in self.paths))

    def bound(self, sizes: Array) -> Array:
        """The same for bounds on rows, where no path is dense."""
        return np.asarray(sum(path.absolute.push(sizes[:, self.output]) for path in self._units))

    def pull(self, vectors: Array) -> Array:
        """For all t, (T, n) in the output that is read, of (T, m), where no path is dense."""
        return np.asarray(sum(path.pull(vectors) for path in self._units))

    @property
    def span(self) -> float:
        """Bits that its entries span."""
        return span(*(np.abs(path.slope) for path in self._units))

    @property
    def _units(self) -> Iterator[UnitPath]:
        return (path for path in self.paths if isinstance(path, UnitPath))


@dataclass(frozen=True)
class StackChain(JacobianChain):
    """The chain of a stack.

    J is block lower triangular: with A_j the step of layer j alone and B_ji what it reads of layer i,
    block row j is the sum over i of B_ji (rows of i's output of block row i), and A_j on the diagonal.

    layers : A; readings : B, of each layer; named : the blocks (from, to) that are kept, the paths;
    window : see StepSource.
    """

    layers: tuple[CellChain, ...]
    readings: tuple[tuple[Reading, ...], ...]
    named: Mapping[tuple[int, int], str]
    steps: int
    size: int
    window: tuple[slice, slice] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the paths."""
        return tuple(self.named.values())

    @property
    def chains(self) -> dict[str, JacobianChain]:
        """The full chain, each layer's own, and for two layers that block of the whole product."""
        found: dict[str, JacobianChain] = {"full": self}
        for (i, j), name in self.named.items():
            found[name] = self.layers[i] if i == j else self._between(i, j)
        return found

    def without(self, path: str) -> StackChain:
        """The chain of the other blocks, of the same layers."""
        return replace(self, named={block: name for block, name in self.named.items() if name != path})

    def beside(self) -> Iterator[StackBeside]:
        """The steps without each block, the last first, as what layers read of each other."""
        certain, named = self.survey()[1], list(self.named)
        cut = [block for block in self._blocks if block not in self.named]
        without = [(*cut, block) for block in named]
        for t in reversed(range(self.steps)):
            reads = [
                (self.extents[j], self._read(reading), reading.at(t, self.layers[j].size))
                for j, reading in self._readings
            ]
            own = [layer.parts(t) for layer in self.layers]
            spans = self.span if certain else span(np.abs(self[t]))
            yield StackBeside(partial(self.__getitem__, t), self.extents, reads, own, without, spans)

    @cached_property
    def beyond(self) -> bool:  # type: ignore[override]
        """Whether float64 takes slopes of any layer, or of what it reads, as 0 that are not."""
        read = (path for _, reading in self._readings for path in reading.paths)
        return any(layer.beyond for layer in self.layers) or any(path.beyond for path in read)

    def wide(self, t: int) -> Wide:
        """Step t, (m, m), by block rows, with an exponent for every entry."""
        found = Wide.zeros(self.size, self.size)
        for own, layer, readings in zip(self.extents, self.layers, self.readings, strict=True):
            below = (own, slice(own.start))
            for reading in readings:
                read = found[self._read(reading), : own.start]
                entering = wide_product(reading.wide(t, layer.size), read)[0]
                found.put(below, found[below].plus(entering))
            found.put((own, own), layer.wide(t))
        for rows, columns in self._absent:
            found.put((rows, columns), Wide.zeros(rows.stop - rows.start, columns.stop - columns.start))
        return found

    @cached_property
    def operations(self) -> float:  # type: ignore[override]
        """How many it takes to have all slopes with more digits."""
        read = (path for _, reading in self._readings for path in reading.paths)
        return most_operations([*(path for layer in self.layers for path in layer.paths), *read])

    def balls(self, t: int, bits: int) -> Array:
        """Step t, (m, m), by block rows of balls."""
        nothing = exact_numbers(np.zeros((self.size, self.size)))
        return self._by_rows(
            nothing, lambda layer: layer.balls(t, bits), lambda reading, _: reading.balls(t, bits)
        )

    def wide_terms(self, t: int) -> Iterator[tuple[str, slice, slice, Wide]]:
        """Each block by its name: its rows, its columns, and what stands there."""
        step = self.wide(t)
        for (i, j), name in self.named.items():
            rows, columns = self.extents[j], self.extents[i]
            yield name, rows, columns, step[rows, columns]

    @cached_property
    def extents(self) -> tuple[slice, ...]:
        """Where in the state each layer's is."""
        ends = accumulate(layer.size for layer in self.layers)
        return tuple(slice(end - layer.size, end) for layer, end in zip(self.layers, ends, strict=True))

    @cached_property
    def whole(self) -> bool:
        """Whether no block is cut."""
        return all(block in self.named for block in self._blocks)

    @property
    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Those that a step of the whole stack has."""
        return ((i, j) for j in range(len(self.layers)) for i in (*self._below[j], j))

    @cached_property
    def _absent(self) -> list[tuple[slice, slice]]:
        """Rows and columns of the others, and of those that are cut."""
        every = product(enumerate(self.extents), repeat=2)
        return [(rows, columns) for (j, rows), (i, columns) in every if (i, j) not in self.named]

    @cached_property
    def _below(self) -> list[list[int]]:
        """The layers that reach each layer within a step."""
        below: list[set[int]] = []
        for readings in self.readings:
            below.append({i for r in readings for i in (r.source, *below[r.source])})
        return [sorted(sources) for sources in below]

    @cached_property
    def layout(self) -> Layout | None:  # type: ignore[override]
        """How parts make up a step: (1 + B of the last layer) ... (1 + B of the first) A."""
        if not self.whole:
            return None
        added = tuple((self.extents[j], self._read(reading)) for j, reading in self._readings)
        own = zip(self.extents, self.layers, strict=True)
        return added, tuple((extent, layer.size // layer.width) for extent, layer in own)

    def parts(self, t: int) -> list[Array]:
        """Step t in the parts of ``layout``, or as it is where a block is cut."""
        if not self.whole:
            return [self[t]]
        added = [reading.at(t, self.layers[j].size) for j, reading in self._readings]
        return added + [part for layer in self.layers for part in layer.parts(t)]

    def terms(self, t: int) -> list[Array]:
        """Step t by path of each layer, and what goes from layer to layer."""
        between = np.array(self[t])
        found = [between]
        for j, (own, layer) in enumerate(zip(self.extents, self.layers, strict=True)):
            between[own, own] = 0.0
            for term in layer.terms(t) if (j, j) in self.named else ():
                found.append(np.zeros_like(between))
                found[-1][own, own] = term
        return found

    @property
    def _readings(self) -> list[tuple[int, Reading]]:
        """All of them with the layer whose they are, the last first."""
        return [(j, reading) for j in reversed(range(len(self.layers))) for reading in self.readings[j]]

    def _read(self, reading: Reading) -> slice:
        """Where in the state what it reads is."""
        start = self.extents[reading.source].start
        return slice(start + reading.output.start, start + reading.output.stop)

    @cached_property
    def step_arrays(self) -> StepArrays | None:
        """The steps as a compiled program takes them: of the whole product, not of a block of it."""
        if self.window is not None or not self.whole or self.beyond:
            return None
        found = [layer.step_arrays for layer in self.layers]
        layers = [layer for one in found if one is not None for layer in one.layers]
        every = [reading_arrays(r.paths, j, self._read(r).start) for j, r in self._readings]
        readings = [one for one in every if one is not None]
        if len(layers) < len(self.layers) or len(readings) < len(every):
            return None
        return StepArrays(tuple(layers), tuple(readings))

    def survey(self) -> tuple[Array, bool]:
        """By the slopes and matrices of all layers; nothing is certain of a dense one, or of a cut block."""
        sizes = np.zeros((self.steps, self.size))
        if self.beyond or not (self.whole and all(layer.in_units for layer in self.layers)):
            return sizes, False
        rows, columns = np.zeros_like(sizes), np.zeros_like(sizes) + (probe := random_row(self.size))
        for own, layer, readings in zip(self.extents, self.layers, self.readings, strict=True):
            rows[:, own], sizes[:, own] = layer.push(probe[:, own]), layer.sizes
            for reading in readings:
                below = self.extents[reading.source]
                rows[:, own] += reading.push(rows[:, below])
                sizes[:, own] += reading.bound(sizes[:, below])
        for j, reading in self._readings:
            columns[:, self._read(reading)] += reading.pull(columns[:, self.extents[j]])
        for own, layer in zip(self.extents, self.layers, strict=True):
            columns[:, own] = layer.pull(columns[:, own])
        return sizes, nonzero(rows, sizes, columns)

    @cached_property  # asked for at every step
    def span(self) -> float:
        """At most the bits of all layers and of what is read between them."""
        if self.beyond:
            read = sum(max(path.bits for path in reading.paths) for _, reading in self._readings)
            return sum(layer.span for layer in self.layers) + read
        return sum(layer.span for layer in self.layers) + sum(reading.span for _, reading in self._readings)

    def carried(self, backward: Array, forward: Array) -> dict[str, Array]:
        """b_t^T J_t a_t of every block for all t, {block: (T,)}, of b and a (T, m)."""
        found: dict[tuple[int, int], Array] = {}
        for i, own in enumerate(self.extents):
            pushed = {i: self.layers[i].push(forward[:, own])}  # what the state of layer i makes of others
            for j in range(i + 1, len(self.layers)):
                if read := [r.push(pushed[r.source]) for r in self.readings[j] if r.source in pushed]:
                    pushed[j] = np.asarray(sum(read))
            for j, vectors in pushed.items():
                found[i, j] = (backward[:, self.extents[j]] * vectors).sum(axis=1)
        return {name: found[block] for block, name in self.named.items()}

    def _sum(self, t: int) -> Array:
        nothing = np.zeros((self.size, self.size))
        return self._by_rows(
            nothing, lambda layer: layer[t], lambda reading, layer: reading.at(t, layer.size)
        )

    def _by_rows(
        self,
        out: Array,
        own_step: Callable[[CellChain], Array],
        entering: Callable[[Reading, CellChain], Array],
    ) -> Array:
        """A step by block rows, see above, put into zeros (m, m) of floats or of balls."""
        zero = out[0, 0]
        for own, layer, readings in zip(self.extents, self.layers, self.readings, strict=True):
            for reading in readings:
                read = out[self._read(reading), : own.start]
                out[own, : own.start] += entering(reading, layer) @ read
            out[own, own] = own_step(layer)
        for rows, columns in self._absent:
            out[rows, columns] = zero
        return out

    def _between(self, i: int, j: int) -> StackChain:
        """The chain of the layers through which layer i reaches layer j, for that block of its product."""
        reached = [k for k in range(i, j + 1) if k == i or i in self._below[k]]
        kept = [k for k in reached if k == j or k in self._below[j]]
        number = {k: new for new, k in enumerate(kept)}
        readings = tuple(
            tuple(replace(r, source=number[r.source]) for r in self.readings[k] if r.source in number)
            for k in kept
        )
        named = {(number[a], number[b]): n for (a, b), n in self.named.items() if {a, b} <= number.keys()}
        layers = tuple(self.layers[k] for k in kept)
        size = sum(layer.size for layer in layers)
        window = (slice(size - layers[-1].size, size), slice(layers[0].size))
        return StackChain(layers, readings, named, self.steps, size, window)


def blocked(
    cell: Cell, parameters: Mapping[str, Array], linearized: Mapping[str, Any], cut: Sequence[str] = ()
) -> StackChain:
    """The chain of a stack from what ``linearize`` returned, without the blocks ``cut``."""
    states = linearized["states"]
    layers, readings = [], []
    extents = cell.extents(0)
    for member in cell.members:
        own, found = member.own(parameters), linearized["paths"][member.name]
        far = (linearized.get("far") or {}).get(member.name, {})
        digits = linearized.get("digits") and linearized["digits"].at(member.name)
        state = {
            "states": states[:, extents[member.name]],
            "paths": found["own"],
            "far": far.get("own"),
            "digits": digits and digits.at("own"),
        }
        layers.append(split(member.cell, own, state, hidden=member.hidden))
        entering = (found["input"], far.get("input", {}), digits and digits.at("input"))
        readings.append(tuple(_readings(cell.members, member, own, *entering)))
    kept = {ends: name for ends, name in block_names(cell.members).items() if name not in cut}
    return StackChain(tuple(layers), tuple(readings), kept, len(states) - 1, states.shape[1])


def _readings(
    members: Sequence[Member],
    member: Member,
    parameters: Mapping[str, Array],
    slopes: Mapping[str, Any],
    far: Mapping[str, Wide],
    digits: Some | None,
) -> Iterator[Reading]:
    """What a member reads of those before it; slopes : derivatives by pre-activation, or by its input.

    far : the same where float64 does not hold them; digits : with as many digits as are wanted.
    """
    start = 0
    for read in member.reads:
        if not isinstance(read, int):
            start += read[1] - read[0]
            continue
        output = members[read].output_in(0)
        columns = slice(start, start := start + output.stop - output.start)
        yield Reading(read, output, tuple(_entering(member.cell, columns, parameters, slopes, far, digits)))


def _entering(
    cell: Cell,
    columns: slice,
    parameters: Mapping[str, Array],
    slopes: Mapping[str, Any],
    far: Mapping[str, Wide],
    digits: Some | None,
) -> Iterator[Path]:
    """The ways by which some columns of its input enter a layer's state."""
    if cell.units is None:
        some = (slice(None), slice(None), columns)
        held = far["input"][some] if far else None
        more = digits and digits.at("input").part(some)
        yield DensePath("input", np.asarray(slopes["input"], np.float64)[some], far=held, digits=more)
        return
    for gate, weights in cell.units.weights:
        matrix = np.asarray(parameters[weights], np.float64)[:, columns]
        slope = np.asarray(slopes[gate], np.float64)
        yield UnitPath(weights, slope, 0, matrix, far=far.get(gate), digits=digits and digits.at(gate))
