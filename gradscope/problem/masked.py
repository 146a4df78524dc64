"""The problems along networks that have the masks of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradscope.cells.masked import mask_width, masked
from gradscope.cells.notation import is_recurrent
from gradscope.custom_types import Array
from gradscope.errors import InputError, as_option
from gradscope.linearize.budget import check_memory
from gradscope.problem.masks import Drawn
from gradscope.problem.problem import Problem


def check_masks(problems: Sequence[Problem], drawn: Drawn) -> None:
    """Raise InputError where these layers have no such masks."""
    asked = drawn.option
    if len(problems) > 1:
        raise InputError(f"{asked} is of one layer: choose one with {as_option('layer')}")
    (problem,) = problems
    cell = problem.system.cell
    if problem.view == "cell":
        raise InputError(f"{asked} is of the chain of the whole state: leave {as_option('view')} 'cell' out")
    if problem.origin.jacobians != "own":
        raise InputError(
            f"{asked}: this layer is differentiated by {problem.origin.jacobians}, step by step as it ran "
            f"without masks: leave {asked} out"
        )
    if drawn.law != "zoneout" and not any(map(is_recurrent, cell.paths)):
        raise InputError(
            f"{asked} is about the recurrent matrices, and cell {cell.name} names no path R... "
            f"through them: name its paths, or leave {asked} out"
        )
    if len(drawn.probability) > 1 and len(cell.components) < 2:
        raise InputError(
            f"{asked} has two probabilities, but the state of cell {cell.name} is its output alone"
        )


def masked_problems(problem: Problem, drawn: Drawn) -> tuple[Problem, Problem]:
    """The problem with each sequence ``drawn.count`` times, with masks of their own; and with mean masks."""
    system = problem.system
    width = mask_width(system.cell, drawn.law, system.hidden)
    shape = (drawn.count * system.batch, system.steps, width)
    check_memory(system.cell, system.hidden, (*shape[:2], system.input_size + width), top=True)
    mean = np.broadcast_to(_mean(problem, drawn, width), (system.batch, system.steps, width))
    return _along(problem, drawn, _masks(problem, drawn, shape)), _along(problem, drawn, mean)


def _along(problem: Problem, drawn: Drawn, masks: Array) -> Problem:
    """The problem of the cell that reads these masks, each sequence as often as there are masks for it."""
    system = problem.system
    times = len(masks) // system.batch
    along = replace(
        system,
        cell=masked(system.cell, drawn.law, system.hidden, problem.kept),
        inputs=np.concatenate([np.repeat(system.inputs, times, axis=0), masks], axis=2),
        state=np.repeat(system.state, times, axis=0),
        lengths=system.lengths and tuple(np.repeat(system.lengths, times).tolist()),
        mask=None,
        states=None,
    )
    return Problem(along, top=1, only="gain", origin=problem.origin)


def _masks(problem: Problem, drawn: Drawn, shape: tuple[int, int, int]) -> Array:
    """Masks (B, T, width): of recurrent dropout the same at every step of a sequence."""
    rng = np.random.default_rng([drawn.seed, 1])  # inputs and weights are drawn with the seed alone
    if drawn.law == "zoneout":
        mean = _mean(problem, drawn, shape[2])
        return (rng.random(shape) < mean).astype(float)
    (p,) = drawn.probability
    if drawn.law == "h-detach":
        return (rng.random(shape) >= p).astype(float)
    once = (rng.random((shape[0], 1, shape[2])) >= p) / (1 - p)
    return np.broadcast_to(once, shape)


def _mean(problem: Problem, drawn: Drawn, width: int) -> Array:
    """The mean of a mask, (width,)."""
    if drawn.law == "recurrent-dropout":
        return np.ones(width)
    if drawn.law == "h-detach":
        return np.full(width, 1 - drawn.probability[0])
    kept = np.full(width, drawn.probability[0])
    kept[problem.system.output] = drawn.probability[-1]
    return kept
