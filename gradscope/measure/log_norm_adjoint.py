"""The derivative of a chain's log norm by everything that its steps are made of: one pass forward, one back.

With sigma = b_T^T J_T ... J_1 a_0, a_t = J_t a_(t-1) and b_(t-1) = J_t^T b_t, let
phi_t(s, theta) = b_t^T J_t(s, theta) a_(t-1) / sigma, which is 1 along the trajectory. Then
d log sigma / d theta = sum_t [d phi_t / d theta + p_t^T dF_t / d theta], where
p_T = 0, p_(t-1) = d phi_t / ds + (dF_t/ds)^T p_t is the adjoint of the trajectory: O(T n^2), no Jacobian is
formed. Of k columns a and b the same holds of log det(b_t^T a_t), the sum of k logarithms of singular values,
with phi_t = tr [(b_t^T J_t a_(t-1))^-1 b_t^T J_t(s, theta) a_(t-1)].
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradscope.cells.units import Parameters
from gradscope.linearize.beside import Parted
from gradscope.linearize.rests import before_each, run_at
from gradscope.linearize.tangents import JvpSteps
from gradscope.linearize.trajectory import states_along


class Span(NamedTuple):
    """Orthonormal columns (m, k), and the logarithm of the volume that they stand for."""

    block: Any
    log: Any


class Stretch(NamedTuple):
    """A segment of L steps: inputs (L, d), states (L, m) and columns before each, which are steps.

    States are ``Parted`` where they come near levels.
    """

    inputs: Any
    before: Any
    columns: Span
    there: Any


class Later(NamedTuple):
    """What flows back into the state after a segment, and what was summed behind it.

    columns : b_t; adjoint : p_t (m,); direct, through : {parameter: its shape}, sums over the later steps of
    d phi_t / d theta and of p_t^T dF_t / d theta.
    """

    columns: Span
    adjoint: Any
    direct: Parameters
    through: Parameters


@partial(jax.jit, static_argnums=0)
def pushed(
    chain: JvpSteps,
    parameters: Parameters,
    inputs: Any,
    start: Any,
    valid: Any,
    columns: Span,
    first: Parted | None,
) -> tuple[Span, Stretch]:
    """Columns after a segment of ``valid`` steps and padding, and the segment with all before its steps.

    first : see ``states_along``.
    """
    number = jnp.arange(len(inputs))
    # In the place of padding stands the last step once more: its derivatives are finite.
    at, there = jnp.minimum(number, valid - 1), number < valid
    states = before_each(states_along(chain.cell, parameters, inputs, start, first))
    before = jax.tree.map(lambda part: part[at], states)
    inputs = inputs[at]

    def one(columns: Span, step: Any) -> tuple[Span, Span]:
        x, state, there = step
        new = _orthonormal(chain.push(parameters, (x, state), columns.block), columns.log)
        return _chosen(there, new, columns), columns

    end, every = lax.scan(one, columns, (inputs, before, there))
    return end, Stretch(inputs, before, every, there)


@partial(jax.jit, static_argnums=0)
def pulled(chain: JvpSteps, parameters: Parameters, steps: Stretch, columns: Span, losses: Any) -> Span:
    """A column of the transposed chain before a segment, from that after it; losses : as below."""

    def one(columns: Span, at: Any) -> tuple[Span, None]:
        x, state, there, loss = at
        back = _joined(columns, loss)
        new = _orthonormal(chain.pull(parameters, (x, state), back.block), back.log)
        return _chosen(there, new, columns), None

    numbered = steps.inputs, steps.before, steps.there, losses
    return lax.scan(one, columns, numbered, reverse=True)[0]


@partial(jax.jit, static_argnums=(0, 1))
def differentiated(
    chain: JvpSteps,
    every: bool,
    parameters: Parameters,
    steps: Stretch,
    losses: Any,
    whole: Any,
    held: Any,
    later: Later,
) -> tuple[Later, dict[str, Any]]:
    """One segment of the pass back.

    every : whether ``losses`` (L, m), derivatives of a loss by the state after each step, join the column on
        its way; the norm is then that of what arrives before the first step, whose logarithm is ``whole``.
    held : (L,), True where the trajectory before a step does not answer to changes.

    Returns what flows back before the segment, and of every step the size of p, log sigma by b_t^T a_t, which
    is one number for all t, and the cosine of the angle between b_t and a_t.
    """

    def one(later: Later, at: Any) -> tuple[Later, Any]:
        step, loss, hold = at
        columns = _joined(later.columns, loss) if every else later.columns
        new, pairing, moved = _stepped_back(chain, parameters, step, columns, later, whole if every else None)
        size = jnp.linalg.norm(new.adjoint)
        new = new._replace(adjoint=jnp.where(hold, 0.0, new.adjoint))
        log = jnp.linalg.slogdet(pairing)[1] + columns.log + step.columns.log
        return _chosen(step.there, new, later), (size, log, _cosine(columns.block, moved))

    first, told = lax.scan(one, later, (steps, losses, held), reverse=True)
    return first, dict(zip(("adjoint", "log", "cosine"), told, strict=True))


def _stepped_back(
    chain: JvpSteps, parameters: Parameters, step: Stretch, columns: Span, later: Later, whole: Any
) -> tuple[Later, Any, Any]:
    """What flows back before a step, b_t^T J_t a_(t-1) and J_t a_(t-1)."""

    def derivatives(
        parameters: Parameters, x: Any, state: Any, block: Any, later: Span, adjoint: Any, whole: Any
    ) -> Any:
        def both(parameters: Parameters, state: Any, block: Any) -> tuple[Any, Any]:
            # The chain's step reads the state, where it is linearised, by all of its paths.
            moved = chain.push(parameters, (x, state), block)
            return chain.cell.advance(parameters, x, state), moved

        (_, moved), back = jax.vjp(both, parameters, state, block)
        pairing = later.block.T @ moved
        if whole is None:
            factor = later.block @ jnp.linalg.inv(pairing).T
        else:
            factor = later.block * jnp.exp(later.log - whole)
        # Together, by one program: phi's part, that of the trajectory, and b_(t-1).
        nothing = jnp.zeros_like(adjoint), jnp.zeros_like(factor)
        found = jax.vmap(back)(
            (
                jnp.stack([nothing[0], adjoint, nothing[0]]),
                jnp.stack([factor, nothing[1], later.block]),
            )
        )
        return moved, pairing, found

    more = step.columns.block, columns, later.adjoint, None if whole is None else whole - step.columns.log
    moved, pairing, (by_parameters, by_state, by_block) = run_at(
        derivatives, parameters, step.inputs, step.before, *more
    )
    new = Later(
        _orthonormal(by_block[2], columns.log),
        by_state[0] + by_state[1],
        jax.tree.map(lambda summed, each: summed + each[0], later.direct, by_parameters),
        jax.tree.map(lambda summed, each: summed + each[1], later.through, by_parameters),
    )
    return new, pairing, moved


def _orthonormal(block: Any, log: Any) -> Span:
    """The same span, and its volume with what it had before; one column keeps its direction."""
    largest = jnp.abs(block).max(axis=0)
    largest = jnp.where(largest > 0, largest, 1.0)  # squares may not fit where the entries do
    if block.shape[1] == 1:  # a quotient keeps the digits of small entries, which reflections do not
        size = jnp.linalg.norm(block / largest)
        unit = block / largest / jnp.where(size > 0, size, 1.0)
        return Span(unit, log + jnp.log(size) + jnp.log(largest[0]))
    q, r = jnp.linalg.qr(block / largest)
    sizes = jnp.diagonal(r)
    signed = q * jnp.where(sizes < 0, -1.0, 1.0).astype(q.dtype)
    return Span(signed, log + (jnp.log(jnp.abs(sizes)) + jnp.log(largest)).sum())


def _joined(columns: Span, loss: Any) -> Span:
    """A column with what a loss adds to it, as a column of norm 1."""
    joins = jnp.any(loss != 0)
    top = jnp.where(joins, jnp.maximum(columns.log, 0.0), columns.log)
    new = columns.block[:, 0] * jnp.exp(columns.log - top) + loss * jnp.exp(-top) * joins
    found = _orthonormal(new[:, None], top)
    chosen: Span = _chosen(joins, found, columns)
    return chosen


def _cosine(back: Any, moved: Any) -> Any:
    """Of the largest angle between two spans; back has orthonormal columns."""
    span = _orthonormal(moved, 0.0).block
    return jnp.linalg.svd(back.T @ span, compute_uv=False)[-1]


def _chosen(condition: Any, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def no_later(parameters: Parameters, columns: Span) -> Later:
    """What flows into the last state from behind it but for the columns: nothing."""
    zeros = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), dict(parameters))
    block = columns.block
    return Later(columns, np.zeros(len(block), block.dtype), zeros, dict(zeros))
