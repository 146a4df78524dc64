"""Ways to get the singular values of a product of Jacobians: the usual ones, and gradscope's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradscope.cells.cell import Cell
from gradscope.linearize.cell_chain import CellChain
from gradscope.linearize.sequence import Linearized
from gradscope.problem.problem import Problem, make_problem
from gradscope.product_svd.spectrum import spectrum
from gradscope.settings import Settings

STEPS = 200
# What one step's Jacobian is right to.
ENTRY_ERROR = 4 * float(np.finfo(np.float64).eps)


@dataclass
class Case:
    """A cell on a sequence: its problem, its Jacobians in paths, and as a dense stack (T, m, m)."""

    name: str
    problem: Problem
    jacobians: CellChain
    dense: np.ndarray

    @classmethod
    def of(cls, cell: str, hidden: int, steps: int = STEPS, **options: Any) -> Case:
        """The case of ``gradscope analyze --cell CELL --hidden HIDDEN``."""
        problem = make_problem(Settings(cell=cell, hidden=hidden, steps=steps, **options))
        jacobians = Linearized(problem.system, 0, jax.devices()[0]).segment(0)
        dense = np.stack([jacobians[t] for t in range(steps)])
        return cls(f"{cell}, hidden {hidden}", problem, jacobians, dense)


@jax.jit
def _plain(steps: Any) -> Any:
    return lax.scan(lambda product, a: (a @ product, None), jnp.eye(steps.shape[1]), steps)[0]


@jax.jit
def _lyapunov(steps: Any) -> Any:
    def step(carry: Any, a: Any) -> Any:
        q, total = carry
        q, r = jnp.linalg.qr(a @ q)
        return (q, total + jnp.log10(jnp.abs(jnp.diag(r)))), None

    start = (jnp.eye(steps.shape[1]), jnp.zeros(steps.shape[1]))
    return lax.scan(step, start, steps)[0][1]


def plain(case: Case) -> Callable[[], Any]:
    """(a) The product alone: a jitted lax.scan of A_t @ P. What the others are compared with."""
    steps = jax.device_put(case.dense)
    return lambda: _plain(steps).block_until_ready()


def product_and_svd(case: Case) -> Callable[[], np.ndarray]:
    """(b) The float64 product, then an SVD."""
    steps = jax.device_put(case.dense)
    return lambda: _log10(np.linalg.svd(np.asarray(_plain(steps)), compute_uv=False))


def naive_torch(case: Case) -> Callable[[], np.ndarray]:
    """(c) What most would write in PyTorch: torch.func.jacrev of each step, multiply, svdvals."""
    import torch

    step, state = _torch_lstm(case.problem)
    inputs = torch.from_numpy(case.problem.system.inputs[0])

    def run() -> np.ndarray:
        s, product = state, torch.eye(len(state), dtype=torch.float64)
        for x in inputs:
            product = torch.func.jacrev(step, argnums=1)(x, s) @ product
            s = step(x, s)
        return _log10(torch.linalg.svdvals(product).numpy())

    return run


def naive_jax(case: Case) -> Callable[[], np.ndarray]:
    """(d) The same in JAX: a jitted scan of jax.jacrev of the step, then an SVD."""
    cell: Cell = case.problem.system.cell

    @jax.jit
    def chain(parameters: Any, inputs: Any, state: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            s, product = carry
            advance = lambda s: cell.advance(parameters, x, s)  # noqa: E731
            return (advance(s), jax.jacrev(advance)(s) @ product), None

        return lax.scan(step, (state, jnp.eye(len(state))), inputs)[0][1]

    system = case.problem.system
    given = jax.device_put((system.parameters, system.inputs[0], system.state[0]))
    return lambda: _log10(np.linalg.svd(np.asarray(chain(*given)), compute_uv=False))


def qr_lyapunov(case: Case) -> Callable[[], np.ndarray]:
    """(e) The diagonal of a QR chain, as for Lyapunov exponents (Benettin et al. 1980)."""
    steps = jax.device_put(case.dense)
    return lambda: -np.sort(-np.asarray(_lyapunov(steps)))


def gradscope_all(case: Case, **options: Any) -> Callable[[], np.ndarray]:
    """gradscope: every singular value with an error estimate, from the Jacobians in paths."""
    return lambda: spectrum(case.jacobians, entry_error=ENTRY_ERROR, **options).log10_singular_values


def gradscope_dense(case: Case, **options: Any) -> Callable[[], np.ndarray]:
    """gradscope on the dense stack that the plain product multiplies."""
    return lambda: spectrum(case.dense, entry_error=ENTRY_ERROR, **options).log10_singular_values


def _log10(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log10(values)


def _torch_lstm(problem: Problem) -> tuple[Callable[[Any, Any], Any], Any]:
    """An LSTM step on s = (c, h) in PyTorch, with the problem's weights; and its initial state."""
    import torch

    p = {name: torch.from_numpy(value) for name, value in problem.system.parameters.items()}
    n = problem.system.hidden

    def step(x: Any, s: Any) -> Any:
        c, h = s[:n], s[n:]
        z, i, f, o = (p[f"W_{g}"] @ x + p[f"R_{g}"] @ h + p[f"b_{g}"] for g in "zifo")
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        return torch.cat([c, torch.sigmoid(o) * torch.tanh(c)])

    return step, torch.from_numpy(problem.system.state[0])
