"""What of a PyTorch model is analysed by equations of ours, and what by torch's own derivatives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradscope.checkpoints.derivatives import Derivatives
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.recording import Recorded
from gradscope.checkpoints.torch_own import feeds_itself, owned, recurrent, within
from gradscope.checkpoints.torch_recording import States, recorded
from gradscope.checkpoints.torch_steps import TorchSteps
from gradscope.errors import InputError, shown


def with_own(
    source: str, model: Any, batch: Any, layers: Sequence[Found], cells: Sequence[str], hooked: Iterable[Any]
) -> tuple[tuple[Found, ...], Recorded]:
    """The layers of a model and what they were recorded to do, with the modules that torch differentiates.

    cells : modules that the user names; hooked : those that functions of the user's are called in. Raises
    InputError as ``recorded`` does, and where one that is named cannot be stepped.
    """
    own = owned(model, cells, hooked)
    recording, ends = recorded(source, model, batch, layers, own)
    found, problems = recurrent(own, cells, [one.module for one in layers])
    if wrong := [name for name in cells if name in problems]:
        raise InputError(f"{source}: module {shown(wrong[0])} {problems[wrong[0]]}")
    kept = list(layers)
    for name, derivatives in found.items():
        if name in cells or not _is_told(name, derivatives, kept, ends):
            kept = [one for one in kept if not within(one.module, name)]
            kept.append(Found(name, {}, kind=derivatives.kind, derivatives=derivatives))
    beside = [_beside(name, why) for name, why in problems.items() if feeds_itself(own[name])]
    if not kept and beside:
        raise InputError(f"{source}: {beside[0]}")
    if not kept and problems:
        name, why = next(iter(problems.items()))
        raise InputError(
            f"{source}: holds no recurrent layer of torch's own; module {shown(name)} {why}, and no gradient "
            "goes from one of its calls to the next"
        )
    order = {name: k for k, name in enumerate(dict(model.named_modules(remove_duplicate=False)))}
    kept.sort(key=lambda one: order.get(one.module, len(order)))
    kept = [replace(one, not_applied=(*one.not_applied, *beside)) for one in kept]
    return tuple(kept), replace(recording, own=found)


def _is_told(
    name: str, derivatives: Derivatives, layers: Sequence[Found], ends: Mapping[str, States]
) -> bool:
    """Whether layers of which there is a recording are the module, or all of its state."""
    mates = [one for one in layers if one.module == name]
    if mates:
        return all(one.name in ends for one in mates)
    inner = [ends[one.name] for one in layers if one.name in ends and within(one.module, name)]
    if not isinstance(derivatives, TorchSteps):
        return bool(inner)
    states = derivatives.states
    return bool(inner) and all(any(_is_of(part, end) for end in inner) for part in states)


def _is_of(states: Sequence[Any], ends: States) -> bool:
    """Whether a part of the state is, after every call, that of an inner layer."""
    return len(states) == len(ends) and all(
        any(np.array_equal(np.squeeze(state), np.squeeze(end)) for end in each)
        for state, each in zip(states, ends, strict=True)
    )


def _beside(name: str, why: str) -> str:
    return f"module {shown(name)} is recurrent too, by all that is seen, and is left out: it {why}"
