"""From what was measured to the analysis: over the batch, over the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.cells.notation import NAMELESS
from gradscope.cells.spectra import recurrent_matrices
from gradscope.custom_types import Array
from gradscope.measure.measured import Measured, gate_statistics
from gradscope.measure.returning import of_layers
from gradscope.problem.problem import Problem
from gradscope.problem.problems import Problems
from gradscope.report.analysis import Analysis
from gradscope.report.chains import WITHOUT, chain_of, mean_share
from gradscope.report.notes import chain_notes, loss_notes, sensitivity_notes, trajectory_notes
from gradscope.report.provenance import described, described_together
from gradscope.report.verdict import judge, level
from gradscope.settings import MOST_FOR_ALL, Policy

if TYPE_CHECKING:
    from gradscope.measure.loss import LossGradient
    from gradscope.measure.sensitivity import Sensitivity

_SIDE_BY_SIDE = (
    "Layers of two directions of time, or that nothing says to read each other (--reads LAYER=BELOW would), "
    "stand side by side: the gain is the largest of theirs."
)
_BY_ITSELF = "The view of the cell takes every layer by itself: the gain is the largest of theirs."


def conclude(
    problems: Problems,
    policy: Policy,
    measured: Sequence[Sequence[Measured]],
    losses: Sequence[LossGradient | None],
    changes: Sequence[Sensitivity | str | None],
    backend: str,
) -> Analysis:
    """The analysis of all layers together, with that of each.

    measured, losses, changes : of every problem in ``problems.every``; backend : the platform.
    """
    layers = tuple(
        _of_layer(problem, policy, each, loss, change, backend)
        for problem, each, loss, change in zip(problems.layers, measured, losses, changes, strict=False)
    )
    analysis = layers[0]
    if len(layers) > 1:
        from gradscope.measure.side_by_side import together

        source = described_together(problems, backend)
        analysis = replace(
            of_sequences(together(problems, measured), policy, source), layers=layers, only=layers[0].only
        )
        told = (
            f"layer{number}: {note}"
            for number, (problem, each) in enumerate(zip(problems.layers, measured, strict=False))
            for note in trajectory_notes(problem, each)
        )
        analysis = replace(analysis, verdict=analysis.verdict.noting(told))
    joint = problems.joint
    if joint is None:
        said = _BY_ITSELF if problems.layers[0].view == "cell" else _SIDE_BY_SIDE
        verdict = replace(analysis.verdict, reasons=(*analysis.verdict.reasons, said))
        return replace(analysis, verdict=verdict)
    (at,) = (number for number, problem in enumerate(problems.every) if problem is joint)
    loss, change = losses[at], changes[at]
    if layers[1:]:
        notes = (*loss_notes(loss), *sensitivity_notes(change))
        analysis = replace(analysis, verdict=analysis.verdict.noting(notes))
    return replace(analysis, loss=loss, sensitivity=known(change), returning=_returning(joint, measured[at]))


def known(change: Sensitivity | str | None) -> Sensitivity | None:
    """How the gain changes, where there is no reason why it has no derivative."""
    return None if isinstance(change, str) else change


def _of_layer(
    problem: Problem,
    policy: Policy,
    measured: Sequence[Measured],
    loss: LossGradient | None,
    change: Sensitivity | str | None,
    backend: str,
) -> Analysis:
    # Their spectra take longer than all else where only the top values were asked for.
    few = problem.system.hidden <= MOST_FOR_ALL
    whole = problem.only == "all"
    found = of_sequences(measured, policy, described(problem, backend))
    notes = (*trajectory_notes(problem, measured), *loss_notes(loss), *sensitivity_notes(change))
    return replace(
        found,
        verdict=found.verdict.noting(notes),
        loss=loss,
        sensitivity=known(change),
        only=problem.only,
        returning=_returning(problem, measured),
        gates=gate_statistics(measured) if whole else {},
        matrices=recurrent_matrices(problem.system.parameters, all_values=True) if few and whole else {},
    )


def _returning(problem: Problem, measured: Sequence[Measured]) -> dict[str, Any]:
    """By layer, unit and step, where all values were asked for."""
    found = measured[0].returning
    system = problem.system
    return of_layers(found, system.cell, system.hidden, system.length(0)) if found else {}


def of_sequences(measured: Sequence[Measured], policy: Policy, source: Mapping[str, Any]) -> Analysis:
    """What was measured of every sequence, in one."""
    spectra = {name: [one.spectra[name] for one in measured] for name in measured[0].spectra}
    chains = [chain_of(name, each, policy.vanishing_below) for name, each in spectra.items()]
    by_step = _mean_shares(measured)
    shares = {name: mean_share(share, chains[0]) for name, share in by_step.items()}
    names = measured[0].without
    without = {
        name: chain_of(name, [one.without[name] for one in measured], policy.vanishing_below)
        for name in names
    }
    verdict = judge(chains, shares, policy, without=without)
    return Analysis(
        problem=source,
        policy=policy,
        verdict=verdict.noting(chain_notes(chains[0], verdict.level, source["dtype"], measured)),
        chains=tuple(chains),
        levels={chain.name: level(chain, policy) for chain in chains}
        | {WITHOUT + name: level(chain, policy) for name, chain in without.items()},
        shares=by_step,
        without=without,
        sequence_shares={
            name: np.array([_mean_over_steps(one.shares[name]) for one in measured]) for name in by_step
        },
        shares_error=np.array([one.shares_error for one in measured]) if by_step else np.empty(0),
    )


def _mean_shares(measured: Sequence[Measured]) -> dict[str, Array]:
    """Mean over the sequences whose gradient is not exactly zero (over all if there are none).

    Aligned at the last step: the mean is over those that have a step so long before it, else NaN.
    """
    each = [one.shares for one in measured if one.alive] or [one.shares for one in measured]
    steps = max((len(share) for one in measured for share in one.shares.values()), default=0)
    return {name: _aligned_mean([one[name] for one in each], steps) for name in each[0] if name != NAMELESS}


def _mean_over_steps(share: Array) -> float:
    known = share[np.isfinite(share)]
    return float(known.mean()) if len(known) else math.nan


def _aligned_mean(shares: Sequence[Array], steps: int) -> Array:
    total, count = np.zeros(steps), np.zeros(steps)
    for share in shares:
        total[steps - len(share) :] += share
        count[steps - len(share) :] += 1
    with np.errstate(invalid="ignore"):
        return total / count
