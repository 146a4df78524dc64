"""Every sequence of every problem measured: one after the other, or all at once without Jacobians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import jax
import numpy as np

from gradscope.errors import BeyondRangeError
from gradscope.linearize.sequence import sequences_on
from gradscope.machine import cores, one_blas_thread
from gradscope.measure.all_values import measure_sequence
from gradscope.measure.chains import Ask
from gradscope.measure.cost import sooner_without_jacobians, units, work_of
from gradscope.measure.measured import Measured
from gradscope.measure.programs import by_programs, taken
from gradscope.measure.progress import Progress, Tally
from gradscope.problem.problem import Problem
from gradscope.problem.problems import Problems
from gradscope.product_svd.error_estimate import WORTH_A_THREAD
from gradscope.product_svd.spectrum import Spectrum

# One step's Jacobian is right to a few roundings of its entries.
_ENTRY_ROUNDINGS = 4
# Pre-activations up to this many times the logarithm of a rounding leave blocks their digits (measured); up
# to so many their slopes do not drown beside others (sech^2 of .4 of it is 1e-12).
SATURATED_LOGS, _DROWNING_LOGS = 1.75, 0.4


@dataclass(frozen=True)
class Means:
    """What there is to measure with.

    devices : where states and Jacobians are computed; most : how many large chains are measured side by side
        on the host, in float64; by default, and where the devices are no CPU, as many as cores.
    """

    devices: Sequence[jax.Device]
    most: int | None = None

    @property
    def at_once(self) -> int:
        """Sequences that are measured side by side, where they are of large chains."""
        if self.most is None or self.devices[0].platform != "cpu":
            return cores()
        return min(self.most, cores())


def measure_batch(
    problems: Problems, numbers: range, floor: float, means: Means, progress: Progress | None = None
) -> list[list[Measured]]:
    """Measure the sequences ``numbers`` of every problem.

    floor : log10 of the gain below which it vanishes; progress : called with (sequences done, sequences in
    all), the first with a fraction, from any thread.
    """
    if not numbers:  # a cluster may have more processes than there are sequences
        return [[] for _ in problems.every]
    costs = [units(work_of(problem, 1)) for problem in problems.every]
    tally = Tally(progress, [cost for cost in costs for _ in numbers])
    found = []
    for place, problem in enumerate(problems.every):
        # A layer's own chain is the same in its stack.
        in_stack = place >= len(problems.layers)
        known = frozenset(member.name for member in problem.system.cell.members if in_stack)
        entry_error = _ENTRY_ROUNDINGS * problem.system.eps
        ask = Ask(entry_error, floor, problem.accuracy, problem.top, known, only=problem.only)
        found.append(_measured(problem, numbers, ask, means, tally.beyond(place * len(numbers))))
    return found


@one_blas_thread()
def _measured(problem: Problem, numbers: range, ask: Ask, means: Means, tally: Tally) -> list[Measured]:
    """The sequences of one problem, from their slopes where states leave their dtype."""
    try:
        return _chosen(problem, numbers, ask, means, tally)
    except BeyondRangeError:
        from gradscope.linearize.beyond_range import with_slopes

        along = with_slopes(problem.system)
        if along is None or problem.adjoint is not None:  # the weights' gradient has the states in it
            raise
        found = _chosen(replace(problem, system=along.system), numbers, ask, means, tally)
        return [
            replace(one, course={**one.course, "reached": along.reached[number : number + 1]})
            for number, one in zip(numbers, found, strict=True)
        ]


def _chosen(problem: Problem, numbers: range, ask: Ask, means: Means, tally: Tally) -> list[Measured]:
    """By the method that is sooner."""
    if problem.top is None or problem.view == "cell" or not sooner_without_jacobians(problem):
        return _side_by_side(problem, numbers, ask, means, tally)
    found = dict(zip(numbers, _together(problem, numbers, ask, means, tally), strict=True))
    eps = float(np.finfo(problem.system.dtype).eps)
    if again := [number for number, one in found.items() if _in_doubt(one, eps)]:
        found |= zip(again, _side_by_side(problem, again, ask, means, tally), strict=True)
    return list(found.values())


def _in_doubt(found: Measured, eps: float) -> bool:
    """Whether blocks may be wrong: slopes of saturated units drown beside columns that are made orthonormal.

    A gain of 0 may be one of those, rather than of what the structure makes 0, and so may some of the values;
    and of what one of two passes alone has found the error is not known.
    """
    drive, rounding = found.course["drive"][0], -math.log(eps)
    spectra = found.spectra.values()
    return bool(
        drive > SATURATED_LOGS * rounding
        or (drive > _DROWNING_LOGS * rounding and any(map(_some_missing, spectra)))
        or (found.course["near"][0] and not found.alive)
        or not all(math.isfinite(one.log10_error) for one in spectra)
    )


def _some_missing(spectrum: Spectrum) -> bool:
    """Whether values are 0 beside others that are not."""
    log10 = spectrum.log10_singular_values
    return bool(np.isneginf(log10).any() and np.isfinite(log10[:1]).all())


def _side_by_side(
    problem: Problem, numbers: Sequence[int], ask: Ask, means: Means, tally: Tally
) -> list[Measured]:
    """Each from its Jacobians, large chains in a thread each."""
    system = problem.system
    sequences = sequences_on(system, numbers, means.devices, problem.cut, problem.view)
    at_once = min(means.at_once, len(sequences)) if system.size >= WORTH_A_THREAD else 1
    ask = replace(ask, threads=max(1, cores() // at_once))
    told = tally.of(range(len(sequences)))
    worth = taken(sequences, ask, means.devices)
    known = cache(lambda: by_programs(sequences, ask, means.devices, worth, told))
    beside = system.size >= WORTH_A_THREAD or bool(worth)

    def one(job: int) -> Measured:
        sequence, report = sequences[job], tally.of([job]) if tally.watched else None
        returning = numbers[job] == 0 and ask.only == "all"
        found = measure_sequence(sequence, ask, report, lambda: known()[job], returning, beside)
        return replace(found, gates=sequence.gate_sums, course=sequence.course).without_claims(system.dtype)

    if at_once == 1:
        return list(map(one, range(len(sequences))))
    known()  # every core has a pass
    pool = ThreadPoolExecutor(at_once)
    try:
        return list(pool.map(one, range(len(sequences))))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a failure or an interrupt does not wait for the rest


def _together(problem: Problem, numbers: range, ask: Ask, means: Means, tally: Tally) -> list[Measured]:
    """Those of one length all at once, without Jacobians."""
    from gradscope.measure.top_values import measure_together

    system = problem.system
    found: dict[int, Measured] = {}
    for length in sorted({system.length(number) for number in numbers}):
        group = [number for number in numbers if system.length(number) == length]
        whole = len(group) == len(numbers) and length == system.steps
        # Of a slice no copy is made: inputs may be large.
        some = slice(numbers.start, numbers.stop, numbers.step) if whole else group
        report = tally.of(map(numbers.index, group))
        measured = measure_together(system.part(some, length), problem.kept, ask, means.devices, report)
        found |= dict(zip(group, measured, strict=True))
    return [found[number] for number in numbers]
