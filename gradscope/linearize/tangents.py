"""One step of a cell as what it does to tangents and to cotangents (JVP, VJP): no Jacobian is formed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.notation import is_recurrent
from gradscope.cells.units import Parameters
from gradscope.linearize.beside import Parted
from gradscope.linearize.jacobians import slopes
from gradscope.linearize.rests import States, before_each, run_at
from gradscope.linearize.trajectory import states_along


class StepMaps(Hashable, Protocol):
    """How a step acts on blocks of tangents and cotangents.

    Hashable: chains for which it is the same share what is compiled.
    """

    def push(self, shared: Any, step: Any, block: Any) -> Any:
        """J V of one step, for V (m, b)."""

    def pull(self, shared: Any, step: Any, block: Any) -> Any:
        """J^T U of one step, for U (m, b)."""


@dataclass(frozen=True)
class UnitMaps:
    """Blocks through a step of units.

    components : parts of the state; hidden : which of them the recurrent matrices read; others : which
    the other paths read, one by one.
    """

    components: int
    hidden: int
    others: tuple[int, ...]

    def push(self, shared: Any, step: Any, block: Any) -> Any:
        """J V."""
        parts = self.parts(block)
        recurrent, own = step
        products = (shared @ parts[self.hidden]).reshape(-1, *parts.shape[1:])
        read = [*products, *(parts[i] for i in self.others)]
        slopes = [*recurrent, *own]

        def written(i: int) -> Any:
            return sum(slope[i, :, None] * r for slope, r in zip(slopes, read, strict=True))

        return jnp.concatenate([written(i) for i in range(len(parts))])

    def pull(self, shared: Any, step: Any, block: Any) -> Any:
        """J^T U."""
        parts = self.parts(block)
        recurrent, own = step
        written = sum(recurrent[:, i, :, None] * part for i, part in enumerate(parts))
        new = [jnp.zeros_like(part) for part in parts]
        new[self.hidden] = shared @ written.reshape(-1, block.shape[1])
        for slope, i in zip(own, self.others, strict=True):
            new[i] += (slope[..., None] * parts).sum(0)
        return jnp.concatenate(new)

    def parts(self, block: Any) -> Any:
        """(m, b) as (components, n, b)."""
        return block.reshape(self.components, -1, block.shape[1])


class TangentSteps(Hashable, Protocol):
    """The steps of the chain that keeps the paths ``kept`` of a cell, each J the sum of theirs.

    Hashable: what is compiled depends on it.
    """

    def size(self, state: int) -> int:
        """Size of the chain's own state, of that of the cell."""

    def shared(self, parameters: Parameters, back: bool) -> Any:
        """What all steps need to push, or if ``back`` to pull."""

    @property
    def cell(self) -> Cell:
        """Whose steps they are."""

    @property
    def diagonal(self) -> bool:
        """Whether every step of the chain is a diagonal matrix."""

    def chosen(self, steps: Any) -> Any:
        """What each step of this chain needs, of what ``every_step`` returned for a batch."""

    @property
    def maps(self) -> StepMaps:
        """How blocks go through a step."""

    def by_path(self, shared: Any, step: Any, cotangent: Any, tangent: Any) -> Any:
        """b^T J_g a of one step for every kept path g, (paths,); b and a are (m,)."""


def tangents(cell: Cell, kept: Sequence[str], component: int | None = None, hidden: int = 0) -> TangentSteps:
    """The chain of the paths ``kept`` of a cell (none for one that names none).

    component : the part of the state that the chain stays in, as a path's own does, of a cell with
        ``hidden`` units; None is all of it.
    """
    if cell.units is None:
        part = None if component is None else list(cell.extents(hidden).values())[component]
        return JvpSteps(cell, tuple(kept), part and (part.start, part.stop))
    return UnitSteps(cell, tuple(kept), component)


def tangents_without(cell: Cell, kept: Sequence[str], path: str) -> TangentSteps:
    """The chain of the paths ``kept`` but for one; what is compiled is the same for each."""
    if cell.units is None:
        return WeighedSteps(cell, tuple(kept), without=path)
    return UnitSteps(cell, tuple(kept), without=path)


