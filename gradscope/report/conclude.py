"""The straight line, from a problem to its analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from gradscope.cells.notation import NAMELESS, recurrent_matrices
from gradscope.custom_types import Array
from gradscope.linearize.gates import gate_statistics
from gradscope.machine import one_blas_thread
from gradscope.measure.batch import find_all
from gradscope.measure.loss import LossGradient, loss_gradient
from gradscope.measure.measured import Found, Measured, Progress
from gradscope.measure.side_by_side import together
from gradscope.problem.layers import Problems
from gradscope.problem.problem import Problem
from gradscope.product_svd.spectrum import spectrum
from gradscope.report.analysis import Analysis
from gradscope.report.chains import chain_of, mean_share
from gradscope.report.verdict import judge, level
from gradscope.settings import MOST_FOR_ALL, Policy

_SIDE_BY_SIDE = (
    "Layers of two directions of time, or that the file does not connect, stand side by side: the gain is "
    "the largest of theirs."
)


def analyze(
    problems: Problems,
    policy: Policy | None = None,
    progress: Progress | None = None,
    devices: Sequence[jax.Device] | None = None,
    processes: int | None = None,
) -> Analysis:
    """Measure how the gradient flows through every layer of ``problems``, and through all of them.

    progress : called with (sequences done, sequences in all), the first with a fraction, from any
    thread; devices : where states and Jacobians are computed, by default all of this process. Their
    product is always taken on the host, in float64, of ``processes`` sequences side by side: by default
    as many as there are cores.
    """
    policy, devices = policy or Policy(), devices or jax.local_devices()
    found = find_all(problems, policy, progress, devices, processes, range(problems.batch))
    return conclude_all(problems, policy, found, devices[0], progress)


def conclude_all(
    problems: Problems,
    policy: Policy,
    found: Sequence[Sequence[Found]],
    device: jax.Device,
    progress: Progress | None = None,
) -> Analysis:
    """The analysis of all layers, with that of each; a loss is followed back on ``device``."""
    layers = tuple(map(partial(_of_layer, policy, device, progress), problems.layers, found))
    analysis = layers[0]
    if len(layers) > 1:
        all_states = together(problems, [[one.measured for one in each] for each in found])
        analysis = replace(_conclude(all_states, policy, device.platform, problems.source), layers=layers)
    whole = problems.whole
    if whole is None:
        verdict = replace(analysis.verdict, reasons=(*analysis.verdict.reasons, _SIDE_BY_SIDE))
        return replace(analysis, verdict=verdict)
    return analysis if len(layers) == 1 else replace(analysis, loss=_loss(whole, device, progress))


def _loss(problem: Problem, device: jax.Device, progress: Progress | None) -> LossGradient | None:
    return None if problem.seeds is None else loss_gradient(problem, problem.seeds, device, progress)


def _of_layer(
    policy: Policy, device: jax.Device, progress: Progress | None, problem: Problem, found: Sequence[Found]
) -> Analysis:
    return replace(
        _conclude([one.measured for one in found], policy, device.platform, problem.source),
        loss=_loss(problem, device, progress),
        gates=gate_statistics([one.gates for one in found]),
        # Their spectra take longer than all else where only the top values were asked for.
        matrices=recurrent_matrices(problem.parameters) if problem.hidden <= MOST_FOR_ALL else {},
    )


def _conclude(
    measured: Sequence[Measured], policy: Policy, platform: str, source: Mapping[str, Any]
) -> Analysis:
    """What was measured of every sequence, in one."""
    spectra = {name: [one.spectra[name] for one in measured] for name in measured[0].spectra}
    chains = [chain_of(name, each, policy.vanishing_below) for name, each in spectra.items()]
    by_step = _mean_shares(measured)
    shares = {name: mean_share(share, chains[0]) for name, share in by_step.items()}
    return Analysis(
        problem={**source, "backend": platform},
        policy=policy,
        verdict=judge(chains, shares, policy),
        chains=tuple(chains),
        levels={chain.name: level(chain, policy) for chain in chains},
        shares=by_step,
    )


def _mean_shares(measured: Sequence[Measured]) -> dict[str, Array]:
    """Mean over the sequences whose gradient is not exactly zero (over all if there are none).

    Aligned at the last step: the mean is over those that have a step so long before it, else NaN.
    """
    each = [one.shares for one in measured if one.alive] or [one.shares for one in measured]
    steps = max(len(share) for one in measured for share in one.shares.values())
    return {name: _aligned_mean([one[name] for one in each], steps) for name in each[0] if name != NAMELESS}


def _aligned_mean(shares: Sequence[Array], steps: int) -> Array:
    total, count = np.zeros(steps), np.zeros(steps)
    for share in shares:
        total[steps - len(share) :] += share
        count[steps - len(share) :] += 1
    with np.errstate(invalid="ignore"):
        return total / count


@one_blas_thread()
def analyze_chain(
    stack: Array, source: str, policy: Policy | None = None, top: int | None = None
) -> Analysis:
    """The same for a bare stack of Jacobians (T, m, m), which has no paths; top : how many values."""
    policy = policy or Policy()
    floor = -math.inf if top is None else math.log10(policy.vanishing_below)
    chain = chain_of("full", [spectrum(stack, top, by_lag=True, floor=floor)], policy.vanishing_below)
    return Analysis(
        problem={"cell": None, "size": stack.shape[1], "steps": len(stack), "batch": 1, "source": source},
        policy=policy,
        verdict=judge([chain], {}, policy, trajectory=False),
        chains=(chain,),
        levels={"full": level(chain, policy)},
    )
