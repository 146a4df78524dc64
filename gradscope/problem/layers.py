"""The layers of a model as problems: each reads what those below it put out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.custom_types import Array
from gradscope.errors import BeyondRangeError, InputError, MisfitError, as_option, listed, shown
from gradscope.linearize.course import check_finite
from gradscope.linearize.system import System
from gradscope.linearize.trajectory import outputs, states_of
from gradscope.problem.checks import whole_number
from gradscope.problem.feeding import Unmasked, check_roots, lengths_in, unmasked
from gradscope.problem.initial_state import initial_states
from gradscope.problem.inputs import Sequences, extents, given_lengths, given_sequences, is_made, label
from gradscope.problem.problem import Problem, as_names, make_problem, paths_of
from gradscope.problem.recorded import on_recorded, with_mask
from gradscope.problem.scaling import check_names, factors_of, scale_of
from gradscope.problem.time_axis import assumption, known_time_major, recorded_assumption, time_major
from gradscope.settings import DTYPE, Settings, Top

if TYPE_CHECKING:
    from jax import Device

    from gradscope.checkpoints import Layer, Model, Recorded


from gradscope.problem.problems import Problems
from gradscope.problem.stacks import connected_groups, features_of, stacks_of


@dataclass(frozen=True)
class Planned:
    """A layer that will be analysed."""

    name: str
    cell: Cell
    hidden: int


# Is told the layers, those together that are connected, how many sequences there are, and of how many steps.
Begun = Callable[[Sequence[Sequence[Planned]], int, int], None]


def make_problems(
    settings: Settings, model: Model | None, devices: Sequence[Device], begun: Begun | None = None
) -> Problems:
    """The problems of the layers chosen of a model, or of a fresh cell without one.

    The inputs are what the layers read that read no others; ``devices`` run the layers below; ``begun`` is
    called before they do. Raises InputError as ``make_problem`` does, and for layers that cannot be analysed
    together.
    """
    if model is not None and model.recorded is not None:
        return _recorded(settings, model, model.recorded, devices, begun)
    table = model.arrays[settings.embedding] if model and settings.embedding else None
    known = None if is_made(settings.inputs) else known_time_major(model)
    turned = time_major(known, asked=settings.time_major)
    given = given_sequences(settings.inputs, time_major=turned, embedding=table)
    lengths, full = given_lengths(settings.lengths), ""
    if model:
        lengths, full = lengths_in(model, lengths, given=given is not None)
    if given and settings.batch is not None:
        given, lengths = given.taking(whole_number("batch", settings.batch, 1), lengths)
    inputs = given or settings.inputs
    settings = replace(settings, lengths=lengths)
    assumed = assumption(given, asked=settings.time_major, known=known)
    if model is None:
        problem = make_problem(replace(settings, inputs=inputs))
        return Problems((_assuming(problem, assumed),))
    check_roots(model, given)
    # Once for all: to the upper layers, the lengths are those of the outputs that they read.
    batch, steps, lengths = _extents(given, settings)
    settings = replace(settings, lengths=lengths)
    left = unmasked(model, given, steps, lengths)
    if left:
        inputs, settings = left.given, replace(settings, lengths=left.lengths, steps=None)
    _tell(begun, model, batch, steps)
    states = _initial_states(settings.initial_state, model, batch)
    fed = {
        layer.name: replace(settings, inputs=inputs, initial_state=states.get(layer.name))
        for layer in model.layers
    }
    problems = _each(model, fed, label(settings.initial_state), devices)
    problems = {
        name: _with_mask(_assuming(_assuming(one, assumed), full), left) for name, one in problems.items()
    }
    return _together(settings, model, problems)


def _tell(begun: Begun | None, model: Model, batch: int, steps: int) -> None:
    if begun is not None:
        layers = [layer for layer in model.layers if layer.name in model.chosen]
        planned = [Planned(layer.name, layer.cell, layer.hidden) for layer in layers]
        begun(
            [[planned[number] for number in sorted(group)] for group in connected_groups(layers)],
            batch,
            steps,
        )


def _recorded(
    settings: Settings, model: Model, recorded: Recorded, devices: Sequence[Device], begun: Begun | None
) -> Problems:
    """The problems of layers on what they read themselves, after the self-check."""
    from gradscope.problem.self_check import settled

    fed = on_recorded(settings, model, recorded)
    first = fed[model.chosen[0]].inputs
    if isinstance(first, Sequences):
        _tell(begun, model, *first.shape[:2])
    model, sentences = settled(model, recorded, settings.dtype or DTYPE, devices)
    assert model.recorded is not None
    recorded = model.recorded
    problems = _each(model, on_recorded(settings, model, recorded), recorded.state_label, devices)
    if isinstance(first, Sequences):
        name = model.chosen[0]
        (taken,) = {one.time_major for one in model.layers if one.name == name}
        said = recorded_assumption(first, known=taken)
        sentences[name] = "; ".join(filter(None, (said, sentences.get(name))))
    problems = {
        name: _assuming(with_mask(problem, recorded.layers[name], settings.steps), sentences.get(name, ""))
        for name, problem in problems.items()
    }
    return _together(settings, model, problems)


def _each(
    model: Model, fed: Mapping[str, Settings], state_label: str, devices: Sequence[Device]
) -> dict[str, Problem]:
    """The problem of every layer; fed : its settings, with the inputs that it reads if it reads no others."""
    problems: dict[str, Problem] = {}
    put_out: dict[str, Array] = {}
    read = {name for layer in model.layers for name in layer.below or ()}
    for layer in model.layers:
        asked = fed[layer.name]
        asked = replace(asked, inputs=_inputs(layer, asked.inputs, put_out))
        scale = asked.input_scale
        if layer.below:  # what those put out has it already
            asked = replace(asked, input_scale=None)
        if model.chosen != (layer.name,):  # cuts are of the one layer that is analysed, or between layers
            asked = replace(asked, cut=(), top=_at_most(asked.top, layer))
        problem = _problem(layer, model, asked)
        problem = replace(problem, origin=replace(problem.origin, input_scale=scale))
        if asked.initial_state is not None:
            problem = replace(problem, origin=replace(problem.origin, initial_state=state_label))
        if layer.name in read or layer.below:
            problem = _held(problem, devices)
        if layer.name in read:
            put_out[layer.name] = _readable(layer, problem.system)
        problems[layer.name] = problem
    return problems


def _together(settings: Settings, model: Model, problems: Mapping[str, Problem]) -> Problems:
    """The problems of the layers that were chosen, with those of the stacks that they form."""
    layers = [layer for layer in model.layers if layer.name in model.chosen]
    chosen = tuple(problems[layer.name] for layer in layers)
    if len(chosen) == 1:
        return Problems(chosen)
    # The cell view holds the output fixed, through which a layer reaches the next.
    connected = layers if settings.view != "cell" else ()
    are_read = {name for layer in layers for name in layer.below or ()}
    last = tuple(number for number, layer in enumerate(layers) if layer.name not in are_read)
    names = tuple(layer.name for layer in layers)
    return Problems(
        chosen, names, stacks_of(model, connected, chosen, as_names(settings.cut), settings.top), last
    )


def _assuming(problem: Problem, sentence: str) -> Problem:
    """The problem with what was assumed of its inputs, if anything was."""
    assumed = (*(problem.origin.assumed or ()), sentence)
    return replace(problem, origin=replace(problem.origin, assumed=assumed)) if sentence else problem


def _held(problem: Problem, devices: Sequence[Device]) -> Problem:
    """The problem along states that are computed once: in chaos, that of the stack would go another way."""
    states = states_of(problem.system, devices)
    return replace(problem, system=replace(problem.system, states=states))


def _readable(layer: Layer, system: System) -> Array:
    """What a layer puts out to those that read it; InputError where that is beyond its dtype."""
    assert system.states is not None
    try:
        for states in system.states:
            check_finite(system.cell, states[1:], 0, system.dtype)
    except BeyondRangeError as error:
        raise InputError(
            f"layer {shown(layer.name)}: {error.marked}; or choose it alone with "
            f"{as_option('layer')} {shown(layer.name)}, without those that read it"
        ) from error
    return outputs(system)


def _with_mask(problem: Problem, left: Unmasked | None) -> Problem:
    """The problem of the steps that are left, with what that leaves to be said."""
    if left is None:
        return problem
    system = replace(problem.system, mask=left.mask)
    return replace(problem, system=system, origin=replace(problem.origin, masked=left.masked))


def _extents(given: Sequences | None, settings: Settings) -> tuple[int, int, tuple[int, ...] | None]:
    """How many sequences there are, their steps and lengths, cut to the steps that are asked for."""
    asked = {"batch": settings.batch, "steps": settings.steps}
    sizes = {name: whole_number(name, value, 1) for name, value in asked.items() if value is not None}
    (batch, steps, _), lengths = extents(sizes, given, settings.lengths)
    return batch, steps, lengths


def _initial_states(asked: Any, model: Model, batch: int) -> dict[str, dict[str, Array]]:
    """{layer: {"h0": (B, n), ...}} of the layers whose initial state is given."""
    if asked is None:
        return {}
    parts = {layer.name: layer.cell.extents(layer.hidden) for layer in model.layers}
    return {
        name: {f"{part}0": state[:, place] for part, place in parts[name].items()}
        for name, state in initial_states(asked, parts, batch).items()
    }


def _problem(layer: Layer, model: Model, settings: Settings) -> Problem:
    """The layer's problem; biases are set in the layers that have them."""
    biases = settings.biases or {}
    everywhere = {name for other in model.layers for name in other.parameters}
    there = {k: value for k, value in biases.items() if k in layer.parameters or k not in everywhere}
    settings = replace(settings, biases=there, scale=_scale_there(settings, layer, model))
    if len(model.layers) == 1:
        return make_problem(settings, layer)
    try:
        return make_problem(settings, layer)
    except MisfitError as error:
        others = [other.name for other in model.layers if other is not layer and _fits(other, settings)]
        hint = f"; or choose others with --layer: {listed(others)}" if others else ""
        raise InputError(f"layer {shown(layer.name)}: {error.marked}{_below(layer, model)}{hint}") from error