@dataclass(frozen=True)
class JvpSteps:
    """By ``jax.jvp`` and ``jax.vjp`` of the cell's step with respect to its kept copies of the state."""

    cell: Cell
    kept: tuple[str, ...]
    part: tuple[int, int] | None = None  # a slice has no hash before Python 3.12
    diagonal = False

    def size(self, state: int) -> int:
        """All of it, or a component's."""
        return state if self.part is None else self.part[1] - self.part[0]

    def shared(self, parameters: Parameters, back: bool) -> Any:
        """The parameters."""
        return parameters

    def chosen(self, steps: Any) -> Any:
        """All of it."""
        return steps

    @property
    def maps(self) -> StepMaps:
        """Itself."""
        return self

    def push(self, shared: Any, step: Any, block: Any) -> Any:
        """J V."""

        def moved(parameters: Parameters, x: Any, state: Any, v: Any) -> Any:
            function = partial(self._step, parameters, x, state)
            return self._own(jax.jvp(function, (state,), (self._whole(v, state),))[1])

        return run_at(jax.vmap(moved, (None, None, None, 1), 1), shared, *step, block)

    def pull(self, shared: Any, step: Any, block: Any) -> Any:
        """J^T U."""

        def pulled(parameters: Parameters, x: Any, state: Any, u: Any) -> Any:
            _, transposed = jax.vjp(partial(self._step, parameters, x, state), state)
            return self._own(transposed(self._whole(u, state))[0])

        return run_at(jax.vmap(pulled, (None, None, None, 1), 1), shared, *step, block)

    def by_path(self, shared: Any, step: Any, cotangent: Any, tangent: Any) -> Any:
        """b^T J_g a, a jvp for each path's copy."""
        each = [JvpSteps(self.cell, (path,)) for path in self.kept] or [self]
        return jnp.stack([cotangent @ one.push(shared, step, tangent[:, None])[:, 0] for one in each])

    def _step(self, parameters: Parameters, x: Any, state: Any, own: Any) -> Any:
        """The new state, if that before it is ``own`` in the kept copies and as it was in the others."""
        if not self.cell.paths:
            return self.cell.step(parameters, x, own)
        return self.cell.step(parameters, x, self.cell.copies(state) | dict.fromkeys(self.kept, own))

    def _own(self, state: Any) -> Any:
        return state if self.part is None else state[slice(*self.part)]

    def _whole(self, own: Any, state: Any) -> Any:
        """As large as the state, zero beyond the chain's own."""
        if self.part is None:
            return own
        low, high = self.part
        return jnp.pad(own, (low, len(state) - high))


@dataclass(frozen=True)
class WeighedMaps:
    """Blocks through a step whose every path has a weight of its own there."""

    cell: Cell
    kept: tuple[str, ...]

    def push(self, shared: Any, step: Any, block: Any) -> Any:
        """J V."""
        x, before, present = step

        def moved(parameters: Parameters, x: Any, state: Any, present: Any, v: Any) -> Any:
            tangents = {path: weight * v for path, weight in self._weights(present).items()}
            function, copies = partial(self.cell.step, parameters, x), self.cell.copies(state)
            return jax.jvp(function, (copies,), (tangents,))[1]

        return run_at(jax.vmap(moved, (*[None] * 4, 1), 1), shared, x, before, present, block)

    def pull(self, shared: Any, step: Any, block: Any) -> Any:
        """J^T U."""
        x, before, present = step

        def pulled(parameters: Parameters, x: Any, state: Any, present: Any, u: Any) -> Any:
            _, transposed = jax.vjp(partial(self.cell.step, parameters, x), self.cell.copies(state))
            (found,) = transposed(u)
            return sum(weight * found[path] for path, weight in self._weights(present).items())

        return run_at(jax.vmap(pulled, (*[None] * 4, 1), 1), shared, x, before, present, block)

    def _weights(self, present: Any) -> dict[str, Any]:
        """Of every path of the cell, 0 of those that are not kept."""
        return dict.fromkeys(self.cell.paths, jnp.zeros_like(present[0])) | dict(
            zip(self.kept, present, strict=True)
        )


@dataclass(frozen=True)
class WeighedSteps(JvpSteps):
    """The same with a weight of every path, which are steps of their own: zero of the one ``without``."""

    without: str = ""

    @property
    def maps(self) -> StepMaps:
        """The same whichever path is left out."""
        return WeighedMaps(self.cell, self.kept)

    def chosen(self, steps: Any) -> Any:
        """With the weights (B, L, paths)."""
        x, before = steps
        present = np.array([path != self.without for path in self.kept], x.dtype)
        before = jax.tree.map(lambda part: part[:, : x.shape[1]], before)
        return x, before, jnp.broadcast_to(present, (*x.shape[:2], len(present)))


