"""A loss followed back through every sequence, several times: its gradient with what rounding does to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gradscope.cells.notation import named
from gradscope.custom_types import Array
from gradscope.linearize.system import cast
from gradscope.linearize.trajectory import Spread
from gradscope.measure.adjoints import DRAWS, Adjoints, Followed, Total
from gradscope.measure.clipping import ClippedGradient, Clipping, clipped, clipping_of
from gradscope.measure.lag_sums import Losses
from gradscope.measure.loss import LossGradient
from gradscope.measure.loss_errors import (
    error_of_deltas,
    error_of_gradient,
    error_of_norms,
    frobenius,
    without_noise,
)
from gradscope.measure.progress import Progress
from gradscope.measure.truncation import Truncation, truncation
from gradscope.problem.problem import Problem
from gradscope.product_svd.log_scale import decades


def loss_gradient(
    problem: Problem, near: bool, device: jax.Device | None = None, progress: Progress | None = None
) -> LossGradient:
    """The gradient of the loss that a problem has.

    near : whether states come near levels (``course``).
    progress : called with (sequences done, sequences in all), the first with a fraction. A loss at every
    step takes O(T^2) time, as each of its T parts is followed back on its own.
    """
    assert problem.adjoint is not None
    device = device or jax.local_devices()[0]
    system = problem.system
    with system.running():
        sequences = _sequences(problem, problem.adjoint, device, near)
        losses, passes = None, 0
        if problem.clip or problem.tbptt:
            losses = Losses(system, problem.kept, problem.adjoint, device, near)
            passes = losses.work * (1 + 2 * (problem.tbptt is not None))
        done = _meter(sum(sequence.work for sequence in sequences) + passes, system.batch, progress)
        run = _followed(problem, sequences, done)
        again = [_followed(problem, sequences, done, draw) for draw in range(1, DRAWS + 1)]
        shares = _shares(run.total, sequences, system.steps, done)
        clip, tbptt = _trained(problem, losses, run, done) if losses else (None, None)
    at = "last" if problem.adjoint.shape[1] == 1 else "every"
    numbers = _numbers(run, again, system.eps)
    return without_noise(LossGradient(at=at, shares=shares, clip=clip, tbptt=tbptt, **numbers))


@dataclass(frozen=True)
class _Run:
    """The loss followed back once: every sequence's steps, the gradient of all, what is clipped of each."""

    steps: list[Followed]
    total: Total
    clipped: list[ClippedGradient]

    @property
    def norms(self) -> Array:
        """(B, T + 1) log10, by lag."""
        return _together([one.log10_norm[::-1] for one in self.steps], np.nan)

    @property
    def deltas(self) -> dict[str, Array]:
        """{gate: (B, T, n)} by step."""
        return {gate: _together([one.deltas[gate] for one in self.steps], 0.0) for gate in self._gates}

    @property
    def log10_deltas(self) -> dict[str, Array]:
        """{gate: (B, T)} by lag."""
        each = {gate: [one.log10_deltas[gate][::-1] for one in self.steps] for gate in self._gates}
        return {gate: _together(logs, np.nan) for gate, logs in each.items()}

    @property
    def _gates(self) -> Sequence[str]:
        return list(self.steps[0].deltas)


def _sequences(problem: Problem, adjoint: Array, device: jax.Device, near: bool) -> list[Adjoints]:
    """Every sequence with its part of the loss."""
    system = problem.system
    parameters = Spread((device,)).replicate(cast(system.parameters, system.dtype))
    parts = [system.part([b], system.length(b)) for b in range(system.batch)]
    return [
        Adjoints(one, problem.kept, own[: one.steps], device, parameters, near)
        for one, own in zip(parts, adjoint, strict=True)
    ]


