"""The layers of a model of JAX with the loops over time that it writes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradscope.checkpoints.found import Found, holder_of
from gradscope.checkpoints.jax.held import BETWEEN, HELD, UNSEEN, held_back, held_within
from gradscope.checkpoints.jax.loop import jax_loops
from gradscope.checkpoints.jax.traced import UntracedError
from gradscope.checkpoints.pure_steps import Pure
from gradscope.checkpoints.recording import Recorded
from gradscope.errors import InputError


@dataclass(frozen=True)
class PureModel:
    """A model as JAX sees it.

    call : it as a function of its weights, by their names in its checkpoint; kind : what the class of a
    module of a name is called; by : its framework.
    """

    call: Pure
    weights: Mapping[str, Any]
    kind: Callable[[str], str]
    by: str


def with_loops(
    source: str, model: PureModel, batch: Any, layers: Sequence[Found], recording: Recorded
) -> tuple[tuple[Found, ...], Recorded]:
    """The layers and their recording, with the loops of a model that are not those of one of these layers.

    Raises InputError where there is no layer and no loop, and it is known why.
    """
    layers, recording, between = _with_held(model, batch, layers, recording)
    told = [one for one in layers if one.name in recording.layers or one.derivatives]
    told = [one for one in told if one.name not in between]
    others = {name for one in told for name in model.weights if _is_of(name, one)}
    if others >= model.weights.keys():
        return tuple(layers), recording
    try:
        found = jax_loops(model.call, model.weights, batch, model.by, model.kind, others)
    except UntracedError as error:
        if layers:  # what else it does is not seen
            return tuple(layers), recording
        raise InputError(f"{source}: holds no recurrent layer of this library; the model {error}") from error
    except InputError as error:
        if between:
            return tuple(layers), recording
        if layers:
            said = (
                f"the model is recurrent elsewhere too, by all that is seen, and that is left out: it {error}"
            )
            return tuple(replace(one, not_applied=(*one.not_applied, said)) for one in layers), recording
        raise InputError(f"{source}: holds no recurrent layer of this library; the model {error}") from error
    used = {name for loop in found.values() for name in loop.used()}
    kept = [one for one in layers if one in told or used.isdisjoint(between.get(one.name, one.keys))]
    kept += [
        Found(name, {}, kind=loop.kind, derivatives=loop, assumed=loop.said) for name, loop in found.items()
    ]
    return tuple(kept), replace(recording, own={**recording.own, **found})


def _with_held(
    model: PureModel, batch: Any, layers: Sequence[Found], recording: Recorded
) -> tuple[list[Found], Recorded, dict[str, list[str]]]:
    """The layers and their recording, in which those that hold gradients back say so.

    Also returns those where that is between steps that were called, with their weights: they are
    differentiated as loops, if at all.
    """
    there = [one for one in layers if one.name in recording.layers or one.derivatives]
    keys = {one.name: [key for key in model.weights if _is_of(key, one)] for one in there}
    kept, own, found = [*layers], {**recording.own}, {**recording.layers}
    try:
        held = held_back(model.call, model.weights, batch, keys) if there else {}
    except InputError:
        held, found = {}, {name: replace(one, unseen=UNSEEN) for name, one in found.items()}
    apart: dict[str, list[str]] = {}
    for name, count in held.items():
        steps = own.get(holder := holder_of(name, own))
        call = steps.second_call() if steps else None
        if steps is None or (call and count > held_within(*call)):
            own.pop(holder, None)
            apart[name] = keys[name]
        if name in found:
            found[name] = replace(found[name], unlike=HELD)
        elif name in apart:
            kept = [
                replace(one, derivatives=None, problem=BETWEEN) if one.name == name else one for one in kept
            ]
    return kept, replace(recording, layers=found, own=own), apart


def _is_of(weight: str, layer: Found) -> bool:
    """Whether a weight is of a layer, or of a module that is one."""
    if layer.derivatives:
        return weight in layer.derivatives.weights() or weight.startswith(
            (f"{layer.name}.", f"{layer.name}/")
        )
    return weight in layer.keys
