"""The package's cells on a short sequence, with large weights, and what equal means."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np

from gradscope.cells import find
from gradscope.cells.cell import Cell

N, D, T = 5, 3, 6
Arrays = dict[str, np.ndarray]


def close(ours: Any, theirs: Any) -> None:
    """Equal to rounding, in the precision of theirs: a few dozen operations on numbers of order one."""
    expected = np.asarray(theirs)
    single = expected.dtype == np.float32
    rtol, atol = (1e-4, 1e-5) if single else (1e-12, 1e-13)
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=rtol, atol=atol)


def parameters(cell: Cell, seed: int = 0, hidden: int = N) -> Arrays:
    """Large enough that every gate, peephole and bias matters."""
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=shape) for key, shape in cell.parameters(hidden, D).items()}


def sequence(seed: int = 1, steps: int = T) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, D))


def start(cell: Cell, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=N * len(cell.components))


@cache
def compiled(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The step, and its Jacobian with respect to the whole state."""
    advance = find(name).advance
    return jax.jit(advance), jax.jit(jax.jacrev(advance, argnums=2))


def run(name: str, p: Arrays, xs: np.ndarray, state: np.ndarray) -> np.ndarray:
    """States 0 to T."""
    states = [state]
    for x in xs:
        states.append(np.asarray(compiled(name)[0](p, x, states[-1])))
    return np.array(states)


def jacobians(name: str, p: Arrays, xs: np.ndarray, states: np.ndarray) -> np.ndarray:
    return np.array([compiled(name)[1](p, x, s) for x, s in zip(xs, states, strict=False)])


def path_jacobians(cell: Cell, p: Arrays, x: np.ndarray, state: np.ndarray) -> Arrays:
    return jax.jacrev(lambda copies: cell.step(p, x, copies))(cell.copies(state))


def product(chain: np.ndarray) -> np.ndarray:
    total = np.eye(chain.shape[1])
    for jacobian in chain:
        total = jacobian @ total
    return total