def _scale_there(settings: Settings, layer: Layer, model: Model) -> dict[str, float]:
    """The factors of the paths that this layer has; InputError for one that no layer has."""
    scale = scale_of(settings.scale)
    everywhere = tuple(dict.fromkeys(p for one in model.layers for p in paths_of(one.cell, settings.view)))
    if len(model.layers) > 1:
        check_names(scale, everywhere, "any layer")
    own = paths_of(layer.cell, settings.view)
    return {pattern: factor for pattern, factor in scale.items() if factors_of({pattern: factor}, own)}


def _fits(layer: Layer, settings: Settings) -> bool:
    """Whether what was asked for fits a layer that reads no others."""
    try:
        return not layer.below and bool(make_problem(replace(settings, biases={}), layer))
    except InputError:
        return False


def _below(layer: Layer, model: Model) -> str:
    """What to do for a layer that may read another, which the file does not say."""
    fitting = [
        other for other in model.layers if other is not layer and features_of(other) == layer.input_size
    ]
    if not layer.alone or not fitting:
        return ""
    pair = f"{shown(layer.name)}={shown(fitting[0].name)}"
    return f"; if it reads what {shown(fitting[0].name)} puts out, add --reads {pair}"


def _at_most(top: Top, layer: Layer) -> Top:
    """A number of singular values that is asked of all layers, and not more than this one has."""
    return min(top, layer.cell.size(layer.hidden)) if isinstance(top, int) and top > 0 else top


def _inputs(layer: Layer, given: Sequences | str, put_out: Mapping[str, Array]) -> Sequences | str:
    """What a layer reads: what is given to the model, or the outputs of those below it, side by side."""
    if not layer.below:
        return given
    values = np.concatenate([put_out[name] for name in layer.below], axis=2)
    called = f"outputs of {listed(layer.below)}"
    return Sequences(values, called, label=called)
