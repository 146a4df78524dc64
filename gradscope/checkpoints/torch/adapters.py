"""Tensors of which a model may make a layer's weights as it runs: LoRA's factors, differences, masks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.formats.tensors import Tensor, Tensors

# Modules that hold such; parameters of the module around the layer need no name.
_NAMED = re.compile(r"(.*_)?(lora|adapters?|delta|low_?rank)(_.*)?", re.I | re.S)
# Shapes are told by reading; so many small parameters nobody has in one module.
_MOST, _MOST_BYTES = 64, 2**26


def near_modules(tensors: Tensors, layers: Collection[str]) -> dict[str, list[str]]:
    """By the path of a module its own tensors, and those of adapters in it; layers : tensors of layers."""
    near: dict[str, list[str]] = {}
    for name in tensors:
        if name not in layers:
            path = name.rpartition(".")[0]
            around, _, last = path.rpartition(".")
            near.setdefault(around if _NAMED.fullmatch(last) else path, []).append(name)
    return near


def adapters(tensors: Tensors, near: Sequence[str], weights: Mapping[str, Array]) -> tuple[str, ...]:
    """Those of some tensors that are as large as one of a layer's matrices, or whose product is."""
    if len(near) > _MOST or sum(tensors[name].size for name in near) > _MOST_BYTES:
        return ()
    shapes = {name: _shape(tensors[name]) for name in near}
    sizes = {array.shape for name, array in weights.items() if name.startswith("weight")}
    found = {name for name, shape in shapes.items() if shape in sizes}
    for pair in itertools.permutations(near, 2):
        if _product(*(shapes[name] for name in pair)) in sizes:
            found.update(pair)
    return tuple(name for name in near if name in found)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    try:
        return tensor.load().shape
    except InputError:  # of no numbers
        return ()


def _product(one: Sequence[int], other: Sequence[int]) -> tuple[int, int] | None:
    """The shape of a product of lower rank than it might have, None where there is none."""
    if len(one) != 2 or len(other) != 2:
        return None
    (rows, rank), (same, columns) = one, other
    return (rows, columns) if rank == same and rank < min(rows, columns) else None
