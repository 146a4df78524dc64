"""One-step Jacobians by ``jax.jacrev``, split by path: the definition, and the fast per-unit form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradscope.cells.base import Cell, Parameters, Units, key
from gradscope.trajectory import forward

# The definition keeps one dense Jacobian per path and step; taking this many steps at a time bounds
# what XLA needs on top of the result.
_STEPS_AT_ONCE = 32


@partial(jax.jit, static_argnums=0)
def linearize(cell: Cell, parameters: Parameters, inputs: Any, state: Any) -> dict[str, Any]:
    """The forward pass and its one-step Jacobians, for one sequence.

    inputs : (T, d); state : (m,), the state before the first step.

    Returns ``states`` (T + 1, m), ``gates`` {gate: (T, n)} and ``paths`` {path: array}: slopes of
    shape (T, components, n) where the cell has a per-unit form, else Jacobians (T, m, m).
    For the LSTM family also ``link`` (T, n): dh_t/dc_t with the output gate held fixed.
    """
    states = forward(cell, parameters, inputs, state)
    before = states[:-1]
    result: dict[str, Any] = {"states": states, "gates": {}}
    if cell.gates is not None:
        result["gates"] = jax.vmap(partial(cell.gates, parameters))(inputs, before)
    if cell.units is None:
        result["paths"] = definition(cell, parameters, inputs, before)
        return result
    result["paths"] = jax.vmap(partial(slopes, cell, parameters))(inputs, before)
    if cell.units.squash is not None:
        result["link"] = _link(cell.units, states, result["gates"])
    return result


def definition(cell: Cell, parameters: Parameters, inputs: Any, before: Any) -> dict[str, Any]:
    """Every path's Jacobian (T, m, m): ``jacrev`` with respect to that path's copy of the state."""

    def one(step: tuple[Any, Any]) -> Any:
        x, state = step
        return jax.jacrev(partial(cell.step, parameters, x))(cell.copies(state))

    jacobians = lax.map(one, (inputs, before), batch_size=min(_STEPS_AT_ONCE, len(inputs)))
    return jacobians if cell.paths else {"state": jacobians}


def slopes(cell: Cell, parameters: Parameters, x: Any, state: Any) -> dict[str, Any]:
    """Fast form of one step: per path, the derivative (components, n) of each unit's new state.

    Path R_g is then diag(slope) R_g acting on h; a cell's own path and the peepholes are diagonal.
    """
    units = cell.units
    assert units is not None
    parts = dict(zip(cell.components, jnp.split(state, len(cell.components)), strict=True))

    def read(path: str) -> Any:
        return parts[units.reads(path)]

    pre = units.pre_activations(parameters, units.drive(parameters, x), read)
    own = read(units.own) if units.own else jnp.zeros_like(pre[units.gates[0]])
    constants = {k: parameters[k] for k in units.constants}
    d_own, d_pre = _core_derivatives(units, own, pre, constants)
    result = {units.own: d_own} if units.own else {}
    result |= {key("R", gate): d_pre[gate] for gate in units.gates}
    return result | {key("p", g): d_pre[g] * parameters[key("p", g)][None] for g in units.peepholes}


def _core_derivatives(units: Units, own: Any, pre: Mapping[str, Any], constants: Any) -> tuple[Any, Any]:
    """``jacrev`` of the scalar core, vmapped over units: leaves of shape (components, n)."""

    def core(own: Any, pre: Any, constants: Any) -> Any:
        return jnp.stack(units.core(own, pre, constants)[0])

    return jax.vmap(jax.jacrev(core, argnums=(0, 1)), out_axes=-1)(own, pre, constants)


def _link(units: Units, states: Any, gates: Mapping[str, Any]) -> Any:
    """o_t squash'(c_t), shape (T, n): how h_t follows c_t when the output gate is held fixed."""
    cells = states[1:, : states.shape[1] // 2]
    assert units.squash is not None
    slope = jax.vmap(jax.vmap(jax.grad(units.squash)))(cells)
    return slope * gates["o"] if "o" in gates else slope
