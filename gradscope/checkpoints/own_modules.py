"""Which layers of a model its own framework differentiates, where equations of ours may be there too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gradscope.checkpoints.derivatives import Derivatives
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.recording import Recorded


def merged_modules(
    layers: Sequence[Found], recording: Recorded, found: Mapping[str, Derivatives], separator: str
) -> tuple[tuple[Found, ...], Recorded]:
    """The layers and their recording, with modules that are called step by step, {name: their derivatives}.

    A layer that was recorded and may be one cell alone is compared with that before it is differentiated; a
    module of the user's whose state is that of such layers within is those.
    """
    kept = list(layers)
    names = {layer.name for layer in layers}
    told = {one.name for one in layers if one.name in recording.layers and len(one.cells) == 1}
    for name, steps in sorted(found.items(), key=lambda item: len(item[0])):  # the outermost first
        inside = [one for one in kept if one.name == name or one.name.startswith(f"{name}{separator}")]
        inner = [found[one.name] for one in inside if one.name in found and one.name in recording.layers]
        if name in told or (name not in names and inner and _all_of(steps, inner)):
            continue
        if any(name.startswith(f"{other.name}{separator}") for other in kept if other.derivatives):
            continue
        kept = [one for one in kept if one.name not in {other.name for other in inside}]
        kept.append(Found(name, {}, kind=steps.kind, derivatives=steps))
    return tuple(kept), replace(recording, own=dict(found))


def _all_of(steps: Derivatives, inner: Sequence[Derivatives]) -> bool:
    """Whether every part of the state of a module is one of those of the cells within."""
    parts = [part for one in inner for part in getattr(one, "states", [])]
    mine = getattr(steps, "states", [])
    return bool(mine) and all(
        any(len(p) == len(q) and all(map(np.array_equal, p, q)) for q in parts) for p in mine
    )
