"""Every sequence of a problem measured: side by side in processes, or all at once without Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from gradscope.custom_types import Array
from gradscope.linearize.sequence import sequences_on
from gradscope.machine import cores, one_blas_thread
from gradscope.measure.all_values import Task
from gradscope.measure.measured import Found, Measured, Progress
from gradscope.measure.top_values import measure_tops
from gradscope.measure.workers import measure_all
from gradscope.problem.layers import Problems
from gradscope.problem.problem import Problem
from gradscope.settings import Policy

# One step's Jacobian is right to a few roundings of its entries.
_ENTRY_ROUNDINGS = 4
# Steps of work for another process that are worth its start (0.3 s).
_WORTH_A_WORKER = 300


@one_blas_thread()
def find(
    problem: Problem,
    policy: Policy,
    progress: Progress | None,
    devices: Sequence[jax.Device],
    processes: int | None,
    numbers: range,
    known: frozenset[str] = frozenset(),
) -> list[Found]:
    """Measure the sequences ``numbers`` of the batch, but for the own chains of the paths ``known``.

    The rest is as for ``pipeline.analyze``.
    """
    if not numbers:  # a cluster may have more processes than there are sequences
        return []
    entry_error = _ENTRY_ROUNDINGS * float(np.finfo(problem.dtype).eps)
    floor = math.log10(policy.vanishing_below)
    if problem.top is not None and problem.view != "cell":
        report = _summed(progress, len(numbers))
        measure_some = partial(measure_tops, entry_error=entry_error, floor=floor, known=known)
        return _find_tops(problem, numbers, devices, measure_some, report)
    sequences = sequences_on(problem, numbers, devices)
    if processes is None or devices[0].platform != "cpu":
        processes = cores()
    processes = min(processes, cores())
    if (len(sequences) - 1) * problem.steps < _WORTH_A_WORKER:
        processes = 1
    threads = max(1, cores() // min(processes, len(sequences)))
    task = partial(
        Task,
        entry_error=entry_error,
        floor=floor,
        accuracy=problem.accuracy,
        workers=threads,
        watched=progress is not None,
        top=problem.top,
        known=known,
    )
    jobs = [(task(one.starts, one.steps), one) for one in sequences]
    measured = measure_all(jobs, processes, _summed(progress, len(jobs)))
    return [Found(one, sequence.gate_sums) for one, sequence in zip(measured, sequences, strict=True)]


def _find_tops(
    problem: Problem,
    numbers: range,
    devices: Sequence[jax.Device],
    measure_some: Callable[..., list[tuple[Measured, dict[str, Array]]]],
    report: Callable[[int, float], None],
) -> list[Found]:
    """The same without Jacobians: all sequences of one length at once."""
    found: dict[int, Found] = {}
    for length in sorted({problem.length(number) for number in numbers}):
        group = [number for number in numbers if problem.length(number) == length]
        shared = partial(_all_at_once, report, [numbers.index(number) for number in group])
        whole = len(group) == len(numbers) and length == problem.steps
        part, chosen = (problem, numbers) if whole else (problem.part(group, length), range(len(group)))
        tops = measure_some(part, chosen, devices, report=shared)
        found |= {number: Found(*one) for number, one in zip(group, tops, strict=True)}
    return [found[number] for number in numbers]


def _summed(progress: Progress | None, count: int) -> Callable[[int, float], None]:
    """Progress of all from that of each."""
    done = [0.0] * count

    def report(number: int, fraction: float) -> None:
        done[number] = fraction
        if progress:
            progress(sum(done), count)

    return report


def _all_at_once(report: Callable[[int, float], None], numbers: Sequence[int], fraction: float) -> None:
    for number in numbers:
        report(number, fraction)


def find_all(
    problems: Problems,
    policy: Policy,
    progress: Progress | None,
    devices: Sequence[jax.Device],
    processes: int | None,
    numbers: range,
) -> list[list[Found]]:
    """Measure the sequences ``numbers`` of every problem; the rest as for ``analyze``."""
    count, found = len(numbers), list[list[Found]]()
    for number, problem in enumerate(problems.every):
        done = number * count
        # A layer's own chain is the same in its stack.
        in_stack = number >= len(problems.layers)
        known = frozenset(member.name for member in problem.cell.members if in_stack)

        def report(part: float, _: int, done: int = done) -> None:
            assert progress
            progress(done + part, count * len(problems.every))

        telling = report if progress else None
        found.append(find(problem, policy, telling, devices, processes, numbers, known))
    return found
