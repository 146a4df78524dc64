"""Backpropagation through time over one segment: adjoints that neither vanish nor overflow, gradients.

Greff et al. (arXiv 1503.04069), appendix A.2; Rumelhart, Hinton and Williams 1986 for the sum over steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradscope.cells.cell import Cell
from gradscope.cells.notation import named
from gradscope.cells.units import Parameters
from gradscope.linearize.rests import before_each, nudged, run_at
from gradscope.linearize.tangents import TangentSteps, steps_at
from gradscope.linearize.trajectory import states_along

# Adjoints are columns of size about 1 and a power of two each, which for a zero column is this.
ZERO = -(2**30)

# Inputs (L, d), state (m,) before the first step, how many of the steps are steps of the chain, and the
# derivatives (L, m) of the loss by the state after each step, zero where it is padded; and the state with
# what it has beside levels, None where none comes near one (see ``linearize.rests``). Last ``Factors``.
LossSegment = tuple[Any, Any, Any, Any, Any, Any]
# By which all that a step reads is multiplied, 1 but for runs that are compared: its inputs (L, d), the state
# before it and the adjoint (L, m).
Factors = tuple[Any, Any, Any]
# Columns (m, r) and their exponents (r,).
Columns = tuple[Any, Any]


@partial(jax.jit, static_argnums=0)
def gradients(
    chain: TangentSteps, parameters: Parameters, segment: LossSegment, later: Columns
) -> tuple[Columns, dict[str, Any]]:
    """One segment of the backward pass of one sequence.

    later : what flows into the state after the segment from the steps behind it, one column.

    Returns the same of the state before the segment, and, all but for powers of two:
    ``norm`` (L,) of a_t = dL/ds_t and ``exponent`` (L,); ``deltas`` {bias: (L, n)}, with the same exponents,
    dL/d(pre-activation of its gate), which is the derivative by the bias of that step alone; ``gradients``
    {parameter: its shape}, dL/d(parameter) of these steps together, with the exponent ``top``.
    """
    at, steps, adjoints = _steps(chain, parameters, segment)
    every = jnp.ones_like(adjoints[:, :1])
    at_every_step = steps, adjoints, every, segment[-1][-1], None
    first, (columns, exponents) = _backward(chain, parameters, at_every_step, later, _itself)
    after, exponent = columns[..., 0], exponents[:, 0]
    top = exponent.max()

    def by_biases(parameters: Parameters, x: Any, state: Any, adjoint: Any) -> Any:
        biases = {key: parameters[key] for key in named(parameters, "b")}

        def step(biases: Parameters) -> Any:
            return chain.cell.advance({**parameters, **biases}, x, state)

        return jax.vjp(step, biases)[1](adjoint)[0]

    scaled = jnp.ldexp(after, (exponent - top)[:, None])
    return first, {
        "norm": jnp.linalg.norm(after, axis=1),
        "exponent": exponent,
        "deltas": jax.vmap(partial(run_at, by_biases, parameters))(*at, after),
        "gradients": run_at(partial(by_parameters, chain.cell), parameters, *at, scaled),
        "top": top,
    }


def by_parameters(cell: Cell, parameters: Parameters, inputs: Any, states: Any, adjoints: Any) -> Any:
    """Derivatives by the parameters of the adjoints (L, m) of what L steps make of inputs and states."""

    def run(parameters: Parameters) -> Any:
        return jax.vmap(partial(cell.advance, parameters))(inputs, states)

    return jax.vjp(run, parameters)[1](adjoints)[0]


@partial(jax.jit, static_argnums=0)
def contributions(
    chain: TangentSteps,
    parameters: Parameters,
    directions: Mapping[str, Any],
    segment: LossSegment,
    when: Any,
    later: Columns,
) -> tuple[Columns, Any, Any]:
    """<dL_r/dp of step t alone, D_p> for every loss r, step t and matrix p of ``directions`` {p: D_p}.

    when : (r,), the steps of the segment, counted from 0, whose loss each column follows back; a number
    that is no step for one that begins elsewhere.

    Returns the columns before the segment, the numbers (L, matrices, r), the matrices in alphabetical
    order, and their exponents (L, r).
    """
    at, steps, adjoints = _steps(chain, parameters, segment)
    enters = (jnp.arange(len(adjoints))[:, None] == when).astype(adjoints.dtype)

    def along(name: str) -> Any:
        def moved(parameters: Parameters, inputs: Any, states: Any, direction: Any) -> Any:
            def run(matrix: Any) -> Any:
                return jax.vmap(partial(chain.cell.advance, {**parameters, name: matrix}))(inputs, states)

            return jax.jvp(run, (parameters[name],), (direction,))[1]

        return run_at(moved, parameters, *at, directions[name])

    moved = jnp.stack([along(name) for name in sorted(directions)], axis=1)
    at_every_step = steps, adjoints, enters, segment[-1][-1], moved
    first, (numbers, exponents) = _backward(chain, parameters, at_every_step, later, _against)
    return first, numbers, exponents


def _steps(chain: TangentSteps, parameters: Parameters, segment: LossSegment) -> tuple[Any, Any, Any]:
    """Inputs and states before each step; what the chain's steps need; and adjoints."""
    inputs, start, valid, adjoints, first, (of_inputs, of_states, _) = segment
    # In the place of padding stands the last step once more: its derivatives are finite, and nothing flows.
    there = jnp.minimum(jnp.arange(len(inputs)), valid - 1)
    before = before_each(states_along(chain.cell, parameters, inputs, start, first))
    read = inputs * of_inputs, nudged(before, of_states)
    at = jax.tree.map(lambda every: every[there], read)
    batch = jax.tree.map(lambda leaf: leaf[None], steps_at(chain.cell, parameters, *at))
    return at, jax.tree.map(lambda leaf: leaf[0], chain.chosen(batch)), adjoints


