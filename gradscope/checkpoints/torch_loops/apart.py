"""How the sequences of a batch lie in what a loop does, and from which end it reads them."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradscope.checkpoints.carried import ARGUMENTS, Place, StepCall
from gradscope.checkpoints.derivatives import MIXES
from gradscope.checkpoints.loops.follow import TimeLoop
from gradscope.checkpoints.torch.steps import Stepper, is_real
from gradscope.checkpoints.torch_loops.replay import Replay, replayed
from gradscope.errors import InputError

# So many ways in which the sequences may lie in the state are tried.
_CHOICES = 16


def sequence_axes(whole: Replay, given: Mapping[Place, Any], inputs: Mapping[Place, Any]) -> list[int | None]:
    """Along which axis of every part of the state the sequences are, None of one alone.

    whole : a run in which the first state alone is cut; inputs : leaves of the same.
    """
    tensors = [tensor for place, tensor in given.items() if place[0] == ARGUMENTS]
    sizes = dict.fromkeys(
        size for tensor in tensors if tensor.ndim > 1 for size in tensor.shape[:2] if size > 1
    )
    for size in sizes:
        having = [[k for k, own in enumerate(shape) if own == size] for shape in whole.loop.shapes]
        for axes in itertools.islice(itertools.product(*having), _CHOICES):
            if _is_apart(whole, axes, inputs, size):
                return list(axes)
    several = [t for t in tensors if t.ndim > 1 + is_real(t) and 1 not in t.shape[:2]]
    if several:
        raise InputError(MIXES)
    return [None] * len(whole.loop.shapes)


def _is_apart(whole: Replay, axes: Sequence[int | None], inputs: Mapping[Place, Any], size: int) -> bool:
    """Whether what the first and the last sequence do depends on no other one."""
    torch = importlib.import_module("torch")
    loop = whole.loop
    late, by = whole.new(min(loop.first + 4, loop.last)), [*whole.state(loop.first), *inputs.values()]
    for sequence in (0, size - 1):
        rows = []
        for tensor, axis in zip(late, axes, strict=True):
            row = torch.zeros_like(tensor)
            row.select(axis, sequence).uniform_(1, 2)
            rows.append(row)
        live = [(tensor, row) for tensor, row in zip(late, rows, strict=True) if tensor.requires_grad]
        if not live:
            return True
        ends, outer = zip(*live, strict=True)
        found = torch.autograd.grad(ends, by, outer, retain_graph=True, allow_unused=True)
        own = [[axis] for axis in axes]
        own += [[k for k, one in enumerate(t.shape[:2]) if one == size] for t in inputs.values()]
        for gradient, places in zip(found, own, strict=True):
            if gradient is None or not places:
                continue
            others = [k for k in range(size) if k != sequence]
            if all(gradient.movedim(axis, 0)[others].any() for axis in places):
                return False
    return True


def is_backward(stepper: Stepper, call: StepCall, loop: TimeLoop) -> bool:
    """Whether the loop reads what it is given from the end: on that, not on the start, is its first state."""
    state = min(number for made in loop.makes.values() for number, *_ in made)
    try:
        own = _state_of(stepper, call, loop, state)
        for place, tensor in call.given.items():
            for axis in range(min(tensor.ndim, 3)) if place[0] == ARGUMENTS else ():
                if tensor.shape[axis] < max(len(loop.starts), 2):
                    continue
                start, end = (
                    _state_of(stepper, _changed(call, place, axis, at), loop, state) for at in (0, -1)
                )
                moved = [any(map(_differ, own, other)) for other in (start, end)]
                if moved[0] != moved[1]:
                    return moved[1]
    except InputError:  # it does something else on other numbers
        pass
    return False


def _state_of(stepper: Stepper, call: StepCall, loop: TimeLoop, state: int) -> list[Any]:
    made = replayed(stepper, call, loop, ()).made
    return [made[key].detach() for key in sorted(made) if key[0] == state]


def _changed(call: StepCall, place: Place, axis: int, at: int) -> StepCall:
    """The call with other numbers at one index of what it is given: those of its neighbour."""
    tensor = call.given[place].clone()
    beside = tensor.select(axis, 1 if at == 0 else -2)
    tensor.select(axis, at).copy_(beside * 1.5 + 0.5 if is_real(tensor) else beside)
    return replace(call, given={**call.given, place: tensor})


def _differ(one: Any, other: Any) -> bool:
    return one.shape != other.shape or bool((one != other).any())
