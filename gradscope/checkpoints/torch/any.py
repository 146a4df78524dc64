"""What of a PyTorch model is analysed by equations of ours, and what by torch's own derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradscope.checkpoints.derivatives import Derivatives
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.live import CALLED
from gradscope.checkpoints.recording import Recorded
from gradscope.checkpoints.torch.own import Own, feeds_itself, owned, recurrent, within
from gradscope.checkpoints.torch.recording import States, recorded
from gradscope.checkpoints.torch.steps import TorchSteps, class_of
from gradscope.checkpoints.torch_loops.loop import TorchLoop
from gradscope.errors import InputError, listed, shown


def with_own(
    source: str,
    model: Any,
    batch: Any,
    layers: Sequence[Found],
    cells: Sequence[str],
    hooked: Iterable[Any],
    may_change: Callable[[Any], bool],
) -> tuple[tuple[Found, ...], Recorded]:
    """The layers of a model and what they were recorded to do, with the modules that torch differentiates.

    cells : modules that the user names; hooked : those that functions of the user's are called in;
    may_change : as for ``recorded``. Raises InputError as that does, and where one that is named cannot be
    stepped.
    """
    own = owned(model, cells, hooked)
    recording, ends = recorded(source, model, batch, layers, own, may_change)
    modules = dict(model.named_modules(remove_duplicate=False))
    unlike = {name for name, one in recording.layers.items() if one.unlike}
    told = [one for one in layers if one.name in ends and one.name not in unlike]
    told = [modules[one.module] for one in told if one.module in modules]
    found, problems = recurrent(own, cells, {one.module for one in layers}, told)
    if wrong := [name for name in cells if name in problems]:
        raise InputError(f"{source}: module {shown(wrong[0])} {problems[wrong[0]]}")
    kept = list(layers)
    for name, derivatives in found.items():
        same = {layer: end for layer, end in ends.items() if layer not in unlike}
        kept = _with(
            name,
            derivatives,
            kept,
            named=name in cells,
            ends=same if isinstance(derivatives, TorchLoop) else ends,
        )
    loops = [one for one in found.values() if isinstance(one, TorchLoop)]
    problems = {
        name: why
        for name, why in problems.items()
        if (len(own[name].calls) == 1 or feeds_itself(own[name]))
        and not any(one.covers(name) for one in loops)
    } or (problems if not kept else {})
    if not kept:
        _refuse(source, own, problems)
    beside = tuple(
        f"{_called(name)} is recurrent too, by all that is seen, and is left out: it {why}"
        for name, why in problems.items()
    )
    order = {name: k for k, name in enumerate(modules)}
    kept.sort(key=lambda one: order.get(one.module, len(order)))
    kept = [replace(one, not_applied=(*one.not_applied, *beside)) for one in kept]
    return tuple(kept), replace(recording, own=found)


def _with(
    name: str, derivatives: Derivatives, layers: list[Found], *, named: bool, ends: Mapping[str, States]
) -> list[Found]:
    """The layers with a module or loop that torch differentiates, in place of those that it is made of."""
    if isinstance(derivatives, TorchLoop) and all(one.module != name for one in layers):
        kept = [one for one in layers if one.name in ends or not derivatives.covers(one.module)]
        said = derivatives.said
    elif named or not _is_told(name, derivatives, layers, ends):
        kept, said = [one for one in layers if not within(one.module, name)], ()
    else:
        return layers
    found = Found(name, {}, kind=derivatives.kind, derivatives=derivatives, assumed=said)
    return [*kept, replace(found, not_applied=derivatives.not_applied)]


def _refuse(source: str, own: Mapping[str, Own], problems: Mapping[str, str]) -> None:
    """Raise InputError, where there are modules of the user's own and no layer."""
    for name, why in problems.items():
        alone = (
            ""
            if len(own[name].calls) == 1 or feeds_itself(own[name])
            else (", and no gradient goes from one of its calls to the next")
        )
        raise InputError(f"{source}: holds no recurrent layer of torch's own; {_called(name)} {why}{alone}")
    if called := [class_of(one.module) for one in own.values() if one.calls]:
        raise InputError(
            f"{source}: holds no recurrent layer of torch's own, and {listed(called)} computes nothing "
            "again and again on what came of it: expected a loop of three steps at least, in each of which a "
            "weight meets what came of the step before, with a gradient all along (no detach, no "
            "torch.no_grad), as none does where gates of what it reads alone scale the state (minGRU, QRNN, "
            f"SSM); {CALLED.format('module')}"
        )


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


def _called(name: str) -> str:
    return f"module {shown(name)}" if name else "the model"
