"""The leading singular vectors of a chain by two-sided power iteration: a pass of VJPs, one of JVPs, and on.

One program for all systems of a cell and a shape: parameters, inputs and vectors are its arguments. Chains
are those of ``tangents``; vectors keep the norm 1, what they gain is kept in log10.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradscope.cells.cell import Cell
from gradscope.linearize.beside import Parted
from gradscope.linearize.levels import comes_near, may_cancel
from gradscope.linearize.rests import before_each
from gradscope.linearize.tangents import TangentSteps, steps_at
from gradscope.linearize.trajectory import forward, states_along

# Ratio of what two passes add, at most, and what is left beside what a series of that ratio would leave.
_SLOWEST, _CAUTION = 0.999, 10.0
# Passes after which a start that misses the leading vector has been noticed.
_FEWEST = 3


class StepsToPass(NamedTuple):
    """What passes go through, of P systems of B sequences.

    push, pull : matrices (P, ...) to push and to pull by; steps : what each step has, leaves (P, B, T, ...).
    """

    push: Any
    pull: Any
    steps: Any

    @property
    def total(self) -> int:
        """Steps T."""
        return int(jax.tree.leaves(self.steps)[0].shape[2])


@partial(jax.jit, static_argnums=0)
def steps_to_pass(
    tangents: TangentSteps, parameters: Any, inputs: Any, start: Any, first: Parted | None = None
) -> tuple[StepsToPass, Any, Any]:
    """What passes go through, all states, and (P, B) whether they come near levels.

    parameters : with an axis P before their own; inputs : (P, B, T, d); start : (P, B, m) before the first
    step, or all states (P, B, T + 1, m) where they are known; first : that before the first step, with what
    it has beside levels, where states come near these. All that is returned begins with an axis P.
    """
    found: tuple[StepsToPass, Any, Any] = jax.vmap(partial(_steps_of, tangents))(
        parameters, inputs, start, first
    )
    return found


def _steps_of(tangents: TangentSteps, parameters: Any, inputs: Any, start: Any, first: Any) -> Any:
    cell = tangents.cell
    states = jax.vmap(partial(forward, cell, parameters))(inputs, start)

    def steps_of(inputs: Any, states: Any, first: Any) -> Any:
        known = states_along(cell, parameters, inputs, states, first)
        return steps_at(cell, parameters, inputs, before_each(known))

    steps = jax.vmap(steps_of)(inputs, states, first)
    near = jax.vmap(partial(_near, cell, parameters))(inputs, states)
    push, pull = (tangents.shared(parameters, back) for back in (False, True))
    return StepsToPass(push, pull, tangents.chosen(steps)), states, near


def _near(cell: Cell, parameters: Any, inputs: Any, states: Any) -> Any:
    """Whether states come near levels."""
    if not comes_near(cell):
        return jnp.zeros((), bool)
    gates = jax.vmap(partial(cell.gates, parameters))(inputs, states[:-1]) if cell.gates else {}
    return may_cancel(cell, states, gates)


@partial(jax.jit, static_argnums=(0, 1))
def leading_vectors(
    tangents: TangentSteps,
    most: int,
    tolerance: Any,
    chain: StepsToPass,
    length: Any,
    first: Any,
    left: Any,
) -> dict[str, Any]:
    """The leading singular vectors of J_length ... J_(first + 1), for every sequence of every system.

    most : passes to and fro; tolerance : decades that further passes may add; length, first : (P, B) steps;
    left : (P, B, m) unit vectors to begin with. Returns ``left``, ``right`` (P, B, m); ``gain`` (P, B), log10
    of the norm of the product times ``right``; ``missing`` (P, B), about how many decades further passes
    would add; ``by_lag`` (P, B, T), log10 of the norm of ``left`` times the last k steps, the largest that
    was met: both are lower bounds of log10 sigma_1, equal where the vectors are the singular ones.

    What has settled stays as it is while others do not: no chain depends on those beside it.
    """
    span = _Span(length, first, chain.total)

    def to_and_fro(carried: Any) -> Any:
        number, found = carried
        right, along = _pulled(tangents, chain, span, found["left"])
        new, reached = _pushed(tangents, chain, span, right)
        more = jnp.maximum(reached - found["gain"], 0.0)
        # What is left is a geometric series, or larger: its ratio grows to that of the slowest part.
        known = (number > 1) & (found["added"] > 0)
        ratio = jnp.where(known, jnp.clip(more / found["added"], 0.0, _SLOWEST), _SLOWEST)
        missing = jnp.where(jnp.isneginf(reached), 0.0, _CAUTION * more * ratio / (1 - ratio))
        passed = {"left": new, "right": right, "gain": reached, "added": more, "missing": missing}
        passed["by_step"] = jnp.maximum(found["by_step"], along)
        open_ = unsettled(number, found)
        return number + 1, {name: _where(open_, passed[name], found[name]) for name in found}

    def unsettled(number: Any, found: Any) -> Any:
        return (number < _FEWEST) | ~(found["missing"] < tolerance)

    def goes_on(carried: Any) -> Any:
        return (carried[0] < most) & unsettled(*carried).any()

    infinite = jnp.full(length.shape, jnp.inf, left.dtype)
    start = {"left": left, "right": jnp.zeros_like(left), "gain": -infinite, "added": infinite}
    start |= {"missing": infinite, "by_step": jnp.full((*length.shape, span.steps), -jnp.inf, left.dtype)}
    _, found = lax.while_loop(goes_on, to_and_fro, (0, start))
    found["by_lag"] = span.by_lag(found.pop("by_step"))
    del found["added"]
    return found


class _Span:
    """Which steps of each chain, (P, B), are passed through: first ... length - 1, of ``steps`` in all."""

    def __init__(self, length: Any, first: Any, steps: int) -> None:
        self.length, self.first, self.steps = length, first, steps
        # One loop for all: a step that each chain takes at its own time would have to be gathered.
        self.low, self.high = first.min(), length.max()

    def holds(self, t: Any) -> Any:
        """Whether step t is one of them."""
        return (self.first <= t) & (t < self.length)

    def by_lag(self, by_step: Any) -> Any:
        """(P, B, T) by the step that was reached last as by lag."""
        steps = self.length[..., None] - 1 - jnp.arange(self.steps)
        found = jnp.take_along_axis(by_step, jnp.maximum(steps, 0), axis=-1)
        return jnp.where(steps >= self.first[..., None], found, -jnp.inf)


def _pulled(tangents: TangentSteps, chain: StepsToPass, span: _Span, left: Any) -> tuple[Any, Any]:
    """``left`` times its steps from the last to the first: unit vectors, log10 of the norm after each."""
    pull = _of_each(tangents.maps.pull)

    def one(k: Any, carried: Any) -> Any:
        t = span.high - 1 - k + span.low
        vector, gain, by_step = carried
        new, more = _normed(pull(chain.pull, _at(chain.steps, t), vector))
        vector, gain = _where(span.holds(t), new, vector), jnp.where(span.holds(t), gain + more, gain)
        return vector, gain, lax.dynamic_update_index_in_dim(by_step, gain, t, 2)

    infinite = jnp.full((*span.length.shape, span.steps), -jnp.inf, left.dtype)
    start = (left, jnp.zeros(span.length.shape, left.dtype), infinite)
    vector, _, by_step = lax.fori_loop(span.low, span.high, one, start)
    return vector, by_step


def _pushed(tangents: TangentSteps, chain: StepsToPass, span: _Span, right: Any) -> tuple[Any, Any]:
    """Its steps from the first to the last times ``right``, as unit vectors, and log10 of their norms."""
    push = _of_each(tangents.maps.push)

    def one(t: Any, carried: Any) -> Any:
        vector, gain = carried
        new, more = _normed(push(chain.push, _at(chain.steps, t), vector))
        return _where(span.holds(t), new, vector), jnp.where(span.holds(t), gain + more, gain)

    start = (right, jnp.zeros(span.length.shape, right.dtype))
    return lax.fori_loop(span.low, span.high, one, start)  # type: ignore[no-any-return]


@partial(jax.jit, static_argnums=0)
def meeting(tangents: TangentSteps, chain: StepsToPass, length: Any, left: Any, right: Any) -> Any:
    """Of every sequence and step, (P, B, T), the cosine of the vectors that reach it from both sides.

    With a rounding of eps at a step sigma_1 is right to eps / cosine. 1 beyond the length.
    """
    maps, (push, pull, steps) = tangents.maps, chain

    def forth(vector: Any, t: Any) -> Any:
        new, _ = _normed(_of_each(maps.push)(push, _at(steps, t), vector))
        return _where(t < length, new, vector), new

    def back(vector: Any, numbered: Any) -> Any:
        t, pushed = numbered
        new, _ = _normed(_of_each(maps.pull)(pull, _at(steps, t), vector))
        cosine = jnp.where(t < length, jnp.abs((vector * pushed).sum(-1)), 1.0)
        return _where(t < length, new, vector), cosine

    numbers = jnp.arange(chain.total)
    _, after = lax.scan(forth, right, numbers)
    _, cosines = lax.scan(back, left, (numbers, after), reverse=True)
    return jnp.moveaxis(cosines, 0, -1)


def _of_each(through: Any) -> Any:
    """A step of ``StepMaps`` for the vectors (P, B, m) of all systems, each with what is its own."""

    def one(shared: Any, step: Any, vector: Any) -> Any:
        return through(shared, step, vector[:, None])[:, 0]

    return jax.vmap(jax.vmap(one, (None, 0, 0)))


def _normed(vector: Any) -> tuple[Any, Any]:
    """Unit vectors and log10 of the norms that they had; of zero zero, and minus infinity."""
    size = jnp.abs(vector).max(-1, keepdims=True)
    scaled = vector / jnp.where(size > 0, size, 1.0)  # squares may not fit where the entries do
    norm = jnp.linalg.norm(scaled, axis=-1, keepdims=True)
    return scaled / jnp.where(norm > 0, norm, 1.0), (jnp.log10(size) + jnp.log10(norm))[..., 0]


def _at(steps: Any, t: Any) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, t, 2, keepdims=False), steps)


def _where(chosen: Any, one: Any, other: Any) -> Any:
    """Of (P, B, ...), by what is chosen of (P, B)."""
    return jnp.where(chosen.reshape(*chosen.shape, *[1] * (one.ndim - chosen.ndim)), one, other)
