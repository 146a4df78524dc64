"""The problems along networks that have the masks of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.masked import mask_width, masked, masked_stack
from gradscope.cells.notation import is_recurrent
from gradscope.custom_types import Array
from gradscope.errors import InputError, as_option
from gradscope.linearize.budget import check_memory
from gradscope.problem.masks import Drawn
from gradscope.problem.problem import Problem


def check_masks(problems: Sequence[Problem], drawn: Drawn) -> None:
    """Raise InputError where these layers and stacks have no such masks."""
    for problem in problems:
        _check_chain(problem, drawn.option)
        cell = problem.system.cell
        for one in (member.cell for member in cell.members) if cell.members else (cell,):
            _check_cell(one, drawn)


def _check_chain(problem: Problem, asked: str) -> None:
    if problem.view == "cell":
        raise InputError(f"{asked} is of the chain of the whole state: leave {as_option('view')} 'cell' out")
    if problem.origin.jacobians != "own":
        raise InputError(
            f"{asked}: this layer is differentiated by {problem.origin.jacobians}, step by step as it ran "
            f"without masks: leave {asked} out"
        )


def _check_cell(cell: Cell, drawn: Drawn) -> None:
    asked = drawn.option
    if drawn.law != "zoneout" and not any(map(is_recurrent, cell.paths)):
        raise InputError(
            f"{asked} is about the recurrent matrices, and cell {cell.name} names no path R... "
            f"through them: name its paths, or leave {asked} out"
        )
    if len(drawn.probability) > 1 and len(cell.components) < 2:
        raise InputError(
            f"{asked} has two probabilities, but the state of cell {cell.name} is its output alone: give one"
        )


def masked_problems(problem: Problem, drawn: Drawn, number: int = 0) -> tuple[Problem, Problem]:
    """The problem with each sequence ``drawn.count`` times, with masks of their own; and with mean masks.

    number : of the problem among those that stand side by side, whose masks are drawn independently.
    """
    system = problem.system
    mean = np.concatenate([_mean(cell, hidden, drawn) for cell, hidden in _cells(problem)])
    shape = (drawn.count * system.batch, system.steps, len(mean))
    check_memory(system.cell, system.hidden, (*shape[:2], system.input_size + len(mean)), top=True)
    whole = np.broadcast_to(mean, (system.batch, *shape[1:]))
    masks = _masks(drawn, mean, shape, number)
    return _along(problem, drawn, masks), _along(problem, drawn, whole)


def _cells(problem: Problem) -> list[tuple[Cell, int]]:
    """The cells with their hidden sizes, of a stack those of its layers."""
    cell = problem.system.cell
    return [(one.cell, one.hidden) for one in cell.members] or [(cell, problem.system.hidden)]


def _along(problem: Problem, drawn: Drawn, masks: Array) -> Problem:
    """The problem of the cell that reads these masks, each sequence as often as there are masks for it."""
    system = problem.system
    times, stack = len(masks) // system.batch, bool(system.cell.members)
    along = replace(
        system,
        cell=masked_stack(system.cell, drawn.law, system.input_size)
        if stack
        else masked(system.cell, drawn.law, system.hidden, problem.kept),
        inputs=np.concatenate([np.repeat(system.inputs, times, axis=0), masks], axis=2),
        state=np.repeat(system.state, times, axis=0),
        lengths=system.lengths and tuple(np.repeat(system.lengths, times).tolist()),
        mask=None,
        states=None,
    )
    return Problem(along, problem.cut if stack else (), top=1, only="gain", origin=problem.origin)


def _masks(drawn: Drawn, mean: Array, shape: tuple[int, int, int], number: int) -> Array:
    """Masks (B, T, width): of recurrent dropout the same at every step of a sequence."""
    rng = np.random.default_rng([drawn.seed, 1 + number])  # inputs and weights: with the seed alone
    if drawn.law != "recurrent-dropout":
        return (rng.random(shape) < mean).astype(float)
    (p,) = drawn.probability
    once = (rng.random((shape[0], 1, shape[2])) >= p) / (1 - p)
    return np.broadcast_to(once, shape)


def _mean(cell: Cell, hidden: int, drawn: Drawn) -> Array:
    """The mean of a mask, (width,)."""
    width = mask_width(cell, drawn.law, hidden)
    if drawn.law == "recurrent-dropout":
        return np.ones(width)
    if drawn.law == "h-detach":
        return np.full(width, 1 - drawn.probability[0])
    kept = np.full(width, drawn.probability[0])
    kept[cell.output(hidden)] = drawn.probability[-1]
    return kept
