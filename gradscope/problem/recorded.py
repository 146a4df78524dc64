"""A model on what it was recorded with: each layer's own inputs, and what they make of the options."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, as_option, counted, flag, listed, quoted, shown
from gradscope.problem.checks import whole_number
from gradscope.problem.inputs import Sequences
from gradscope.problem.problem import Problem
from gradscope.settings import Settings

if TYPE_CHECKING:
    from gradscope.checkpoints import Layer, Model, Recorded, Recording

# What comes with the recording.
_OWN = ("lengths", "initial_state", "embedding")


def on_recorded(settings: Settings, model: Model, recorded: Recorded) -> dict[str, Settings]:
    """The settings of each layer: what it read itself in place of inputs.

    Raises InputError for options that say what the recording does, for a recording that is of other layers,
    and for layers whose sequences are not alike.
    """
    for name in _OWN:
        if (value := getattr(settings, name)) is not None:
            raise InputError(
                f"{as_option(name)} is {quoted(value)}, but the recording has its own: leave "
                f"{as_option(name)} out"
            )
    if settings.input_scale is not None:
        raise InputError(
            f"{as_option('input_scale')} is {settings.input_scale:g}, but the model was run on the inputs as "
            f"they are: leave {as_option('input_scale')} out, and run it on inputs that are scaled"
        )
    if settings.time_major:
        raise InputError(f"a recording knows which axis is time: leave {as_option('time_major')} out")
    _check_same_source(settings, recorded)
    for layer in model.layers:
        check_shapes(layer, recorded.layers[layer.name])
    _check_alike(model, recorded)
    return {layer.name: _of_layer(settings, layer, recorded) for layer in model.layers}


def _check_same_source(settings: Settings, recorded: Recorded) -> None:
    """Raise InputError where there is a recording and inputs besides."""
    given = settings.inputs
    if recorded.made_of_inputs:
        return
    if isinstance(given, str) and given in ("normal", recorded.label):
        return
    if not isinstance(given, str) and str(given) == recorded.label:
        return
    raise InputError(
        f"{as_option('inputs')} are {quoted(given)}, but the model's own were recorded from a batch: leave "
        f"{as_option('inputs')} out, or "
        "give the model without a batch"
    )


def _of_layer(settings: Settings, layer: Layer, recorded: Recorded) -> Settings:
    one = recorded.layers[layer.name]
    inputs = settings.inputs if one.inputs is None else own_inputs(one, recorded.label)
    lengths = one.lengths
    if settings.steps is not None and (lengths or one.mask is not None):
        steps = whole_number("steps", settings.steps, 1)
        if one.mask is None:
            lengths = tuple(min(length, steps) for length in lengths or ())
        else:  # of the steps that were given
            lengths, settings = _unmasked_steps(one.mask[:, :steps]), replace(settings, steps=None)
    return replace(settings, inputs=inputs, lengths=lengths, initial_state=dict(one.state) or None)


def _unmasked_steps(mask: Array) -> tuple[int, ...]:
    counts = mask.sum(axis=1)
    if not counts.all():
        raise InputError(
            f"sequence {int(np.argmin(counts))} is masked at every one of {counted(mask.shape[1], 'step')}"
        )
    return tuple(map(int, counts))


def with_mask(problem: Problem, one: Recording, steps: int | None) -> Problem:
    """The problem of the steps that are left, with what a recorded mask leaves to be said."""
    if one.mask is None:
        return problem
    mask = one.mask[:, :steps]
    masked = tuple(map(int, (~mask).sum(axis=1)))
    system, origin = replace(problem.system, mask=mask), replace(problem.origin, masked=masked)
    return replace(problem, system=system, origin=origin)


def own_inputs(one: Recording, label: str) -> Sequences:
    """What a layer read, as if it were given."""
    assert one.inputs is not None
    return Sequences(one.inputs, "recorded inputs", label=label, batched=True)


def check_shapes(layer: Layer, one: Recording) -> None:
    """Raise InputError where a recording is not of this layer, or not whole: it may be of another model."""
    n = layer.cell.output(layer.hidden)
    width = int(n.stop - n.start)
    sizes = {f"{part}0": place.stop - place.start for part, place in layer.cell.extents(layer.hidden).items()}
    first = next((a for a in (one.inputs, one.outputs, one.last) if a is not None), np.zeros((0, 0)))
    batch = len(first)
    expected = {
        "inputs": (one.inputs, (batch, -1, layer.input_size)),
        "outputs": (one.outputs, (batch, _steps(one), width)),
        "last": (one.last, (batch, width)),
        "mask": (one.mask, (batch, -1)),
        **{key: (array, (batch, sizes.get(key, 0))) for key, array in one.state.items()},
    }
    for key, (array, shape) in expected.items():
        if array is not None and not _fits(array, shape):
            wanted = "(" + ", ".join("T" if size < 0 else str(size) for size in shape) + ")"
            raise InputError(
                f"layer {shown(layer.name)}: the recording has {key} of shape {array.shape}, expected "
                f"{wanted}: is it of this model?"
            )
    if one.state and one.state.keys() != sizes.keys():
        raise InputError(f"layer {shown(layer.name)}: the recording has {listed(list(one.state))} alone")
    if one.inputs is None and not layer.below:
        raise InputError(f"layer {shown(layer.name)}: the recording has no inputs of it: record it again")
    if one.lengths and (len(one.lengths) != batch or not 1 <= max(one.lengths) <= max(_steps(one), 1)):
        raise InputError(f"layer {shown(layer.name)}: the recorded lengths do not fit its sequences")
    if one.mask is not None and not np.array_equal(
        one.mask.sum(axis=1), one.lengths or [_steps(one)] * batch
    ):
        raise InputError(f"layer {shown(layer.name)}: the recorded mask does not fit its sequences")


def _steps(one: Recording) -> int:
    """T, -1 where it is not known."""
    array = one.inputs if one.inputs is not None else one.outputs
    return -1 if array is None else array.shape[1]


def _fits(array: Array, shape: tuple[int, ...]) -> bool:
    return array.ndim == len(shape) and all(
        want in (-1, size) for size, want in zip(array.shape, shape, strict=True)
    )


def _check_alike(model: Model, recorded: Recorded) -> None:
    """One analysis is of as many sequences, of the same lengths, in every layer."""
    having: dict[tuple[object, ...], list[str]] = {}
    for layer in model.layers:
        one = recorded.layers[layer.name]
        if one.inputs is not None:
            mask = () if one.mask is None else tuple(map(tuple, one.mask.tolist()))
            having.setdefault((*one.inputs.shape[:2], one.lengths, mask), []).append(layer.name)
    if len(having) > 1:
        each = [
            f"{listed(names)} {key[0]} of {key[1]} step{'s' * (key[1] != 1)}{', masked' * bool(key[3])}"
            for key, names in having.items()
        ]
        raise InputError(
            f"the layers read sequences that are not alike ({listed(each)}): choose with --layer those that "
            f"read the same, as in {flag('layer')} {shown(next(iter(having.values()))[0])}"
        )
