"""One sequence gone back through from its loss: adjoints, deltas, and what each lag adds to the gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gradscope.cells.factors import own
from gradscope.cells.notation import named
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize.budget import SEGMENT_BYTES, tangent_bytes
from gradscope.linearize.system import System, cast
from gradscope.linearize.tangents import tangents
from gradscope.linearize.trajectory import Segments, Spread, Trajectory
from gradscope.measure.backprop import ZERO, Columns, LossSegment, contributions, gradients
from gradscope.product_svd.log_scale import decades

# Of all that a step reads, as of the entries of Jacobians; and how many runs on such are compared.
ROUNDINGS, DRAWS = 4, 2
# Losses at so many steps are followed back together: their chain is linearised anew for every such group.
_TOGETHER = 256


class Total:
    """A sum of gradients {parameter: array} times powers of two; those by factors of paths are left out."""

    def __init__(self, like: Mapping[str, Array]) -> None:
        self.arrays = {name: np.zeros(array.shape) for name, array in own(like).items()}
        self.exponent = ZERO

    def add(self, arrays: Mapping[str, Any], exponent: int) -> None:
        """Add these, times 2^exponent."""
        top = max(self.exponent, exponent)
        for name, array in own(arrays).items():
            new = np.ldexp(np.asarray(array, np.float64), exponent - top)
            self.arrays[name] = np.ldexp(self.arrays[name], self.exponent - top) + new
        self.exponent = top

    def minus(self, other: Total, name: str) -> Array:
        """The difference in one parameter, times 2^-exponent of this."""
        return self.arrays[name] - np.ldexp(other.arrays[name], other.exponent - self.exponent)


@dataclass(frozen=True)
class Followed:
    """Of the steps of one sequence, in their order: log10 |dL/ds_t|, deltas and log10 of their norms.

    log10_norm : (T,), or (T + 1,) with that of the initial state first; deltas : {gate: (T, n)};
    log10_deltas : {gate: (T,)}.
    """

    log10_norm: Array
    deltas: dict[str, Array]
    log10_deltas: dict[str, Array]


class Adjoints:
    """The chain of one sequence, from its last step to its first. To be used within ``precise(dtype)``."""

    def __init__(
        self,
        system: System,
        kept: tuple[str, ...],
        adjoint: Array,
        device: jax.Device,
        parameters: Parameters,
        near: bool,
    ) -> None:
        """Take a system of one sequence, the paths kept, its loss's (S, n), and parameters on the device.

        near : as of ``Trajectory``.
        """
        steps = system.steps
        self._chain = tangents(system.cell, kept)
        self._adjoint, self._output, self._dtype = adjoint, system.output, system.dtype
        self._losses = np.flatnonzero(adjoint.any(axis=1)) + steps - len(adjoint)  # steps, from 0
        self._columns = 1 if len(self._losses) <= 1 else _TOGETHER
        self._size, self._steps = system.size, steps
        matrices = len(named(parameters, "R") + named(parameters, "W"))
        numbers = 8 * matrices * (self._columns + self._size)
        segments = Segments.cover(steps, tangent_bytes(system.cell, system.hidden) + numbers, SEGMENT_BYTES)
        self._trajectory = Trajectory(system, segments, Spread((device,)), parameters, near)

    @property
    def work(self) -> int:
        """Steps to be gone through in all."""
        return (1 + DRAWS) * self._steps + sum(int(group[0]) + 1 for group in self._groups)

    def back(self, total: Total, done: Callable[[int], None], draw: int = 0) -> Followed:
        """The whole loss followed back; the gradients of all parameters are added to ``total``.

        draw : 0, or the number of a run in which all that is read is changed by roundings.
        """
        found: list[Followed] = []
        later = self._nothing(1)
        for i in self._segments(self._steps - 1):
            later, segment = gradients(
                self._chain, self._trajectory.parameters, self._segment(i, draw), later
            )
            segment = jax.device_get(segment)
            total.add(segment["gradients"], int(segment["top"]))
            valid = self._trajectory.valid(i)
            found.append(_followed(segment, valid))
            done(valid)
        column, exponent = jax.device_get(later)
        return _joined([decades(np.linalg.norm(column, axis=0), exponent)], found[::-1])

    def along(self, directions: Mapping[str, Array], exponent: int, done: Callable[[int], None]) -> Array:
        """dL/dp along each direction {p: D_p} by lag, over 2^exponent: (T, matrices), these sorted."""
        by_lag = np.zeros((self._steps, len(directions)))
        placed = self._trajectory.spread.replicate(cast(directions, self._dtype))
        length = self._trajectory.segments.length
        for group in self._groups:
            when = np.full(self._columns, -1)
            when[: len(group)] = group
            later = self._nothing(self._columns)
            for i in self._segments(int(group[0])):
                start, valid = i * length, self._trajectory.valid(i)
                segment = self._segment(i)
                later, *found = contributions(
                    self._chain, self._trajectory.parameters, placed, segment, when - start, later
                )
                numbers, exponents = jax.device_get(found)
                for column, loss in enumerate(group):
                    count = max(0, min(valid, int(loss) + 1 - start))
                    lags = loss - start - np.arange(count)
                    scale = exponents[:count, column, None] - exponent
                    by_lag[lags] += np.ldexp(numbers[:count, :, column].astype(np.float64), scale)
                done(min(valid, int(group[0]) + 1 - start))
        return by_lag

    @property
    def _groups(self) -> list[Any]:
        """Steps with a loss, from the last, as many at a time as are followed back together."""
        last_first = self._losses[::-1]
        return [last_first[i : i + self._columns] for i in range(0, len(last_first), self._columns)]

    def _segments(self, last: int) -> range:
        """The segments from that of step ``last`` back to the first."""
        return range(last // self._trajectory.segments.length, -1, -1)

    def _segment(self, i: int, draw: int = 0) -> LossSegment:
        trajectory = self._trajectory
        length, begins = trajectory.segments.length, self._steps - len(self._adjoint)
        adjoint = np.zeros((length, self._size), self._dtype)
        held = np.arange(max(begins, i * length), min(self._steps, (i + 1) * length))
        adjoint[held - i * length, self._output] = self._adjoint[held - begins]
        first = jax.tree.map(lambda part: part[0], trajectory.beside(i))
        inputs, start = trajectory.inputs(i)[0], trajectory.start(i)[0]
        factors = roundings((inputs.shape, adjoint.shape, adjoint.shape), self._dtype, draw and [draw, i])
        return inputs, start, np.int32(trajectory.valid(i)), adjoint, first, factors

    def _nothing(self, columns: int) -> Columns:
        nothing = np.zeros((self._size, columns), self._dtype), np.full(columns, ZERO, np.int32)
        # On the device, as what comes after it: JAX would compile once for each.
        placed: Columns = self._trajectory.spread.replicate(nothing)
        return placed


def roundings(shapes: Sequence[tuple[int, ...]], dtype: str, seed: Any) -> tuple[Array, ...]:
    """Factors that differ from 1 by roundings, at random; where the seed is 0 by nothing."""
    if not seed:
        return tuple(np.ones(shape, dtype) for shape in shapes)
    rng, size = np.random.default_rng(seed), ROUNDINGS * np.finfo(dtype).eps
    return tuple((1 + size * rng.uniform(-1, 1, shape)).astype(dtype) for shape in shapes)


def _followed(segment: Mapping[str, Any], valid: int) -> Followed:
    """What ``gradients`` returned, without the padding and without the powers of two."""
    exponent = segment["exponent"][:valid]
    parts = {_delta(key): part[:valid].astype(np.float64) for key, part in segment["deltas"].items()}
    with np.errstate(over="ignore"):
        deltas = {gate: np.ldexp(part, exponent[:, None]) for gate, part in parts.items()}
    logs = {gate: decades(_norms(part), exponent) for gate, part in parts.items()}
    return Followed(decades(segment["norm"][:valid], exponent), deltas, logs)


def _norms(rows: Array) -> Array:
    """(L,) of rows (L, n); squares may not fit where the entries do."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    size = np.where(largest > 0, largest, 1.0)
    return np.asarray(largest * np.linalg.norm(rows / size[:, None], axis=1))


def _joined(first: list[Array], found: list[Followed]) -> Followed:
    def each(name: str) -> dict[str, Array]:
        parts = [getattr(one, name) for one in found]
        return {gate: np.concatenate([part[gate] for part in parts]) for gate in parts[0]}

    norms = np.concatenate(first + [one.log10_norm for one in found])
    return Followed(norms, each("deltas"), each("log10_deltas"))


def _delta(bias: str) -> str:
    """``df`` for ``b_f``, ``d`` for ``b``, ``layer0.dz`` for ``layer0.b_z``."""
    module, dot, name = bias.rpartition(".")
    return f"{module}{dot}d{name[1:].removeprefix('_')}"
