"""Passes of blocks through the chain of a trajectory, on its devices, segment by segment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradscope.custom_types import Array
from gradscope.linearize.system import precise
from gradscope.linearize.tangents import StepMaps, TangentSteps, every_step
from gradscope.linearize.trajectory import Trajectory

# How many columns go through a step side by side where each has steps of its own: as many as there are in the
# first of these that holds them. On a CPU a column costs what it is; accelerators read the weights, whatever
# there is beside them.
WIDTHS, WIDTHS_ON_ACCELERATORS = (8, 16, 48), (128,)
# Numbers of triangular factors on a device at a time, for each sequence.
_FACTORS = 2**20


class TangentChain:
    """The chain of ``tangents`` along a trajectory of B sequences, as an Operator (see operator.Operator).

    read : told how many steps a block has gone through.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        tangents: TangentSteps,
        sequences: int,
        dtype: str,
        read: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.size, self.steps = tangents.size(trajectory.start(0).shape[-1]), trajectory.segments.steps
        self.columns = self.size
        self.sequences = sequences
        self.eps = float(np.finfo(dtype).eps)
        cpu = trajectory.spread.devices[0].platform == "cpu"
        self._widths = WIDTHS if cpu else WIDTHS_ON_ACCELERATORS
        self.beside = self._widths[-1]
        self._trajectory, self._tangents, self._dtype = trajectory, tangents, dtype
        self._read = read
        self._kept: dict[int, Any] = {}
        with precise(dtype):
            self._shared = [_shared(tangents, trajectory, back) for back in (False, True)]

    def of(self, tangents: TangentSteps) -> TangentChain:
        """The chain of other steps with the same weights, which are on the devices already."""
        chain = copy(self)
        chain._tangents, chain._kept = tangents, {}
        return chain

    def forward(self, block: Array, every: int, take: Callable[[Array], None]) -> Array:
        """P block = Q R_G ... R_1, see operator.Operator."""
        return self._through(block, every, take, back=False)

    def backward(self, block: Array, every: int, take: Callable[[Array], None]) -> Array:
        """The same for P^T."""
        return self._through(block, every, take, back=True)

    def tails(self, block: Array, lags: Array, back: bool) -> tuple[Array, Array]:
        """See operator.Operator."""
        order = np.argsort(-lags, kind="stable")  # those that are under way at a step are the first
        first = (self.steps - lags)[order]
        columns = self._walked(self._padded(block[:, :, order]), first, int(first[0]), self.steps, back)
        found, exponents = self._held(columns, len(lags))
        back_again = np.argsort(order)
        return found[..., back_again], exponents[:, back_again]

    def images(self, block: Array, lags: Array) -> tuple[Array, Array]:
        """See operator.Operator."""
        columns, last, found = self._padded(block), self.steps, []
        for lag in lags.tolist():
            low = self.steps - lag
            columns = self._walked(columns, np.full(block.shape[2], low), low, last, True)
            last = low
            found.append(self._held(columns, block.shape[2]))
        every, exponents = zip(*found, strict=True)
        return np.stack(every, axis=1), np.stack(exponents, axis=1)

    def _padded(self, block: Array) -> tuple[Any, Any]:
        """Columns on the devices, as many as go side by side, and their exponents."""
        missing = -block.shape[2] % self.beside  # one width, one program
        exponents = np.zeros((len(block), block.shape[2] + missing), np.int32)
        with precise(self._dtype):
            block = np.pad(block, ((0, 0), (0, 0), (0, missing)))
            return self._put(block), self._trajectory.spread.put(exponents)

    def _walked(self, columns: tuple[Any, Any], first: Array, low: int, high: int, back: bool) -> Any:
        """What ``_padded`` returns, through steps low .. high - 1, each column from its ``first`` step on."""
        first = np.pad(first, (0, columns[0].shape[2] - len(first)), constant_values=high).astype(np.int32)
        run = self._trajectory.spread.lift(_columns, self._tangents.maps, self._widths)
        with precise(self._dtype):
            for i, start, end in self._pieces(low, high, self.steps, back):
                here = first - np.int32(i * self._trajectory.segments.length)
                shared = (self._shared, np.array([start, end], np.int32), np.bool_(back), here)
                columns = run(shared, self._steps(i), *columns)
                self._read(end - start)
        return columns

    def _held(self, columns: tuple[Any, Any], count: int) -> tuple[Array, Array]:
        block, exponents = np.asarray(columns[0], np.float64), np.asarray(columns[1])
        return block[: self.sequences, :, :count], exponents[: self.sequences, :count]

    def shares(
        self, left: Array, right: Array, took: Callable[[int, Array, Array], None] = lambda *_: None
    ) -> tuple[Array, Array, Array]:
        """Each path's share in carrying the gradient at every step, (B, T, paths), see measure.shares.

        left, right : (B, m) top singular vectors u, v; NaN where they are zero. Also (B, m) the unit vectors
        along P v and P^T u, which they are if they are right. took : told of the first sequence, the last
        steps first: the first of some steps t, from 0; log10 |b_(t+1)| (k, m) of each unit, see
        measure.returning; and (k,) log10 of what all paths carry there, sigma_1 where nothing is lost.
        """
        with precise(self._dtype):
            starts, grown = [self._put(right)], [0.0]
            end, log = self._put(left), 0.0
            segments = range(self._trajectory.segments.count)
            for i in segments[:-1]:
                after, growth = self._call(_along, i, starts[-1])
                starts.append(after)
                grown.append(grown[-1] + float(_first(growth).sum()))
            found, ahead = [], []
            for i in reversed(segments):
                valid = self._trajectory.valid(i)
                share, end, last, walk = self._call(_shares, i, starts[i], end)
                found.append(np.asarray(share)[: self.sequences, :valid])
                ahead.append(last)
                vectors, carried, before, behind = (_first(part)[:valid] for part in walk)
                size = log + np.append(behind[::-1].cumsum()[::-1][1:], 0.0)
                came = grown[i] + before.cumsum() - before
                log += float(behind.sum())
                with np.errstate(divide="ignore", invalid="ignore"):
                    units = np.log(np.abs(vectors)) + size[:, None]
                    whole = np.log(np.abs(carried)) + size + came
                took(self._trajectory.segments.length * i, units / np.log(10), whole / np.log(10))
            forth, back = (np.asarray(one, np.float64)[: self.sequences] for one in (ahead[0], end))
        return np.concatenate(found[::-1], axis=1).astype(np.float64), forth, back

    def diagonals(self, sequence: int) -> Array:
        """(T, n) where every step of the chain is diagonal."""
        found = np.empty((self.steps, self.size))
        length = self._trajectory.segments.length
        with precise(self._dtype):
            for i in range(self._trajectory.segments.count):
                valid = self._trajectory.valid(i)
                slopes = np.asarray(self._steps(i)[1])[sequence, :valid, :, 0]
                found[i * length : i * length + valid] = slopes.sum(axis=1)
        return found

    def _through(self, block: Array, every: int, take: Callable[[Array], None], back: bool) -> Array:
        groups = min(self._trajectory.segments.length, max(1, _FACTORS // block.shape[2] ** 2))
        with precise(self._dtype):
            q = self._put(block)
            for i, low, high in self._pieces(0, self.steps, every * groups, back):
                span = np.array([low, high, every], np.int32)
                sweep = self._trajectory.spread.lift(_sweep, self._tangents.maps, groups)
                q, factors = sweep((self._shared, span, np.bool_(back)), self._steps(i), q)
                take(np.asarray(factors)[: self.sequences, : -(-(high - low) // every)])
                self._read(high - low)
            return np.asarray(q, np.float64)[: self.sequences]

    def _pieces(self, first: int, end: int, longest: int, back: bool) -> Iterator[tuple[int, int, int]]:
        """Segment, and from and up to which of its steps, in the order of a pass: first ... end - 1."""
        length = self._trajectory.segments.length
        pieces = [
            (i, low, min(low + longest, length, end - i * length))
            for i in range(first // length, -(-end // length))
            for low in range(max(0, first - i * length), min(length, end - i * length), longest)
        ]
        return reversed(pieces) if back else iter(pieces)

    def _steps(self, i: int) -> Any:
        """What the steps of segment i need; the last segment asked for is kept."""
        if i not in self._kept:
            self._kept.clear()
            trajectory = self._trajectory
            run = trajectory.spread.lift(every_step, self._tangents.cell)
            steps = run(
                trajectory.parameters, trajectory.inputs(i), trajectory.start(i), trajectory.beside(i)
            )
            self._kept[i] = self._tangents.chosen(steps)
        return self._kept[i]

    def _call(self, function: Callable[..., Any], i: int, *vectors: Any) -> Any:
        run = self._trajectory.spread.lift(function, self._tangents)
        return run((*self._shared, np.int32(self._trajectory.valid(i))), self._steps(i), *vectors)

    def _put(self, batch: Array) -> Any:
        return self._trajectory.spread.put(np.asarray(batch, self._dtype))


def _shared(tangents: TangentSteps, trajectory: Trajectory, back: bool) -> Any:
    """On every device what all steps need, put together on the host: there it takes no program."""
    parameters = jax.device_get(trajectory.parameters)
    found = tangents.shared(parameters, back)
    return trajectory.parameters if found is parameters else trajectory.spread.replicate(found)


def _at(steps: Any, t: Any) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, t, keepdims=False), steps)


def _sweep(maps: StepMaps, most: int, shared: Any, steps: Any, block: Any) -> Any:
    """A block through steps low .. high - 1, from the last to the first if ``back``; and its factors.

    every : steps between two QRs; most : as many of these as there may be. One program for all of them, and
    for both directions.
    """
    common, (low, high, every), back = shared

    def through(move: Any, block: Any) -> Any:
        def group(g: Any, carried: Any) -> Any:
            block, factors = carried
            block = lax.fori_loop(g * every, jnp.minimum((g + 1) * every, high - low), move, block)
            q, r = jnp.linalg.qr(block)
            return q, factors.at[g].set(r)

        columns = block.shape[1]
        factors = jnp.zeros((most, columns, columns), block.dtype)
        return lax.fori_loop(0, (high - low + every - 1) // every, group, (block, factors))

    pull, push = _moves(maps, common, steps, low, high)
    return lax.cond(back, partial(through, pull), partial(through, push), block)


def _columns(
    maps: StepMaps, widths: tuple[int, ...], shared: Any, steps: Any, block: Any, exponents: Any
) -> Any:
    """Columns (m, n) through those of the steps low .. high - 1 that are not before ``first`` (n,) of each.

    They are scaled by powers of two, whose exponents (n,) are added up. first : ascending; widths : so many
    columns go through a step, the fewest that hold those under way; the last is n.
    """
    common, (low, high), back, first = shared

    def through(move: Any, columns: Any) -> Any:
        def some(width: int, k: Any, block: Any) -> Any:
            return jnp.pad(move(k, block[:, :width]), ((0, 0), (0, block.shape[1] - width)))

        def one(k: Any, carried: Any) -> Any:
            block, exponents = carried
            taken = jnp.where(back, high - 1 - k, low + k) >= first
            chosen = (taken.sum() > jnp.array(widths[:-1], jnp.int32)).sum()
            new = lax.switch(chosen, [partial(some, width, k) for width in widths], block)
            more = jnp.where(taken, jnp.frexp(jnp.abs(new).max(axis=0))[1], 0)
            return jnp.where(taken, _over(new, more), block), exponents + more

        return lax.fori_loop(0, high - low, one, columns)

    pull, push = _moves(maps, common, steps, low, high)
    return lax.cond(back, partial(through, pull), partial(through, push), (block, exponents))


def _over(block: Any, exponents: Any) -> Any:
    """Columns over powers of two: by halves, whose own powers are within the range of the dtype."""
    one, half = jnp.ones((), block.dtype), exponents // 2
    return block * jnp.ldexp(one, -half) * jnp.ldexp(one, half - exponents)


def _moves(maps: StepMaps, common: Any, steps: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """How a block goes through step number k of low .. high - 1, backwards and forwards."""

    def pull(k: Any, block: Any) -> Any:
        return maps.pull(common[True], _at(steps, high - 1 - k), block)

    def push(k: Any, block: Any) -> Any:
        return maps.push(common[False], _at(steps, low + k), block)

    return pull, push


def _first(batch: Any) -> Array:
    """Of the first sequence."""
    return np.asarray(np.asarray(batch)[0], np.float64)


def _along(tangents: TangentSteps, shared: Any, steps: Any, vector: Any) -> Any:
    """A unit vector after the valid steps of a segment, and how it has grown at each, (L,) ln."""
    last, (_, growth) = _propagated(tangents.maps.push, shared, steps, vector, back=False)
    return last, growth


def _shares(tangents: TangentSteps, shared: Any, steps: Any, start: Any, end: Any) -> Any:
    """Shares (L, paths) at every step, the cotangent before, the tangent after, and both walks."""
    last, (before, grown) = _propagated(tangents.maps.push, shared, steps, start, back=False)
    first, (after, behind) = _propagated(tangents.maps.pull, shared, steps, end, back=True)
    # Together the paths carry b_t^T J_t a_(t-1), which is sigma_1 at every t.
    carried = jax.vmap(partial(tangents.by_path, shared[False]))(steps, after, before)
    whole = carried.sum(axis=1)
    return carried / whole[:, None], first, last, (after, whole, grown, behind)


def _propagated(move: Any, shared: Any, steps: Any, vector: Any, back: bool) -> Any:
    """The last vector; (L, m) those before each step in the direction of the walk, of norm 1; (L,) growth.

    growth : ln of the norm of the vector after the step.
    """
    common, valid = shared[back], shared[2]

    def one(vector: Any, numbered: Any) -> Any:
        t, step = numbered
        new = move(common, step, vector[:, None])[:, 0]
        largest = jnp.abs(new).max()
        new /= largest  # squares may not fit where the entries do
        norm = jnp.linalg.norm(new)
        growth = jnp.where(t < valid, jnp.log(largest) + jnp.log(norm), 0)
        return jnp.where(t < valid, new / norm, vector), (vector, growth)

    length = len(jax.tree.leaves(steps)[0])
    return lax.scan(one, vector, (jnp.arange(length), steps), reverse=back)
