"""The forward pass: the states that the Jacobians are taken at."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from gradscope.cells.base import Cell, Parameters


def forward(cell: Cell, parameters: Parameters, inputs: Any, state: Any) -> Any:
    """States s_0 ... s_T, shape (T + 1, m), of ``inputs`` (T, d) from the initial ``state`` (m,)."""

    def step(state: Any, x: Any) -> tuple[Any, Any]:
        new = cell.advance(parameters, x, state)
        return new, new

    _, states = lax.scan(step, state, inputs)
    return jnp.concatenate([state[None], states])
