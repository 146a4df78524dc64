"""Whether the processes of a cluster analyse the same thing: what each of them has, in a few numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, listed
from gradscope.problem.problem import Problem
from gradscope.problem.problems import Problems

# Hosts of several kinds round differently where weights are drawn; another seed is another number altogether.
_AGREE = 1e-6


def fingerprint(problems: Problems, floor: float) -> dict[str, list[Any]]:
    """What is to be analysed, as JSON knows it: choices as a hash, of arrays their shapes and two sums."""
    every = problems.every
    choices = [_choices(problem) for problem in every]
    adjoints = [problem.adjoint for problem in every if problem.adjoint is not None]
    return {
        "options": [hashlib.sha256(repr((problems.names, floor, choices)).encode()).hexdigest()],
        "weights": [_sums(a) for p in every for _, a in sorted(p.system.parameters.items())],
        "inputs": [_sums(a) for p in every for a in (p.system.inputs, p.system.state)],
        "adjoints": [_sums(a) for a in adjoints],
    }


def check_alike(processes: Sequence[Mapping[str, Sequence[Any]]]) -> None:
    """Raise InputError, the same in every process, where one has other options, weights or inputs."""
    for number, other in enumerate(processes):
        if differ := [what for what, first in processes[0].items() if not _alike(first, other[what])]:
            raise InputError(
                f"--distributed: process {number} has other {listed(differ)} than process 0: start all of "
                "them with the same options and files"
            )


def _choices(problem: Problem) -> tuple[Any, ...]:
    system = problem.system
    runs = (
        system.cell.name,
        system.cell.paths,
        system.hidden,
        system.direction,
        system.dtype,
        system.lengths,
    )
    return (*runs, problem.cut, problem.view, problem.top, problem.accuracy, problem.only)


def _sums(array: Array) -> list[Any]:
    """Shape, the sum of sizes, and one in which every entry counts differently, relative to that."""
    flat = np.asarray(array, np.float64).ravel()
    size = float(np.abs(flat).max(initial=0.0)) or 1.0
    weights = np.cos(np.arange(flat.size))
    return [list(np.shape(array)), size, float((flat / size) @ weights) / max(flat.size, 1) ** 0.5]


def _alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one: Any, other: Any) -> bool:
    """Whether two choices are one, or two of ``_sums`` the same but for rounding."""
    if one == other or not (isinstance(one, list) and isinstance(other, list)):
        return bool(one == other)
    (shape, size, relative), (other_shape, other_size, other_relative) = one, other
    near = abs(size - other_size) <= _AGREE * size and abs(relative - other_relative) <= _AGREE
    return bool(shape == other_shape and near)
