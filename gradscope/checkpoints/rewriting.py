"""Changed parameters of layers as the tensors of their file: what is not changed stays to the last bit."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from gradscope.checkpoints.locating import Placed
from gradscope.custom_types import Array
from gradscope.errors import InputError, quoted
from gradscope.formats.tensors import Tensors

Parameters = Mapping[str, Array]


def changed_tensors(
    tensors: Tensors,
    placed: Mapping[str, Mapping[str, Placed]],
    before: Mapping[str, Parameters],
    after: Mapping[str, Parameters],
) -> dict[str, Array]:
    """The tensors that change, in the dtypes of the file.

    placed, before, after : by layer and parameter. Of a number that is the sum of two entries, as biases of
    PyTorch are, the first takes the change. Raises InputError for what is not in the file, or does not fit in
    its dtype.
    """
    found: dict[str, Array] = {}
    for layer, of in after.items():
        for key, new in of.items():
            old = before[layer][key]
            if np.array_equal(old, new):
                continue
            _set(tensors, placed[layer][key], key, old, new, found)
    return found


def _set(tensors: Tensors, placed: Placed, key: str, old: Array, new: Array, found: dict[str, Array]) -> None:
    """Put the entries of a parameter that change into the tensors that hold them."""
    left = old != new
    for place in placed.places:
        here = left & place.there
        if not here.any():
            continue
        if place.tensor not in found:
            found[place.tensor] = _stored(tensors, place.tensor)
        stored = found[place.tensor]
        alone = sum(other.there[here].astype(int) for other in placed.places) == 1
        index, sign = place.index[here], place.sign[here]
        flat = stored.reshape(-1)
        whole = sign * (new - placed.rest)[here]
        more = flat[index].astype(np.float64) + sign * (new - old)[here]
        with np.errstate(over="ignore"):
            flat[index] = np.where(alone, whole, more).astype(stored.dtype)
        if not np.isfinite(flat[index].astype(np.float64)).all():
            raise InputError(f"{key} goes beyond {stored.dtype}, which tensor {quoted(place.tensor)} is in")
        left &= ~place.there
    if left.any():
        raise InputError(
            f"{key} is not in the file (a layer without biases?): expected a tensor that holds it; save the "
            "model with one"
        )


def _stored(tensors: Tensors, name: str) -> Array:
    """A copy of the tensor as the file has it."""
    array = np.array(tensors[name].load(), order="C")
    if array.dtype.kind == "V":
        array = array.view(ml_dtypes.bfloat16)
    if array.dtype.kind not in "fV" and array.dtype != ml_dtypes.bfloat16:
        raise InputError(
            f"tensor {quoted(name)} has dtype {array.dtype}, expected floats: save it unquantised"
        )
    return array
