"""Chains of cells, and what layers read of others, as the arrays of a compiled program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradscope.compiled_svd.step_arrays import LayerArrays, ReadingArrays, StepArrays
from gradscope.custom_types import Array
from gradscope.linearize.paths import DensePath, Path, UnitPath


def layer_arrays(paths: Sequence[Path], components: int) -> LayerArrays | None:
    """The steps of the sum of these paths; None where none has a matrix, and for dense ones beside others."""
    if all(isinstance(path, DensePath) for path in paths):
        stacks = [path.stack for path in paths if isinstance(path, DensePath)]
        return StepArrays.whole(np.sum(stacks, axis=0)).layers[0]
    units = [path for path in paths if isinstance(path, UnitPath)]
    gates = [path for path in units if path.matrix is not None]
    if len(units) < len(paths) or not gates or any(path.source != gates[0].source for path in gates):
        return None
    link = gates[0].link
    if any(not _equal(path.link, link) for path in gates):
        return None
    steps, _, n = gates[0].slope.shape
    diagonals = np.zeros((steps, components, components, n))
    for path in units:
        if path.matrix is None:
            scale = 1.0 if path.link is None else path.link[:, None]
            diagonals[:, :, path.source] += path.slope * scale
    return LayerArrays(
        np.stack([path.slope for path in gates], axis=1),
        np.array([path.matrix for path in gates]),
        np.ones((steps, n)) if link is None else link,
        diagonals,
        gates[0].source,
    )


def reading_arrays(paths: Sequence[Path], layer: int, start: int) -> ReadingArrays | None:
    """What ``layer`` reads by these paths of the states from ``start`` on; None where one is dense."""
    units = [path for path in paths if isinstance(path, UnitPath) and path.matrix is not None]
    if len(units) < len(paths):
        return None
    slopes, matrices = np.stack([path.slope for path in units], axis=1), [path.matrix for path in units]
    return ReadingArrays(slopes, np.array(matrices), layer, start)


def _equal(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