def _backward(
    chain: TangentSteps,
    parameters: Parameters,
    every: Any,
    later: Columns,
    note: Callable[[Columns, Any], Any],
) -> tuple[Columns, Any]:
    """From the last step to the first: a_t = e_t + J_(t+1)^T a_(t+1), and what is noted of every a_t.

    every : of each step what the chain needs, the loss's e_t (m,), the columns it enters, the factors (m,) of
    a_t, and ``note``'s.
    """
    shared, maps = chain.shared(parameters, True), chain.maps

    def one(later: Columns, at: Any) -> tuple[Columns, Any]:
        step, entering, enters, factors, more = at
        block, exponents = _sum(later, renormed(entering[:, None] * enters, jnp.zeros_like(later[1])))
        here = block * factors[:, None], exponents
        return renormed(maps.pull(shared, step, here[0]), here[1]), note(here, more)

    return lax.scan(one, later, every, reverse=True)


def _itself(here: Columns, _: None) -> Columns:
    return here


def _against(here: Columns, vectors: Any) -> Columns:
    return vectors @ here[0], here[1]


def renormed(block: Any, exponents: Any) -> Columns:
    """Columns of largest entry 1/2 to 1, and their exponents."""
    largest = jnp.abs(block).max(axis=0)
    most = int(np.finfo(block.dtype).maxexp) - 1  # beyond, 2^-more would be no number
    more = jnp.clip(jnp.frexp(largest)[1], -most, most)
    return _times(block, -more), jnp.where(largest == 0, ZERO, exponents + more)


def _sum(one: Columns, other: Columns) -> Columns:
    top = jnp.maximum(one[1], other[1])
    return _times(one[0], one[1] - top) + _times(other[0], other[1] - top), top


def _times(block: Any, exponents: Any) -> Any:
    """Columns times powers of two. ``ldexp`` of every entry would take longer than the step itself."""
    return block * jnp.ldexp(jnp.ones_like(block[0]), exponents)
