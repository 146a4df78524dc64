"""The straight line, from a problem to its analysis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gradscope.analysis import Analysis
from gradscope.chain import Spectrum, diagonal_spectrum, spectrum
from gradscope.errors import InputError
from gradscope.flow import chain_of, gate_statistics, recurrent_matrices, shares
from gradscope.jacobians import NAMELESS, linearize, link
from gradscope.paths import Array, Jacobians, PathChain, cell_view, split
from gradscope.problem import Problem
from gradscope.threads import one_blas_thread
from gradscope.verdict import Policy, judge, level

Progress = Callable[[int, int], None]


# One step's Jacobian is right to a few roundings of its entries.
_ENTRY_ROUNDINGS = 4


@one_blas_thread()
def analyze(
    problem: Problem,
    policy: Policy | None = None,
    progress: Progress | None = None,
    device: jax.Device | None = None,
) -> Analysis:
    """Measure how the gradient flows through ``problem``.

    progress : called with (chains done, chains in all) as the work proceeds; device : where states
    and Jacobians are computed. Their product is always taken on the host, in float64.
    """
    policy = policy or Policy()
    device = device or jax.devices()[0]
    with jax.default_device(device):
        linearized = [_linearize(problem, sequence) for sequence in range(problem.batch)]
    view = cell_view if problem.view == "cell" else split
    sequences = [view(problem.cell, problem.parameters, one, problem.cut) for one in linearized]
    entry_error = _ENTRY_ROUNDINGS * float(np.finfo(problem.dtype).eps)
    spectra = _spectra(sequences, entry_error, math.log10(policy.vanishing_below), progress)
    chains = [chain_of(name, found, policy.vanishing_below) for name, found in spectra.items()]
    by_step = _mean_shares(sequences, spectra["full"])
    gates = {g: np.stack([one["gates"][g] for one in linearized]) for g in linearized[0]["gates"]}
    return Analysis(
        problem={**problem.source, "backend": device.platform},
        policy=policy,
        verdict=judge(chains, {name: float(share.mean()) for name, share in by_step.items()}, policy),
        chains=tuple(chains),
        levels={chain.name: level(chain, policy) for chain in chains},
        shares=by_step,
        gates=gate_statistics(gates),
        matrices=recurrent_matrices(problem.parameters),
    )


def analyze_chain(stack: Array, source: str, policy: Policy | None = None) -> Analysis:
    """The same for a bare stack of Jacobians (T, m, m), which has no paths."""
    policy = policy or Policy()
    chain = chain_of("full", [spectrum(stack, by_lag=True)], policy.vanishing_below)
    return Analysis(
        problem={"cell": None, "size": stack.shape[1], "steps": len(stack), "batch": 1, "source": source},
        policy=policy,
        verdict=judge([chain], {}, policy, trajectory=False),
        chains=(chain,),
        levels={"full": level(chain, policy)},
    )


def _linearize(problem: Problem, sequence: int) -> dict[str, Any]:
    """The forward pass and one-step Jacobians of one sequence, on the device and back as NumPy."""
    cell = problem.cell
    with jax.enable_x64(problem.dtype == "float64"), jax.default_matmul_precision("highest"):
        parameters = {k: jax.numpy.asarray(v, problem.dtype) for k, v in problem.parameters.items()}
        inputs = jax.numpy.asarray(problem.inputs[sequence], problem.dtype)
        state = jax.numpy.asarray(problem.state[sequence], problem.dtype)
        try:
            found = linearize(cell, parameters, inputs, state)
            if problem.view == "cell":
                found["link"] = link(cell, found["states"], found["gates"])
            host: dict[str, Any] = jax.device_get(found)
        except (Exception, SystemExit) as error:
            if cell.step.__module__.startswith("gradscope."):
                raise
            raise InputError(  # a user's step may fail in any way
                f"cell {cell.name}: its step failed with {type(error).__name__}: {error}; expected a pure "
                f"JAX function (parameters, x, state) of states of shape {state.shape}"
            ) from error
    return host


def _spectra(
    sequences: Sequence[Jacobians], entry_error: float, floor: float, progress: Progress | None
) -> dict[str, list[Spectrum]]:
    """Spectra of the full chain and of every path alone: {name: one per sequence}."""
    found: dict[str, list[Spectrum]] = {name: [] for name in sequences[0].chains}
    for jacobians in sequences:
        for name, chain in jacobians.chains.items():
            if chain is jacobians and name != "full":
                found[name].append(found["full"][-1])
            else:
                found[name].append(_spectrum(chain, entry_error, floor))
            if progress:
                progress(sum(map(len, found.values())), len(sequences) * len(found))
    return found


def _spectrum(chain: Jacobians | PathChain, entry_error: float, floor: float) -> Spectrum:
    """Every lag of the full chain; of a path alone only what its horizon and its peak need."""
    if isinstance(chain, Jacobians):
        return spectrum(chain, by_lag=True, entry_error=entry_error)
    if chain.diagonal is not None:
        return diagonal_spectrum(chain.diagonal, by_lag=True, entry_error=entry_error)
    return spectrum(chain, by_lag=True, floor=floor, entry_error=entry_error)


def _mean_shares(sequences: Sequence[Jacobians], full: Sequence[Spectrum]) -> dict[str, Array]:
    """Mean over the sequences whose gradient is not exactly zero (all NaN if there are none)."""
    pairs = list(zip(sequences, full, strict=True))
    alive = [pair for pair in pairs if pair[1].exact_zeros < len(pair[1].left)] or pairs
    each = [shares(one, s.left, s.right, float(s.log10_singular_values[0])) for one, s in alive]
    named = [name for name in each[0] if name != NAMELESS]
    return {name: np.mean([one[name] for one in each], axis=0) for name in named}
