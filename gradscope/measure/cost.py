"""How long chains take: from their sizes, in units of a small piece of work that is timed on this machine.

The constants are fitted to runs of `benchmarks/waiting.py`, which prints how far off they are.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.machine import cores, one_blas_thread
from gradscope.problem.problem import Problem
from gradscope.product_svd.error_estimate import WORTH_A_THREAD, draws
from gradscope.product_svd.grown_rows import few_steps
from gradscope.product_svd.lapack import dgetrf
from gradscope.product_svd.plain_values import few_of_many
from gradscope.settings import Only

# Units for a step of a chain of m states, gone through once: calls, reading and writing, operations. Runs on
# changed entries of small chains go side by side, in the calls of one.
_CALLS, _SQUARE, _CUBE = 8.0, 5e-4, 1.8e-6
_RUNS_IN_CALLS = 2
# Besides, for the norm at a lag.
_LAG = 8.0
# Of a path alone, which is no sum of parts, and whose norm is looked at above the threshold: calls, passes.
_PATH_CALLS, _PATH = 0.4, 0.75
# Of a block of the product, whose lags are bounds below the threshold and whose x is small: all.
_BLOCK = 0.6
# Once for every run, of a product of m values: the SVD, whatever the number of steps.
_FINISH = 2e-5
# Units for the start of a process, and for a program that is compiled.
_START, _COMPILED = 1.8e4, 1.3e4
# Units for a step of a chain of m states in a compiled program, gone through once; for such a program.
_STEP, _PROGRAM_SQUARE, _PROGRAM_CUBE = 0.8, 2.5e-4, 3e-6
PROGRAM = 6e4
# How many times as long accelerators take for those (an H100 9 s for a chain of 128 states).
LONGER_TO_COMPILE = 5
# Units for a step of one of the plain products side by side, with its norm.
_BESIDE, _BESIDE_SQUARE, _BESIDE_CUBE = 0.9, 1.2e-4, 5.5e-7
# The same for every square of the states, where there are few steps of many.
_FEW_SQUARE = 3e-4
# Besides, of one that has none beside it: the calls; of one with several values, and how many times it.
_ALONE, _SEVERAL_CALLS, _SEVERAL = 2.5, 7.0, 1.8
# Units for a step of a chain whose spectrum is there already.
KNOWN = 1e-3
# So many of it are timed at once, and how often, 40 ms in all: long enough to see that others are at work.
_AT_ONCE, _TIMED = 5, 200
# The same at a glance, of which the quickest counts, where the answer is not near; how far off that may be.
_GLANCED, _DOUBTED = 3, 3.0
# Passes of a block of columns over a chain for its top values and those of its lags; columns of a block.
TOP_PASSES, _COLUMNS = 11, 16
# Units for a step of such a pass, and for a million multiplications in it.
_PASSED, _MULTIPLIED = 0.2, 1.3
# Such numbers for a derivative of the step of a cell without slopes of units, and of a layer of a stack, for
# every square of its states.
_DERIVED, _STACKED = 4, 24
# Programs for each path that a stack is without; how much longer each takes to compile for a further layer.
_OF_BLOCKS, _OF_LAYER = 5, 0.6
# Programs that the sensitivity of a gain wants.
_OF_SENSITIVITY = 4


@dataclass(frozen=True)
class Work:
    """What is asked of some sequences of one problem.

    sizes : states of each layer, one but in a stack; cell : of a layer; top : as in Problem.
    """

    sizes: tuple[int, ...]
    cell: Cell | None
    hidden: int
    steps: int
    sequences: int
    only: Only = "all"
    top: int | None = None


def work_of(problem: Problem, sequences: int) -> Work:
    """The work on some sequences of a problem."""
    system, members = problem.system, problem.system.cell.members
    size = system.hidden if problem.view == "cell" else system.cell.size(system.hidden)
    sizes = tuple(member.size for member in members) or (size,)
    cell = None if members else system.cell
    return Work(sizes, cell, system.hidden, system.steps, sequences, problem.only, problem.top)


def chain_cost(size: int, steps: int, *, rows: int = 0, path: bool = False) -> float:
    """Units for a step of a chain of so many with all its runs and lags, and its part of their finish.

    rows : of a block of the product, which is all that is multiplied and factored.
    """
    once = _SQUARE * size**2 + _CUBE * size**3
    passed = runs(size) * once * (rows or size) / size
    finish = runs(size) * _FINISH * (rows or size) ** 3 / steps
    calls = _calls(size)
    if path:
        return _PATH_CALLS * calls + _PATH * passed + finish
    return (calls + passed + finish) * (_BLOCK if rows else 1.0)


def plain_cost(size: int, rows: int = 0, *, steps: float = math.inf, top: int = 1) -> float:
    """Units for a step of the plain product of a chain, which has its top values; rows : as there."""
    few = few_steps(steps, size, [rows or size], top)
    share, steps = (1.0, steps) if few else ((rows or size) / size, math.inf)
    return _SEVERAL_CALLS + _SEVERAL * without_cost(size, 1, steps=steps) * share


def without_cost(size: int, paths: int, *, steps: float = math.inf) -> float:
    """Units for a step of the chains without each of so many paths."""
    if few_steps(steps, size):
        return paths * (_BESIDE + _FEW_SQUARE * size**2)
    return paths * (_BESIDE + _BESIDE_SQUARE * size**2 + _BESIDE_CUBE * size**3)


def saved_by_program(size: int, accelerator: bool = False) -> float:
    """Units for a step that a compiled program takes less than the host; on an accelerator about all."""
    host = _calls(size) + runs(size) * (_SQUARE * size**2 + _CUBE * size**3)  # the finish is there either way
    once = _STEP + _PROGRAM_SQUARE * size**2 + _PROGRAM_CUBE * size**3
    return host if accelerator else max(0.0, host - runs(size) * once)


def _calls(size: int) -> float:
    """Units for a step of a chain of so many, whatever is in it: all its runs, and the norm at a lag."""
    return min(runs(size), _RUNS_IN_CALLS) * _CALLS + _LAG


def runs(size: int) -> int:
    """How often a chain is gone through, on changed entries for the error."""
    return 1 + draws(size)


def chain_costs(work: Work) -> dict[str, float]:
    """Units for a step of every chain of a problem, the full one first."""
    if _first(work):
        return {"full": _ALONE + without_cost(sum(work.sizes), 1, steps=work.steps)}
    costs = {"full": _of_chain(work, sum(work.sizes))}
    parts = _parts(work)
    if parts > 1:
        costs["without"] = without_cost(sum(work.sizes), parts, steps=work.steps)
    for j in range(len(work.sizes)):
        for i in range(j):
            costs[f"{i}->{j}"] = _of_chain(work, sum(work.sizes[i : j + 1]), rows=work.sizes[j])
    if work.cell is not None:
        paths = _paths(work.cell, work.hidden)
        costs |= {name: _of_chain(work, size, path=True) for name, size in paths}
    return costs


def _of_chain(work: Work, size: int, *, rows: int = 0, path: bool = False) -> float:
    """Units for a step of a chain with all its values, or those of its plain product."""
    if work.top is not None and few_of_many(rows or size, work.top):
        return plain_cost(size, rows, steps=work.steps, top=work.top)
    return chain_cost(size, work.steps, rows=rows, path=path)


def _first(work: Work) -> bool:
    """Whether the first value of the full chain is all that is asked for."""
    return work.only in ("verdict", "gain")


def _paths(cell: Cell, hidden: int) -> Iterator[tuple[str, int]]:
    """The paths that are factored, with their sizes."""
    extents = list(cell.extents(hidden).values())
    if len(cell.paths) == len(extents) == 1:
        return  # all there is
    for path in cell.paths:
        source = cell.source(path)
        if cell.units is None or path.startswith("R"):  # others are diagonal
            yield path, cell.size(hidden) if source is None else extents[source].stop - extents[source].start


def all_values(work: Work) -> float:
    """Units for all sequences, with every value (or the first, where no more is wanted)."""
    steps = work.steps * work.sequences
    return steps * sum(chain_costs(work).values()) - _saved(work, steps)


def _saved(work: Work, steps: int) -> float:
    """Units that compiled programs save, where they pay for being compiled."""
    if _first(work) or (work.top is not None and few_of_many(sum(work.sizes), work.top)):
        return 0.0
    full = saved_by_program(sum(work.sizes))
    paths = Counter(size for _, size in _paths(work.cell, work.hidden)) if work.cell else Counter[int]()
    # A path is cheaper on the host than the full chain of its size.
    each = [full, *(count * _PATH_CALLS * saved_by_program(size) for size, count in paths.items())]
    return sum(max(0.0, steps * saved - PROGRAM) for saved in each)


def without_jacobians(work: Work) -> float:
    """Units for the same by the top values alone."""
    numbers = _by_column(work)
    columns = _COLUMNS * work.sequences / 1e6
    each = [_PASSED + _MULTIPLIED * columns * count for count in numbers]
    # Of the trajectory and of shares; and of chains whose steps are of one kind, passes and lags.
    alone = _first(work)
    programs = (1 if alone else 3) + 2 * len(set(numbers))
    if work.cell is None and not alone:  # without each of its blocks the steps of a stack are others
        programs += _OF_BLOCKS * _parts(work)
    return programs * _larger(work) * _COMPILED + TOP_PASSES * work.steps * sum(each)


def sensitivity_programs(work: Work) -> float:
    """What is compiled to find how the gain changes, in programs of the size of a cell's."""
    return _OF_SENSITIVITY * _larger(work)