def _followed(
    problem: Problem, sequences: Sequence[Adjoints], done: Callable[[int], None], draw: int = 0
) -> _Run:
    """Every sequence followed back; draw : see ``Adjoints.back``; then without clipping."""
    run = _Run([], Total(problem.system.parameters), [])
    for sequence in sequences:
        own = Total(problem.system.parameters)
        run.steps.append(sequence.back(own, done, draw))
        run.total.add(own.arrays, own.exponent)
        if problem.clip and not draw:
            run.clipped.append(clipped(own, problem.clip, problem.twice))
    return run


def _numbers(run: _Run, again: Sequence[_Run], eps: float) -> dict[str, Any]:
    """Norms, deltas and gradients of a run, with their errors from those of others."""
    norms, deltas, log10_deltas = run.norms, run.deltas, run.log10_deltas
    others = [(one.norms, one.deltas, one.log10_deltas) for one in again]
    totals = [one.total for one in again]
    sizes = {name: frobenius(part) for name, part in run.total.arrays.items()}
    return {
        "log10_norm": norms,
        "log10_norm_error": error_of_norms(norms, [each for each, _, _ in others], eps),
        "deltas": deltas,
        "delta_errors": {
            gate: error_of_deltas(own, [each[gate] for _, each, _ in others], eps)
            for gate, own in deltas.items()
        },
        "log10_deltas": log10_deltas,
        "log10_delta_errors": {
            gate: error_of_norms(own, [each[gate] for _, _, each in others], eps)
            for gate, own in log10_deltas.items()
        },
        "log10_gradients": {name: float(decades(size, run.total.exponent)) for name, size in sizes.items()},
        "log10_gradient_errors": {name: error_of_gradient(run.total, totals, name, eps) for name in sizes},
    }


def _trained(
    problem: Problem, losses: Losses, run: _Run, done: Callable[[int], None]
) -> tuple[Clipping | None, Truncation | None]:
    """What clipping and truncation make of the gradient, as far as they are asked for."""
    batch = clipped(run.total, problem.clip, problem.twice) if problem.clip else None
    sums = losses.sums(run.total, batch.weights if batch else None, done=done)
    clip = None
    if problem.clip and batch:
        clip = clipping_of(problem.clip, run.clipped, batch, sums, problem.system.eps)
    if problem.tbptt is None:
        return clip, None
    chunked = losses.sums(run.total, limits=losses.at % problem.tbptt + 1, done=done)
    again = losses.sums(run.total, done=done, draw=1)
    return clip, truncation(problem.tbptt, sums, chunked, again)


def _shares(
    total: Total, sequences: Sequence[Adjoints], steps: int, done: Callable[[int], None]
) -> dict[str, Array]:
    """{matrix: (T,)}, see LossGradient: <G_(k,p), G_p> is the loss's part by that lag along G_p."""
    sizes: dict[str, float] = {}
    for kind in ("R", "W"):
        names = named(total.arrays, kind)
        size = frobenius(np.concatenate([total.arrays[name].ravel() for name in names])) if names else 0.0
        sizes |= dict.fromkeys(names, size)
    directions = {name: total.arrays[name] / size for name, size in sizes.items() if size}
    shares = {name: np.full(steps, np.nan) for name in sizes}
    if directions:
        each = [one.along(directions, total.exponent, done) for one in sequences]
        parts = _together(each, 0.0).sum(axis=0)
        shares |= {name: parts[:, p] / sizes[name] for p, name in enumerate(sorted(directions))}
    return shares


def _together(each: Sequence[Array], fill: float) -> Array:
    """One array of all sequences, the shorter ones filled up at their end."""
    found = np.full((len(each), max(map(len, each)), *each[0].shape[1:]), fill)
    for row, values in zip(found, each, strict=True):
        row[: len(values)] = values
    return found


def _meter(work: int, count: int, progress: Progress | None) -> Callable[[int], None]:
    """Progress in sequences, from steps gone through."""
    gone = 0

    def done(steps: int) -> None:
        nonlocal gone
        gone += steps
        if progress:
            progress(count * gone / work, count)

    return done
