"""The self-check: what gradscope computes of a model is what the model's own layers put out.

What rounding explains is measured. The layers' outputs are computed as they are and, DRAWS times, from
numbers that differ by one rounding of the model's dtype, at random: what that moves up to a step is what the
model's own rounding may move, chaos included. Disagreement beyond SAFETY times that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gradscope.checkpoints import Layer, Model, Recorded, Recording, by_derivatives, holder_of
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, shown
from gradscope.linearize.system import System, reversed_within
from gradscope.linearize.trajectory import outputs, states_of

if TYPE_CHECKING:
    from jax import Device

# Times the deviation that one rounding of every number makes, the largest of so many draws. Of 400 LSTM, GRU
# and RNN of PyTorch in float64, float32 and bfloat16, many of them chaotic, none was beyond 2.7 times.
SAFETY, DRAWS = 8.0, 3
# From this amplification of a rounding on, another rounding may meet what these have not: the square root of
# it more.
_AMPLIFIED = 16.0
# A tolerance of this part of the outputs tells nothing any more.
_TELLS_NOTHING = 0.3
# From this part on it is said what it may hide, as of bfloat16.
_TELLS_LITTLE = 0.01


@dataclass(frozen=True)
class Compared:
    """What a layer puts out, (B, T, n), in the order in which it reads.

    exact : by the model's numbers; shaken : by numbers that differ by a rounding, of every draw.
    """

    exact: Array
    shaken: tuple[Array, ...]
    rounding: float

    @property
    def tolerance(self) -> Array:
        """(B, T): what rounding explains up to each step."""
        moved = np.max([np.abs(shaken - self.exact).max(axis=2) for shaken in self.shaken], axis=0)
        unit = self.rounding * np.maximum.accumulate(np.abs(self.exact).max(axis=2), axis=1)
        moved = np.maximum.accumulate(moved, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            amplified = np.where(unit > 0, moved / unit, 1) / _AMPLIFIED
        return SAFETY * (moved + unit) * np.sqrt(np.maximum(amplified, 1))


class DisagreementError(InputError):
    """What gradscope computes of a layer is not what it put out, or not its derivative."""

    def __init__(self, layer: Layer, message: str, what: str = "it computes something else") -> None:
        super().__init__(message)
        self.layer, self.what = layer, what


def settled(
    model: Model, recorded: Recorded, dtype: str, devices: Sequence[Device]
) -> tuple[Model, dict[str, str]]:
    """The model whose every layer is what it put out, and what of a layer cannot be told, {layer: sentence}.

    A layer that computes something else is differentiated by its own framework, where that is in reach; it is
    an error else.
    """
    said: dict[str, str] = {}
    while True:
        try:
            return model, check_recorded(model, model.recorded or recorded, dtype, devices) | said
        except DisagreementError as error:
            module = holder_of(error.layer.name, recorded.own)
            if module not in recorded.own:
                raise
            by = recorded.own[module].by
            try:
                model = by_derivatives(model, error.layer)
            except InputError as other:
                raise InputError(f"{error}; and {by} cannot differentiate it: it {other}") from other
            said[module] = (
                f"{error.what} than cell {error.layer.cell.name} with its weights, so that {by}'s own "
                "derivatives are taken"
            )


def check_recorded(model: Model, recorded: Recorded, dtype: str, devices: Sequence[Device]) -> dict[str, str]:
    """Compare every layer with what it put out; what of it cannot be compared is a sentence, {layer: it}.

    Raises InputError where a layer puts out something else, or reads something else than it is said to.
    """
    generator = np.random.default_rng(0)
    found: dict[str, list[Array]] = {}
    sentences = {}
    for layer in model.layers:
        if layer.derivatives:  # which was called again, and put out the same
            continue
        one = recorded.layers[layer.name]
        rounding = max(one.rounding, float(np.finfo(dtype).eps))
        systems = [_system(layer, one, values, dtype) for values in _read(layer, one, found, rounding)]
        systems = systems[:1] + [_shaken(system, rounding, generator) for system in systems[1:]]
        found[layer.name] = [_outputs(system, devices) for system in systems]
        exact, *shaken = map(systems[0].as_given, found[layer.name])
        if sentence := _compare(layer, one, Compared(exact, tuple(shaken), rounding), systems[0]):
            sentences[layer.name] = sentence
        if one.unlike:
            message = f"layer {shown(layer.name)} {one.unlike}"
            raise DisagreementError(layer, message, "it has other derivatives")
    return sentences


def _read(layer: Layer, one: Recording, found: Mapping[str, Sequence[Array]], rounding: float) -> list[Array]:
    """What a layer reads, as it is and of every draw: the outputs of those below it, or its own inputs."""
    if not layer.below:
        assert one.inputs is not None
        return [one.inputs] * (1 + DRAWS)
    draws = zip(*(found[name] for name in layer.below), strict=True)
    below = [np.concatenate(side_by_side, axis=2) for side_by_side in draws]
    if one.inputs is not None:  # the layers are of two modules
        _check_connected(layer, one, one.inputs, Compared(below[0], tuple(below[1:]), rounding))
    return below


def _check_connected(layer: Layer, one: Recording, inputs: Array, below: Compared) -> None:
    """Raise InputError where a layer does not read what it is said to."""
    what = f"layer {shown(layer.name)} does not read what {listed(layer.below or ())} put out"
    if inputs.shape != below.exact.shape:
        raise InputError(f"{what}: it was recorded to read {inputs.shape}, and that is {below.exact.shape}")
    gap = np.abs(inputs - below.exact).max(axis=2)
    # What is below may read in either direction.
    beyond = _within(one, *gap.shape) & (gap > below.tolerance.max(axis=1, keepdims=True))
    if beyond.any():
        sequence, step = _first(beyond)
        raise InputError(
            f"{what}: at step {step + 1} of sequence {sequence} they are {gap[sequence, step]:.2g} apart: "
            "leave it out of --reads, or choose it with --layer"
        )


def _within(one: Recording, batch: int, steps: int) -> Array:
    """(B, T): which steps are not padding."""
    return np.arange(steps) < np.array(one.lengths or (steps,) * batch)[:, None]


def _system(layer: Layer, one: Recording, inputs: Array, dtype: str) -> System:
    """The layer as it is in its model."""
    extents = layer.cell.extents(layer.hidden)
    state = np.tile(layer.state * 0, (len(inputs), 1))
    for name, place in extents.items():
        if f"{name}0" in one.state:
            state[:, place] = one.state[f"{name}0"]
    if layer.direction == "backward":
        inputs = reversed_within(inputs, one.lengths)
    return System(
        layer.cell, layer.hidden, layer.parameters, inputs, state, one.lengths, layer.direction, dtype
    )


def _outputs(system: System, devices: Sequence[Device]) -> Array:
    """(B, T, n), in the order of the sequences."""
    return outputs(replace(system, states=states_of(system, devices)))


def _shaken(system: System, rounding: float, generator: np.random.Generator) -> System:
    def shake(values: Array) -> Array:
        return values * (1 + rounding * generator.choice([-1.0, 1.0], values.shape))

    parameters = {name: shake(array) for name, array in system.parameters.items()}
    return replace(system, parameters=parameters, inputs=shake(system.inputs), state=shake(system.state))


def _compare(layer: Layer, one: Recording, ours: Compared, system: System) -> str:
    """Raise InputError at the first step beyond tolerance; say from which step on nothing can be told."""
    batch, steps, _ = ours.exact.shape
    within = _within(one, batch, steps)
    theirs = np.full(ours.exact.shape, np.nan)
    if one.outputs is not None:
        theirs = system.as_given(one.outputs)
    elif one.last is not None:
        theirs[np.arange(batch), within.sum(axis=1) - 1] = one.last
    gap = np.abs(theirs - ours.exact).max(axis=2)
    tolerance = ours.tolerance
    beyond = within & ~np.isnan(theirs).any(axis=2) & ~(gap <= tolerance)
    if beyond.any():
        sequence, step = _first(beyond)
        place = step if layer.direction == "forward" else int(within[sequence].sum()) - 1 - step
        if one.mask is not None:
            place = int(np.flatnonzero(one.mask[sequence])[place])
        raise _disagreement(layer, (sequence, step), place, theirs, ours)
    size = np.abs(ours.exact).max()
    blind = within & (tolerance > _TELLS_NOTHING * size)
    if not blind.any():
        return _told_to(float(tolerance[within].max() / size), one) if size else ""
    first = int(np.argmax(blind.any(axis=0))) + 1
    return (
        f"what the layer put out tells nothing of what gradscope computes from step {first} of {steps} on: "
        "rounding has grown as large as the outputs"
    )


def _told_to(part: float, one: Recording) -> str:
    """What is to be said where rounding hides what is smaller than this part of the outputs."""
    if part <= _TELLS_LITTLE:
        return ""
    bits = 1 - round(np.log2(one.rounding))
    return (
        f"what the layer put out, rounded to {bits} bits, is what gradscope computes to within "
        f"{100 * part:.0f} % of its size: what is smaller is not seen"
    )


def _first(where: Array) -> tuple[int, int]:
    """Sequence and step, of the earliest step."""
    step = int(np.argmax(where.any(axis=0)))
    return int(np.argmax(where[:, step])), step


def _disagreement(layer: Layer, at: tuple[int, int], place: int, theirs: Array, ours: Compared) -> InputError:
    """The error; at : sequence and step in the layer's order; place : of the step, as given."""
    gap = np.abs(theirs[at] - ours.exact[at])
    unit = int(np.argmax(gap))
    why = layer.unlike or "it has a forward of its own, a hook or other weights"
    return DisagreementError(
        layer,
        f"layer {shown(layer.name)} puts out something else than cell {layer.cell.name} with its weights: "
        f"{theirs[at][unit]:.6g} where gradscope computes {ours.exact[at][unit]:.6g}, at step {place + 1} of "
        f"sequence {at[0]}, unit {unit}; that is {gap[unit]:.2g} apart, and rounding explains "
        f"{ours.tolerance[at]:.2g}: {why}",
    )
