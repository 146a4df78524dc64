"""Which layer reads which, where the user says it: a state dict has layers and no connections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from gradscope.checkpoints.found import Found, names_of
from gradscope.errors import InputError, as_option, counted, listed, quoted, shown


def connected(found: Mapping[str, Found], reads: Iterable[str]) -> dict[str, Found]:
    """The layers by name, each after those that it reads, with what ``reads`` says of them.

    reads : LAYER=BELOW, or BELOW,BELOW for their outputs side by side; a module stands for its lowest layers
        before the sign and for its topmost ones after it. Raises InputError for what cannot be so.
    """
    layers = dict(found)
    said: dict[str, tuple[str, ...]] = {}
    for entry in reads:
        name, sign, others = entry.partition("=")
        if not sign or not name or not others:
            raise InputError(
                f"{as_option('reads')} is {quoted(entry)}, expected LAYER=BELOW, as in "
                f"{_example(list(found))}"
            )
        below = tuple(full for other in others.split(",") for full in _ends(other, found, top=True))
        for full in _ends(name, found, top=False):
            if full in said:
                raise InputError(
                    f"{as_option('reads')} says twice what {shown(full)} reads: put both after one "
                    "sign, A=B,C"
                )
            said[full] = below
            layers[full] = _joined(found[full], [found[other] for other in below])
    return _in_order(layers) if said else layers


def _example(names: list[str]) -> str:
    return f"{shown(names[-1])}={shown(names[0])}"


def _ends(name: str, found: Mapping[str, Found], *, top: bool) -> list[str]:
    """The layers of this name, of a module the lowest or the topmost."""
    full = names_of(name, list(found))
    depths = [found[one].depth for one in full]
    return [one for one in full if found[one].depth == (max(depths) if top else min(depths))]


def _joined(layer: Found, below: list[Found]) -> Found:
    """A layer that reads others; raises InputError where the file says otherwise, or sizes do not fit."""
    called = f"layer {shown(layer.name)}"
    if not layer.alone:
        what = listed(layer.below) if layer.below else shown(layer.reads) or "the inputs"
        raise InputError(f"the file says what {called} reads: {what}; leave it out of --reads")
    widths = [other.width for other in below]
    if layer.sizes and None not in widths and layer.sizes[1] != sum(width or 0 for width in widths):
        outputs = f"{listed([other.name for other in below])} put out {' + '.join(map(str, widths))}"
        raise InputError(f"{called} has {counted(layer.sizes[1], 'input')}, and {outputs}: they must agree")
    return replace(layer, below=tuple(other.name for other in below), alone=False)


def _in_order(layers: Mapping[str, Found]) -> dict[str, Found]:
    """The layers, each after those it reads, with their depths; raises InputError for a circle."""
    ordered: dict[str, Found] = {}
    sorter = TopologicalSorter({name: layer.below or () for name, layer in layers.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = [name for name in layers if name in error.args[1]]
        raise InputError(f"layers {listed(circle)} read one another in a circle") from error
    place = {name: k for k, name in enumerate(layers)}
    while sorter.is_active():
        for name in sorted(ready := sorter.get_ready(), key=place.__getitem__):
            layer = layers[name]
            depths = [ordered[other].depth + 1 for other in layer.below or ()]
            ordered[name] = replace(layer, depth=max(depths, default=layer.depth))
        sorter.done(*ready)
    return ordered
