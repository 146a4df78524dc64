"""Connected layers as one problem of all their states: a stack is a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.cells.cell import Member
from gradscope.cells.stack import stacked
from gradscope.custom_types import Array
from gradscope.errors import InputError, as_option, listed
from gradscope.linearize.budget import check_memory
from gradscope.linearize.system import System
from gradscope.problem.problem import Problem, chosen_top, known_paths
from gradscope.problem.problems import Stack

if TYPE_CHECKING:
    from gradscope.checkpoints import Layer, Model


def stacks_of(
    model: Model, layers: Sequence[Layer], problems: Sequence[Problem], cut: tuple[str, ...], top: Any
) -> tuple[Stack, ...]:
    """The stacks among the layers; cut : their paths to leave out."""
    groups = sorted(sorted(group) for group in connected_groups(layers) if len(group) > 1)
    made = tuple(_stack(model, group, layers, problems, cut, top) for group in groups)
    every = [path for stack in made for path in stack.problem.system.cell.paths]
    if wrong := [path for path in cut if path not in every]:
        between = f"expected one of {listed(every)}, or" if every else "they have no paths between them:"
        raise InputError(
            f"{as_option('cut')} {listed(wrong)} of several layers: {between} choose one layer with --layer"
        )
    return made


def connected_groups(layers: Sequence[Layer]) -> list[set[int]]:
    """Numbers of the layers, together where one reads the other in its own direction of time."""
    groups: list[set[int]] = []
    for number, layer in enumerate(layers):
        joining = [group for group in groups if any(_reads(layer, layers[other]) for other in group)]
        groups = [group for group in groups if group not in joining]
        groups.append({number}.union(*joining))
    return groups


def _reads(layer: Layer, other: Layer) -> bool:
    return other.name in (layer.below or ()) and other.direction == layer.direction


def _stack(
    model: Model,
    group: Sequence[int],
    layers: Sequence[Layer],
    problems: Sequence[Problem],
    cut: tuple[str, ...],
    top: Any,
) -> Stack:
    """The problem of all states of the layers ``group``, which share their inputs' order of time."""
    widths = {layer.name: features_of(layer) for layer in model.layers}
    inside = {layers[number].name: place for place, number in enumerate(group)}
    members, pieces, taken = [], [], 0
    for number in group:
        layer, system = layers[number], problems[number].system
        reads: list[int | tuple[int, int]] = []
        offset = 0
        for name in layer.below or ("",):
            width = widths.get(name, system.input_size)
            if name in inside:
                reads.append(inside[name])
            else:  # what is given, or a layer of the other direction: held as it is
                pieces.append(system.inputs[:, :, offset : offset + width])
                reads.append((taken, taken + width))
                taken += width
            offset += width
        members.append(Member(system.cell, system.hidden, system.input_size, number, tuple(reads)))
    cell = stacked(tuple(members))
    first = problems[group[0]]
    state = np.concatenate([problems[number].system.state for number in group], axis=1)
    size, steps = state.shape[1], first.system.steps
    # The states, of the layers and side by side, beside what is read.
    check_memory(cell, size, (first.system.batch, steps, taken + size), top is not None)
    system = replace(
        first.system,
        cell=cell,
        hidden=size,
        parameters={
            f"layer{number}.{name}": array
            for number in group
            for name, array in problems[number].system.parameters.items()
        },
        inputs=np.concatenate(pieces, axis=2),
        state=state,
        states=np.concatenate([_states(problems[number].system) for number in group], axis=2),
    )
    cut = known_paths(cell, tuple(path for path in cut if path in cell.paths), "state", steps)
    twice = tuple(f"layer{number}.{name}" for number in group for name in problems[number].twice)
    whole = replace(first, system=system, cut=cut, top=chosen_top(top, size), twice=twice)
    return Stack(tuple(group), whole)


def _states(system: System) -> Array:
    """Those that a layer of a stack goes along."""
    assert system.states is not None
    return system.states


def features_of(layer: Layer) -> int:
    """Features that a layer puts out."""
    part = layer.cell.output(layer.hidden)
    return int(part.stop - part.start)
