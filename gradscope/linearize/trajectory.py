"""The forward pass: states kept at checkpoints, recomputed by segment, for a batch over devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradscope.cells.cell import Cell
from gradscope.cells.units import Parameters
from gradscope.compiled_svd.step_arrays import bucket
from gradscope.custom_types import Array
from gradscope.linearize.beside import Parted
from gradscope.linearize.budget import SEGMENT_BYTES
from gradscope.linearize.levels import beside_level
from gradscope.linearize.rests import States, along
from gradscope.linearize.system import System, cast

_AXIS = "batch"
_WHOLE, _SPLIT = PartitionSpec(), PartitionSpec(_AXIS)  # type: ignore[no-untyped-call]


def as_primitives(cell: Cell) -> AbstractContextManager[object]:
    """Within, what a step of units calls is traced as the primitives that it is made of.

    Operators of ``jax.numpy`` are jitted functions, and to trace every one by itself takes a third of what a
    program takes to be traced. A cell without a per-unit form may have loops, which would be unrolled.
    """
    return nullcontext() if cell.units is None else jax.disable_jit()


def forward(cell: Cell, parameters: Parameters, inputs: Any, state: Any) -> Any:
    """States s_0 ... s_T, shape (T + 1, m), of ``inputs`` (T, d) from the initial ``state`` (m,).

    Where ``state`` is all of them already (see ``System.states``), they are these.
    """
    if state.ndim == 2:
        return state

    def step(state: Any, x: Any) -> tuple[Any, Any]:
        with as_primitives(cell):
            new = cell.advance(parameters, x, state)
        return new, new

    _, states = lax.scan(step, state, inputs)
    return jnp.concatenate([state[None], states])


def states_along(
    cell: Cell, parameters: Parameters, inputs: Any, start: Any, first: Parted | None = None
) -> States:
    """The same, with what they have beside levels where ``first`` (m,) says what that before them has."""
    states = forward(cell, parameters, inputs, start)
    return states if first is None else along(cell, parameters, inputs, states, first)


@dataclass(frozen=True)
class Segments:
    """T = ``steps`` cut into ``count`` segments of ``length`` steps; the last may hold fewer."""

    steps: int
    length: int
    count: int

    @classmethod
    def cover(cls, steps: int, step_bytes: int, limit: int = SEGMENT_BYTES) -> Segments:
        """As few segments as hold at most ``limit`` bytes each, of about one length.

        Lengths are rounded up to quarters of an octave (.. 160, 192, 224, 256, 320 ..): what is
        compiled for one T serves its neighbours too.
        """
        longest = max(2, limit // step_bytes)  # a view that leaves out step 1 has a first segment too
        length = bucket(math.ceil(steps / math.ceil(steps / longest)))
        return cls(steps, length, math.ceil(steps / length))

    def first(self, steps: int) -> Segments:
        """Of a sequence that ends sooner: no longer segments, and one length for each octave of T."""
        length = min(self.length, 1 << (steps - 1).bit_length())
        return Segments(steps, length, math.ceil(steps / length))

    def valid(self, i: int) -> int:
        """How many steps of segment i are steps of the chain; the others are padding."""
        return min(self.length, self.steps - i * self.length)


@dataclass(frozen=True)
class Spread:
    """The devices that a batch is spread over, in equal shares."""

    devices: tuple[jax.Device, ...]

    @cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return jax.make_mesh(
            (len(self.devices),), (_AXIS,), devices=self.devices, axis_types=(AxisType.Auto,)
        )

    def put(self, batch: Array) -> Any:
        """Host array (B, ...) on the devices as (B', ...): the last repeated, so that shares are equal."""
        if len(self.devices) == 1:
            return jax.device_put(batch, self.devices[0])
        missing = -len(batch) % len(self.devices)
        batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        return jax.device_put(batch, NamedSharding(self._mesh, _SPLIT))

    def replicate(self, shared: Any) -> Any:
        """A pytree of host arrays, whole on every device."""
        if len(self.devices) == 1:
            return jax.device_put(shared, self.devices[0])
        return jax.device_put(shared, NamedSharding(self._mesh, _WHOLE))

    @cache  # noqa: B019  (few are ever made, and what is compiled for one serves its equals)
    def lift(self, function: Callable[..., Any], *static: Hashable) -> Callable[..., Any]:
        """``function(*static, shared, *sequence)`` of one sequence, compiled for a batch over the devices.

        The result takes ``shared`` as ``replicate`` gives it (any pytree, the parameters for one) and
        arrays (B', ...) as ``put`` does, and returns its leaves as (B', ...). The same function with the
        same ``static`` is compiled once.
        """

        # vmap, on CPU too: the weights are shared, so that 16 matrix-vector products become one product.
        # lax.map took 1.2 to 2.9 times as long (forward pass and blocks of 12 tangents, n = 16 to 256).
        def share(shared: Any, *batch: Any) -> Any:
            return jax.vmap(partial(function, *static, shared))(*batch)

        if len(self.devices) == 1:
            return jax.jit(share)

        def all_shares(shared: Any, *batch: Any) -> Any:
            specs = (_WHOLE, *(_SPLIT for _ in batch))
            # Unchecked: a carry that starts out equal on all devices need not stay so.
            spread = jax.shard_map(share, mesh=self._mesh, in_specs=specs, out_specs=_SPLIT, check_vma=False)
            return spread(shared, *batch)

        return jax.jit(all_shares)


class Trajectory:
    """The states of a batch of sequences, kept where segments begin.

    segments : how T is cut; spread : the devices; parameters : those of the system, on every device; near :
    whether states come near levels (``course``). Call it, and work with what it returns, within
    ``system.running()``.
    """

    def __init__(
        self,
        system: System,
        segments: Segments,
        spread: Spread,
        parameters: Mapping[str, Any] | None = None,
        near: bool = False,
    ) -> None:
        """Take a system, whose inputs are not copied.

        Parameters that ``spread.replicate`` has put on the devices before are not put there again.
        """
        self.cell = system.cell
        self.segments = segments
        self.spread = spread
        self.parameters = spread.replicate(cast(parameters or system.parameters, system.dtype))
        self._system = system
        self._starts = [spread.put(np.asarray(system.state, system.dtype))]
        self.near = near
        self._parted: list[Parted] = []  # states that segments begin with

    def inputs(self, i: int) -> Any:
        """Inputs of segment i on the devices, (B', length, d), zeros where it is padded."""
        here = i * self.segments.length
        valid = self.segments.valid(i)
        part = np.asarray(self._system.inputs[:, here : here + valid], self._system.dtype)
        missing = self.segments.length - valid
        return self.spread.put(np.pad(part, ((0, 0), (0, missing), (0, 0))) if missing else part)

    def start(self, i: int) -> Any:
        """States before segment i, (B', m). Segments before it are run through once, if they were not.

        Where the system has them all, (B', length + 1, m): those before it and after each of its steps.
        """
        if self._system.states is not None:
            return self._held(self._system.states, i)
        while len(self._starts) <= i:
            last = len(self._starts) - 1
            cross = self.spread.lift(_cross, self.cell)
            self._starts.append(cross(self.parameters, self.inputs(last), self._starts[last]))
        return self._starts[i]

    def beside(self, i: int) -> Parted | None:
        """The states before segment i with what they have beside levels; None where none comes near one."""
        if not self.near:
            return None
        if not self._parted:
            first = np.asarray(self._system.state, self._system.dtype)
            self._parted.append(Parted(*map(self.spread.put, beside_level(self.cell, first))))
        while len(self._parted) <= i:
            last = len(self._parted) - 1
            left = self.spread.lift(_after, self.cell)
            given = (self.parameters, self.inputs(last), self.start(last), self._parted[last])
            self._parted.append(left(*given))
        return self._parted[i]

    def _held(self, states: Array, i: int) -> Any:
        here, valid = i * self.segments.length, self.segments.valid(i)
        missing = self.segments.length - valid
        return self.spread.put(
            np.pad(states[:, here : here + valid + 1], ((0, 0), (0, missing), (0, 0)), "edge")
        )

    def valid(self, i: int) -> int:
        """How many steps of segment i are steps of the chain."""
        return self.segments.valid(i)


def _cross(cell: Cell, parameters: Parameters, inputs: Any, state: Any) -> Any:
    """The state after a segment from that before it."""
    return lax.scan(lambda s, x: (cell.advance(parameters, x, s), None), state, inputs)[0]


def _after(cell: Cell, parameters: Parameters, inputs: Any, state: Any, first: Parted) -> Parted:
    """The state after a segment with what it has beside levels, from that before it."""
    last: Parted = jax.tree.map(lambda part: part[-1], states_along(cell, parameters, inputs, state, first))
    return last


def states_of(system: System, devices: Sequence[jax.Device]) -> Array:
    """s_0 ... s_T of every sequence, (B, T + 1, m), in the order in which the cell reads it, in its dtype."""
    segments = Segments.cover(system.steps, 8 * system.batch * system.size)
    with system.running():
        trajectory = Trajectory(system, segments, Spread(tuple(devices[: system.batch])))
        run = trajectory.spread.lift(forward, system.cell)
        found = [np.asarray(system.state[:, None], system.dtype)]
        for i in range(segments.count):
            part = run(trajectory.parameters, trajectory.inputs(i), trajectory.start(i))
            found.append(np.asarray(part)[: system.batch, 1 : 1 + trajectory.valid(i)])
    return np.concatenate(found, axis=1)


def outputs(system: System) -> Array:
    """h_1 ... h_T (B, T, n) of a system with its states, in the order of the sequences if backward too."""
    assert system.states is not None
    return system.as_given(system.states[:, 1:, system.output].astype(np.float64))