def _larger(work: Work) -> float:
    """How much longer than a cell's a program takes to compile."""
    return 1 + _OF_LAYER * (len(work.sizes) - 1)


def _parts(work: Work) -> int:
    """How many paths there are."""
    layers = len(work.sizes)
    return len(work.cell.paths) if work.cell is not None else layers * (layers + 1) // 2


def _by_column(work: Work) -> list[int]:
    """How many numbers a column is multiplied by at a step of each chain, the full one first."""
    cell, layers = work.cell, len(work.sizes)
    units = cell is not None and cell.units is not None
    full = (_DERIVED if cell is not None else _STACKED) * sum(size**2 for size in work.sizes)
    if cell is not None and units:
        full = sum(path.startswith("R") for path in cell.paths) * work.hidden**2
    if _first(work):
        return [full]
    parts = _parts(work)
    blocks = layers * (layers - 1) // 2
    alone = list(_paths(cell, work.hidden)) if cell is not None else []
    without = parts if parts > 1 else 0
    return [full] * (1 + without + blocks) + [work.hidden**2 if units else full for _ in alone]


def units(work: Work) -> float:
    """Units for all of it, one sequence after the other."""
    if work.top is None:
        return all_values(work)
    return min(all_values(work), without_jacobians(work))


def sooner_without_jacobians(problem: Problem) -> bool:
    """Whether some values are found sooner than all are: of few steps of few states programs take longest.

    The same in all processes of a cluster: they look at the whole batch, and not at themselves.
    """
    work = work_of(problem, problem.system.batch)
    return without_jacobians(work) <= all_values(work)


