"""One-step Jacobians, split by path: the definition by ``jax.jacrev``, and the fast per-unit form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradscope.cells.cell import Cell
from gradscope.cells.factors import factor_key
from gradscope.cells.notation import NAMELESS, key
from gradscope.cells.units import Parameters
from gradscope.linearize.trajectory import as_primitives, forward

# The definition keeps one dense Jacobian per path and step; taking this many steps at a time bounds
# what XLA needs on top of the result.
_STEPS_AT_ONCE = 32


@partial(jax.jit, static_argnums=0)
def linearize(cell: Cell, parameters: Parameters, inputs: Any, state: Any) -> dict[str, Any]:
    """The forward pass and its one-step Jacobians, for one sequence.

    inputs : (T, d); state : (m,), the state before the first step.

    Returns ``states`` (T + 1, m), ``gates`` {gate: (T, n)} and ``paths`` {path: array}:
    slopes of shape (T, components, n) where the cell has a per-unit form, else Jacobians (T, m, m). Of a
    stack, {layer: {"own": its paths, "input": derivatives by its input, where it reads others}}.
    """
    if cell.units is not None and state.ndim == 1:
        return _in_one_pass(cell, parameters, inputs, state)
    states = forward(cell, parameters, inputs, state)
    if cell.members:
        paths, gates = _of_members(cell, parameters, inputs, states)
    else:
        paths, _, gates = _at(cell, parameters, inputs, states[:-1])
    return {"states": states, "paths": paths, "gates": gates}


def _in_one_pass(cell: Cell, parameters: Parameters, inputs: Any, state: Any) -> dict[str, Any]:
    """Of a cell of units, whose derivatives have the new state beside them: traced and compiled once."""

    def step(state: Any, x: Any) -> tuple[Any, Any]:
        paths, _, gates, new = slopes(cell, parameters, x, state)
        state = new.reshape(-1)
        return state, (state, paths, gates)

    _, (states, paths, gates) = lax.scan(step, state, inputs)
    return {"states": jnp.concatenate([state[None], states]), "paths": paths, "gates": gates}


def _of_members(
    cell: Cell, parameters: Parameters, inputs: Any, states: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of every layer of a stack, what ``_at`` returns at its own inputs."""
    paths: dict[str, Any] = {}
    gates: dict[str, Any] = {}
    outputs: dict[int, Any] = {}
    for j, member in enumerate(cell.members):
        extent = cell.extents(0)[member.name]
        given = member.input(inputs, outputs)
        one = (member.cell, member.own(parameters), given)
        own, entering, values = _at(*one, states[:-1, extent])
        reads = any(isinstance(read, int) for read in member.reads)
        paths[member.name] = {"own": own, "input": entering if reads else {}}
        gates |= {f"{member.name}.{gate}": value for gate, value in values.items()}
        outputs[j] = states[1:, member.output_in(extent.start)]
    return paths, gates


def _at(
    cell: Cell, parameters: Parameters, inputs: Any, before: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Of inputs (T, d) and the states (T, m) before: paths, derivatives by the input, and gates.

    The derivatives are slopes by the pre-activations that it enters, or Jacobians (T, m, d), "input".
    """
    if cell.units is not None:
        paths, input_paths, gates, _ = jax.vmap(partial(slopes, cell, parameters))(inputs, before)
        return paths, input_paths, gates
    gates = jax.vmap(partial(cell.gates, parameters))(inputs, before) if cell.gates else {}
    entering = jax.vmap(partial(_entering, cell, parameters))(inputs, before)
    return definition(cell, parameters, inputs, before), {"input": entering}, gates


def _entering(cell: Cell, parameters: Parameters, x: Any, state: Any) -> Any:
    return jax.jacrev(lambda x: cell.advance(parameters, x, state))(x)


def definition(cell: Cell, parameters: Parameters, inputs: Any, before: Any) -> dict[str, Any]:
    """Every path's Jacobian (T, m, m): ``jacrev`` with respect to that path's copy of the state."""

    def one(step: tuple[Any, Any]) -> Any:
        x, state = step
        return jax.jacrev(partial(cell.step, parameters, x))(cell.copies(state))

    jacobians = lax.map(one, (inputs, before), batch_size=min(_STEPS_AT_ONCE, len(inputs)))
    return jacobians if cell.paths else {NAMELESS: jacobians}


def slopes(
    cell: Cell, parameters: Parameters, x: Any, state: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Any]:
    """Fast form of one step: per path, the derivative (components, n) of each unit's new state.

    Path R_g is then diag(slope) R_g acting on h; a cell's own path and the peepholes are diagonal.
    Second come the same by the pre-activations that the input enters, then the gates' values {gate: (n,)} and
    the new state (components, n).
    """
    units = cell.units
    assert units is not None
    (d_own, d_pre), (gates, new) = core_derivatives(cell, parameters, x, state)
    result = {units.own: d_own} if units.own else {}
    result |= {key("R", gate): d_pre[gate] for gate in units.gates}
    result |= {key("p", g): d_pre[g] * parameters[key("p", g)][None] for g in units.peepholes}
    result |= {path: parameters[factor_key(path)] * result[path] for path in cell.factors}
    return result, {name: d_pre[name] for name, _ in units.weights}, gates, new


def core_derivatives(cell: Cell, parameters: Parameters, x: Any, state: Any) -> tuple[Any, Any]:
    """Derivatives of the scalar core (``jax.vjp``) by own state and pre-activations, (components, n) each.

    Second the gates, and the new state (components, n).
    """
    units = cell.units
    assert units is not None
    parts = dict(zip(cell.components, jnp.split(state, len(cell.components)), strict=True))

    def read(path: str) -> Any:
        return parts[units.reads(path)]

    with as_primitives(cell):
        pre = units.pre_activations(parameters, units.drive(parameters, x), read)
        own = read(units.own) if units.own else jnp.zeros_like(pre[units.gates[0]])

        def core(own: Any, pre: Any) -> Any:
            return jax.vmap(units.core)(own, pre, units.constants_of(parameters))

        new, backward, gates = jax.vjp(core, own, pre, has_aux=True)
        ones, zeros = jnp.ones_like(own), jnp.zeros_like(own)
        each = [backward(tuple(ones if k == j else zeros for k in range(len(new)))) for j in range(len(new))]
        derivatives = jax.tree.map(lambda *rows: jnp.stack(rows), *each)
        return derivatives, (gates, jnp.stack(new))


@partial(jax.jit, static_argnums=0)
def link(cell: Cell, states: Any, gates: Mapping[str, Any]) -> Any:
    """dh_t/dc_t of an LSTM with the output gate held fixed: o_t squash'(c_t), shape (T, n).

    states : (T + 1, 2 n) and gates {gate: (T, n)} as ``linearize`` returns them.
    """
    assert cell.units is not None
    assert cell.units.squash is not None
    cells, _ = jnp.split(states[1:], 2, axis=1)
    slope = jax.vmap(jax.vmap(jax.grad(cell.units.squash)))(cells)
    return slope * gates["o"] if "o" in gates else slope
