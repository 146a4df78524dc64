"""The layers of a checkpoint that are to be analysed, and what it leaves open decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gradscope.cells.cell import Cell
from gradscope.checkpoints.found import ACTIVATIONS, Contents, Found, Named, holder_of, names_of
from gradscope.checkpoints.layer import Layer
from gradscope.checkpoints.reads import connected
from gradscope.checkpoints.recording import Recorded
from gradscope.errors import InputError, listed, quoted, shown
from gradscope.settings import LAYOUTS

_UNCONNECTED = "reads the inputs, for the file does not say what reads what: --reads LAYER=BELOW does"

# Nobody wants to read more verdicts.
MOST_LAYERS = 64


@dataclass(frozen=True)
class Model:
    """The layers of a checkpoint that are to be analysed, and what else that needs.

    layers : those chosen and those whose outputs they read, each after the layers that it reads.
    chosen : the names of the first; arrays : other tensors, by what they were asked for as.
    named : those of the chosen that were asked for by name, none where all were taken.
    recorded : what the layers read and put out in a forward pass of the model's own, if that is known.
    reading : the layers of which the user says what they read.
    """

    layers: tuple[Layer, ...]
    chosen: tuple[str, ...]
    arrays: Mapping[str, Named] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    recorded: Recorded | None = None
    reading: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Decided:
    """What the user decides where a file leaves it open."""

    cell: Cell | None
    activation: str | None
    layout: str | None

    def __post_init__(self) -> None:
        allowed = {"activation": ACTIVATIONS, "layout": LAYOUTS}
        for name, choices in allowed.items():
            if (value := getattr(self, name)) not in (None, *choices):
                raise InputError(f"{name} is {quoted(value)}, expected one of {', '.join(choices)}")

    def settle(self, found: Found, fits: Mapping[str, bool]) -> Layer:
        """The layer, with what of this is for it."""
        return found.settle(
            self.cell if fits["cell"] else None,
            self.activation if fits["activation"] else None,
            self.layout if fits["layout"] else None,
        )


def choose(
    contents: Contents,
    decided: Decided,
    names: Iterable[str],
    source: str,
    reads: Iterable[str] = (),
    recorded: Recorded | None = None,
) -> Model:
    """The layers of these names, or all, and those below them, with what is open decided; as ``read``."""
    alone = {layer.name: layer for layer in contents.layers}
    found = connected(alone, reads)
    reading = frozenset(name for name, layer in found.items() if layer.below != alone[name].below)
    if recorded:
        recorded = recorded.named(list(found))
        found = {name: recorded.told(layer) for name, layer in found.items()}
    _check_unread(found)
    asked = dict.fromkeys(full for name in names for full in names_of(name, list(found)))
    chosen = tuple(asked) or tuple(found)
    if len(chosen) > MOST_LAYERS:
        raise InputError(
            f"holds {len(chosen)} recurrent layers ({listed(chosen)}): choose at most {MOST_LAYERS}, "
            f"as in --layer {shown(chosen[0])}"
        )
    if recorded:
        found = {name: recorded.on_its_own(layer, chosen) for name, layer in found.items()}
    needed: set[str] = set()
    waiting = list(chosen)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += found[name].below or ()
    layers = [layer for name, layer in found.items() if name in needed]
    settled = [replace(one, source=source) for one in _settled(_assuming(layers), decided)]
    if recorded:
        recorded = recorded.with_steps(settled)
        settled = [recorded.begun(layer) for layer in settled]
    return Model(
        tuple(settled),
        tuple(name for name in found if name in chosen),
        contents.arrays,
        tuple(asked),
        recorded,
        reading,
    )


def by_derivatives(model: Model, layer: Layer) -> Model:
    """The model with the module that a layer is in differentiated by its own framework.

    Raises InputError where that cannot be done.
    """
    assert model.recorded is not None
    own = model.recorded.own
    module = holder_of(layer.name, own)
    mates = [one for one in model.layers if holder_of(one.name, own) == module]
    names = {one.name for one in mates}
    above = {one.name for one in model.layers if one.name not in names and names & {*(one.below or ())}}
    for name in above:
        if name in model.reading or model.recorded.layers[name].inputs is None:
            raise InputError(f"{shown(name)} reads it by --reads: leave that out")
    made = replace(
        own[module].layer(module),
        source=layer.source,
        not_applied=tuple(dict.fromkeys(said for one in mates for said in one.not_applied)),
        assumed=tuple(dict.fromkeys(said for one in mates for said in one.assumed)),
    )

    def renamed(some: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(module if name in names else name for name in some))

    others = [
        made if one is mates[0] else replace(one, below=None) if one.name in above else one
        for one in model.layers
    ]
    return replace(
        model,
        layers=tuple(one for one in others if one is made or one.name not in names),
        chosen=renamed(model.chosen),
        named=renamed(model.named),
        recorded=model.recorded.with_steps([made]),
    )


def _check_unread(found: Mapping[str, Found]) -> None:
    """Raise InputError where a layer without equations is said to read another, or to be read."""
    for name, layer in found.items():
        for other in layer.below or ():
            if wrong := next((one for one in (layer, found[other]) if one.derivatives), None):
                raise InputError(
                    f"--reads {shown(name)}={shown(other)}: {shown(wrong.name)} is differentiated by its own "
                    "framework on what it was recorded to read: leave that out"
                )


def _assuming(layers: list[Found]) -> list[Found]:
    """The layers, with what is taken to be so where several modules stand unconnected in a file."""
    alone = [layer.module for layer in layers if layer.alone]
    if len(set(alone)) < 2:
        return layers
    return [replace(one, assumed=(*one.assumed, _UNCONNECTED)) if one.alone else one for one in layers]


def _settled(found: list[Found], decided: Decided) -> list[Layer]:
    """What is open decided; of several layers, every decision is for those it fits."""
    if len(found) == 1:
        return [decided.settle(found[0], dict.fromkeys(("cell", "activation", "layout"), True))]
    cell, activation = decided.cell, decided.activation
    fits = [
        {
            "cell": cell is not None and one.may_be(cell),
            "activation": activation in one.activations.split(" or "),
            "layout": decided.layout in one.layouts,
        }
        for one in found
    ]
    for name, given in (("cell", cell and cell.name), ("activation", activation), ("layout", decided.layout)):
        if given is not None and not any(fit[name] for fit in fits):
            labels = [one.label for one in found]
            raise InputError(f"holds {listed(labels)}: --{name} {given} is of none of these layers")
    layers, refused = [], list[tuple[str, InputError]]()
    for one, fit in zip(found, fits, strict=True):
        try:
            layers.append(decided.settle(one, fit))
        except InputError as error:
            refused.append((one.name, error))
    if refused:
        name, why = refused[0]
        free = _without_those(found, {name for name, _ in refused})
        others = f"; or choose others with --layer: {listed(free)}" if free else ""
        raise InputError(f"layer {shown(name)}: {why}{others}") from why
    return layers


def _without_those(found: Sequence[Found], refused: set[str]) -> list[str]:
    """The layers that neither are refused nor read, at any remove, one that is."""
    spoilt = set(refused)
    for one in found:  # each after those that it reads
        if spoilt.intersection(one.below or ()):
            spoilt.add(one.name)
    return [one.name for one in found if one.name not in spoilt]
