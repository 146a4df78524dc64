"""Where in a file's tensors each number of a layer stands, found by asking the reader itself.

Every library keeps gates in an order of its own, some transposed, two biases that add up, a constant beside
them. What is read is linear in the tensors: read again with the tensors full of numbered entries, the layers
say where each of their own numbers came from, whatever reader or map made them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from gradscope.checkpoints.layer import Layer
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, shown
from gradscope.formats.tensors import Tensor, Tensors

# Reads the layers of a file from its tensors.
Reader = Callable[[Tensors], Sequence[Layer]]


@dataclass(frozen=True)
class Place:
    """What one tensor holds of a parameter.

    there : which entries of the parameter, of its shape; index : where in the flat tensor each stands; sign :
        1 or -1 for each.
    """

    tensor: str
    there: Array
    index: Array
    sign: Array


@dataclass(frozen=True)
class Placed:
    """A parameter is ``rest`` and the sum of what its places hold."""

    rest: Array
    places: tuple[Place, ...]


def located(
    read: Reader, tensors: Tensors, keys: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Placed]]:
    """{layer: {parameter: where it is}}; keys : of every layer the tensors that it was made of.

    Raises InputError where a parameter is no sum of entries, such as a weight that is normalised.
    """
    shapes = {key: tensors[key].load().shape for every in keys.values() for key in every}
    zeros = {key: np.zeros(shape) for key, shape in shapes.items()}

    def parameters(full: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
        try:
            layers = read(with_arrays(tensors, zeros | dict(full)))
        except InputError as error:
            raise _unwritable(keys, str(error)) from error
        return {layer.name: layer.parameters for layer in layers if layer.name in keys}

    rest = parameters({})
    found = {name: {key: Placed(array, ()) for key, array in of.items()} for name, of in rest.items()}
    for turn in range(max(map(len, keys.values()))):
        now = {name: every[turn] for name, every in keys.items() if turn < len(every)}
        ones = parameters({key: np.ones(shapes[key]) for key in now.values()})
        numbered = parameters({key: _numbered(shapes[key]) for key in now.values()})
        for name, tensor in now.items():
            for key, placed in found[name].items():
                sign, number = (of[name][key] - placed.rest for of in (ones, numbered))
                place = _place(tensor, sign, number, shapes[tensor])
                if place is None:
                    raise _unwritable({name: [tensor]}, f"{key} is no sum of its entries")
                if place.there.any():
                    found[name][key] = Placed(placed.rest, (*placed.places, place))
    return found


def with_arrays(tensors: Tensors, arrays: Mapping[str, Array]) -> Tensors:
    """The same tensors, these among them with other values; what else a file says of them stays."""
    changed = copy.copy(tensors)
    for key, array in arrays.items():
        changed[key] = Tensor(tensors[key].called, partial(np.asarray, array), tensors[key].size)
    return changed


def _numbered(shape: tuple[int, ...]) -> Array:
    return np.arange(1.0, 1 + np.prod(shape, dtype=int)).reshape(shape)


def _place(tensor: str, sign: Array, numbers: Array, shape: tuple[int, ...]) -> Place | None:
    """Which entry stands where; None where it is no entry, or more than one."""
    there = sign != 0
    with np.errstate(invalid="ignore", divide="ignore"):
        index = np.where(there, numbers / sign - 1, 0.0)
    whole = np.abs(sign[there]) == 1
    inside = (index >= 0) & (index < np.prod(shape, dtype=int)) & (index == np.round(index))
    if not (whole.all() and inside.all() and not numbers[~there].any()):
        return None
    return Place(tensor, there, index.astype(np.int64), sign)


def _unwritable(keys: Mapping[str, Sequence[str]], why: str) -> InputError:
    name, tensors = next(iter(keys.items()))
    return InputError(
        f"layer {shown(name)} is made of {listed(list(tensors), 6)} in a way that cannot be turned round "
        f"({why}): set the knob in the framework, on the module itself, and save that"
    )