def seconds(works: Sequence[Work], at_once: int, programs: float = 0.0) -> float:
    """About how long all of it takes on this machine; at_once : as in ``Means``; programs : further ones."""
    programs += len({(work.cell and work.cell.name, work.hidden) for work in works})
    taken = _START + _COMPILED * programs
    return (taken + sum(_waited(work, at_once) for work in works)) * unit_seconds()


def _waited(work: Work, at_once: int) -> float:
    """Units for all of it, of large chains sequences side by side, or else what two threads share of one."""
    every, at_once = units(work), min(at_once, work.sequences)
    together = work.top is not None and without_jacobians(work) <= all_values(work)
    if together or sum(work.sizes) < WORTH_A_THREAD or cores() < 2:
        return every
    if at_once > 1:
        return every / at_once
    beside = work.steps * work.sequences * chain_costs(work).get("without", 0.0)
    # All values take two runs over a chain, in a thread each; few of them one.
    return max(beside, every / 2 if work.top is None else every - beside)


def surely_below(limit: float, works: Sequence[Work]) -> bool:
    """Whether all of it takes less than so many seconds, seen at a glance."""
    return _DOUBTED * sum(map(units, works)) * min(_timed(_GLANCED)) < limit


@cache
def unit_seconds() -> float:
    """Seconds that a small factorisation with what is around it takes here, now."""
    each = _timed(_TIMED)
    return sum(each) / len(each)


@cache
def _timed(often: int) -> list[float]:
    """The same, by a few, timed so often."""
    a = np.random.default_rng(0).normal(size=(64, 64))

    def once() -> float:
        began = time.perf_counter()
        for _ in range(_AT_ONCE):
            lu = dgetrf(a.T)[0]
            np.ldexp(np.abs(a @ lu).max(axis=1), 1)
        return (time.perf_counter() - began) / _AT_ONCE

    with one_blas_thread():
        once()
        return [once() for _ in range(often)]