@dataclass(frozen=True)
class UnitSteps:
    """For cells of units, J = diag + sum over gates of diag(d_g) R_g: one product with all R_g, stacked.

    Half the time of a jvp, which evaluates the gates anew (LSTM, n = 256, 16 columns).

    without : of the kept a path whose slopes are taken to be zero, "" none.
    """

    cell: Cell
    kept: tuple[str, ...]
    component: int | None = None
    without: str = ""

    def size(self, state: int) -> int:
        """All of it, or a component's."""
        return state if self.component is None else state // len(self.cell.components)

    def shared(self, parameters: Parameters, back: bool) -> Any:
        """The kept recurrent matrices one above the other, (paths n, n), or transposed.

        XLA transposes a factor of a product anew at every step, which took twice as long.
        """
        like = parameters[self._every_recurrent[0]]
        matrices = _stacked(parameters, self._recurrent, like).reshape(-1, len(like))
        return matrices.T if back else matrices

    def chosen(self, steps: Any) -> Any:
        """Slopes (B, L, paths, components, n): of the recurrent paths, and of the others."""
        every = range(len(self.cell.components)) if self.component is None else [self.component]
        return tuple(
            _take(steps, self._numbers(paths), np.array(every), self._present(paths, steps.dtype))
            for paths in (self._recurrent, self._others)
        )

    def _present(self, paths: Sequence[str], dtype: Any) -> Any:
        return np.array([path != self.without for path in paths], dtype)

    def _numbers(self, paths: Sequence[str]) -> Any:
        return np.array([self.cell.paths.index(path) for path in paths], int)

    @property
    def maps(self) -> UnitMaps:
        """The same for all chains of one path with a recurrent matrix."""
        count = 1 if self.component is not None else len(self.cell.components)
        return UnitMaps(count, self._hidden, tuple(map(self._reads, self._others)))

    def by_path(self, shared: Any, step: Any, cotangent: Any, tangent: Any) -> Any:
        """b^T J_g a."""
        a, b = (self.maps.parts(vector[:, None])[..., 0] for vector in (tangent, cotangent))
        recurrent, own = step
        carried = ((recurrent * b).sum(1) * (shared @ a[self._hidden]).reshape(-1, a.shape[1])).sum(1)
        found = dict(zip(self._recurrent, carried, strict=True))
        for slope, path in zip(own, self._others, strict=True):
            found[path] = ((slope * b).sum(0) * a[self._reads(path)]).sum()
        return jnp.stack([found[path] for path in self.kept])

    @property
    def diagonal(self) -> bool:
        """A carousel, a carry or a peephole alone."""
        return self.component is not None and not self._recurrent

    @property
    def _every_recurrent(self) -> tuple[str, ...]:
        return tuple(path for path in self.cell.paths if is_recurrent(path))

    @property
    def _recurrent(self) -> tuple[str, ...]:
        return tuple(path for path in self.kept if path in self._every_recurrent)

    @property
    def _others(self) -> tuple[str, ...]:
        return tuple(path for path in self.kept if path not in self._recurrent)

    @property
    def _hidden(self) -> int:
        return self._reads(self._every_recurrent[0])

    def _reads(self, path: str) -> int:
        """Index, in the chain's own state, of the component that a path reads."""
        return 0 if self.component is not None else self.cell.source(path) or 0


def _stacked(arrays: Mapping[str, Any], names: Sequence[str], like: Any) -> Any:
    """The named arrays along a new first axis, of length 0 if there are none; on the host where they are."""
    of: Any = np if isinstance(like, np.ndarray) else jnp
    return of.stack([arrays[name] for name in names]) if names else of.zeros((0, *like.shape), like.dtype)


def every_step(
    cell: Cell, parameters: Parameters, inputs: Any, start: Any, first: Parted | None = None
) -> Any:
    """What the steps of any chain of a cell need, from inputs (L, d) and the state (m,) before them.

    Slopes of every path, (L, paths, components, n), or inputs and states before the steps. first : see
    ``states_along``.
    """
    states = states_along(cell, parameters, inputs, start, first)
    return steps_at(cell, parameters, inputs, before_each(states))


def steps_at(cell: Cell, parameters: Parameters, inputs: Any, before: States) -> Any:
    """The same from the states (L, m) before the steps."""
    if cell.units is None:
        return inputs, before

    def paths(parameters: Parameters, x: Any, state: Any) -> dict[str, Any]:
        return slopes(cell, parameters, x, state)[0]

    found = jax.vmap(partial(run_at, paths, parameters))(inputs, before)
    return jnp.stack([found[path] for path in cell.paths], axis=1)


@jax.jit
def _take(steps: Any, paths: Any, components: Any, present: Any) -> Any:
    return steps[:, :, paths][:, :, :, components] * present[:, None, None]
