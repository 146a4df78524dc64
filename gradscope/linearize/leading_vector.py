"""The leading singular vectors of a chain by two-sided power iteration: a pass of VJPs, one of JVPs, and on.

One program for all systems of a cell and a shape: parameters, inputs and vectors are its arguments. Chains
are those of ``tangents``; vectors keep the norm 1, what they gain is kept in log10.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradscope.linearize.tangents import TangentSteps, steps_at
from gradscope.linearize.trajectory import forward


@partial(jax.jit, static_argnums=0)
def steps_to_pass(
    tangents: TangentSteps, parameters: Any, inputs: Any, start: Any
) -> tuple[Any, Any, Any, Any]:
    """What the passes need of B sequences (B, T, d): matrices to push and to pull by, steps; and the states.

    start : (B, m) before the first step, or all states (B, T + 1, m) where they are known.
    """
    states = jax.vmap(partial(forward, tangents.cell, parameters))(inputs, start)
    steps = jax.vmap(partial(steps_at, tangents.cell, parameters))(inputs, states[:, :-1])
    shared = [tangents.shared(parameters, back) for back in (False, True)]
    return shared[0], shared[1], tangents.chosen(steps), states


@partial(jax.jit, static_argnums=(0, 1))
def leading_vectors(
    tangents: TangentSteps,
    most: int,
    tolerance: Any,
    push: Any,
    pull: Any,
    steps: Any,
    length: Any,
    first: Any,
    left: Any,
) -> dict[str, Any]:
    """The leading singular vectors of J_length ... J_(first + 1), for every sequence.

    most : passes to and fro; tolerance : decades that further passes may add; length, first : (B,) steps;
    left : (B, m) unit vectors to begin with. Returns ``left``, ``right`` (B, m); ``gain`` (B,), log10 of the
    norm of the product times ``right``; ``missing`` (B,), about how many decades further passes would add;
    ``by_lag`` (B, T), log10 of the norm of ``left`` times the last k steps, the largest that was met: both
    are lower bounds of log10 sigma_1, equal where the vectors are the singular ones.
    """
    one = partial(_leading, tangents, most, tolerance, push, pull)
    found: dict[str, Any] = jax.vmap(one)(steps, length, first, left)
    return found


def _leading(
    tangents: TangentSteps,
    most: int,
    tolerance: Any,
    push: Any,
    pull: Any,
    steps: Any,
    length: Any,
    first: Any,
    left: Any,
) -> dict[str, Any]:
    count = len(jax.tree.leaves(steps)[0])
    maps = tangents.maps

    def to_and_fro(carried: Any) -> Any:
        number, left, _, gain, added, _, by_lag = carried
        right, _, along = _pulled(maps, pull, steps, first, length, left, jnp.full(count, -jnp.inf))
        new, reached = _pushed(maps, push, steps, first, length, right)
        more = jnp.maximum(reached - gain, 0.0)
        # What is left is a geometric series, or larger: its ratio grows to that of the slowest part.
        ratio = jnp.where((number > 1) & (added > 0), jnp.clip(more / added, 0.0, _SLOWEST), _SLOWEST)
        missing = jnp.where(jnp.isneginf(reached), 0.0, _CAUTION * more * ratio / (1 - ratio))
        return number + 1, new, right, reached, more, missing, jnp.maximum(by_lag, along)

    def goes_on(carried: Any) -> Any:
        number, missing = carried[0], carried[5]
        return (number < most) & ((number < _FEWEST) | ~(missing < tolerance))

    infinite = jnp.asarray(jnp.inf, left.dtype)
    start = (0, left, jnp.zeros_like(left), -infinite, infinite, infinite, jnp.full(count, -infinite))
    _, left, right, gain, _, missing, by_lag = lax.while_loop(goes_on, to_and_fro, start)
    return {"left": left, "right": right, "gain": gain, "missing": missing, "by_lag": by_lag}


# Ratio of what two passes add, at most, and what is left beside what a series of that ratio would leave.
_SLOWEST, _CAUTION = 0.999, 10.0
# Passes after which a start that misses the leading vector has been noticed.
_FEWEST = 3


def _pulled(
    maps: Any, shared: Any, steps: Any, first: Any, length: Any, left: Any, by_lag: Any
) -> tuple[Any, Any, Any]:
    """``left`` times steps length - 1 ... first: a unit vector, log10 of its norm, that after k of them."""

    def one(k: Any, carried: Any) -> Any:
        vector, gain, by_lag = carried
        vector, more = _normed(maps.pull(shared, _at(steps, length - 1 - k), vector[:, None])[:, 0])
        return vector, gain + more, by_lag.at[k].set(gain + more)

    return lax.fori_loop(0, length - first, one, (left, jnp.zeros((), left.dtype), by_lag))  # type: ignore[no-any-return]


def _pushed(maps: Any, shared: Any, steps: Any, first: Any, length: Any, right: Any) -> tuple[Any, Any]:
    """Steps first ... length - 1 times ``right``, as a unit vector, and log10 of its norm."""

    def one(t: Any, carried: Any) -> Any:
        vector, more = _normed(maps.push(shared, _at(steps, t), carried[0][:, None])[:, 0])
        return vector, carried[1] + more

    return lax.fori_loop(first, length, one, (right, jnp.zeros((), right.dtype)))  # type: ignore[no-any-return]


@partial(jax.jit, static_argnums=0)
def meeting(
    tangents: TangentSteps, push: Any, pull: Any, steps: Any, length: Any, left: Any, right: Any
) -> Any:
    """Of every sequence and step, (B, T), the cosine of the vectors that reach it from both sides.

    With a rounding of eps at a step sigma_1 is right to eps / cosine. 1 beyond the length.
    """
    return jax.vmap(partial(_meeting, tangents, push, pull))(steps, length, left, right)


def _meeting(
    tangents: TangentSteps, push: Any, pull: Any, steps: Any, length: Any, left: Any, right: Any
) -> Any:
    maps, count = tangents.maps, len(jax.tree.leaves(steps)[0])

    def forth(vector: Any, numbered: Any) -> Any:
        t, step = numbered
        new, _ = _normed(maps.push(push, step, vector[:, None])[:, 0])
        return jnp.where(t < length, new, vector), new

    def back(vector: Any, numbered: Any) -> Any:
        t, step, pushed = numbered
        new, _ = _normed(maps.pull(pull, step, vector[:, None])[:, 0])
        cosine = jnp.where(t < length, jnp.abs(vector @ pushed), 1.0)
        return jnp.where(t < length, new, vector), cosine

    _, after = lax.scan(forth, right, (jnp.arange(count), steps))
    _, cosines = lax.scan(back, left, (jnp.arange(count), steps, after), reverse=True)
    return cosines


def _normed(vector: Any) -> tuple[Any, Any]:
    """A unit vector and log10 of the norm that it had; of zero zero, and minus infinity."""
    size = jnp.abs(vector).max()
    scaled = vector / jnp.where(size > 0, size, 1.0)  # squares may not fit where the entries do
    norm = jnp.linalg.norm(scaled)
    return scaled / jnp.where(norm > 0, norm, 1.0), jnp.log10(size) + jnp.log10(norm)


def _at(steps: Any, t: Any) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, t, keepdims=False), steps)
