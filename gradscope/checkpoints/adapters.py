"""Tensors of which a model may make a layer's weights as it runs: LoRA's factors, differences, masks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from gradscope.checkpoints.found import Found
from gradscope.errors import InputError
from gradscope.formats.tensors import Tensor, Tensors

# Modules that hold such; parameters of the module around the layer need no name.
_NAMED = re.compile(r"(.*_)?(lora|adapters?|delta|low_?rank|masks?)(_.*)?", re.I | re.S)
# Shapes are told by reading; so many small parameters nobody has in one module.
_MOST, _MOST_BYTES = 64, 2**26
Shape = tuple[int, ...]


def with_adapters(layers: Sequence[Found], others: Iterable[str], tensors: Tensors) -> tuple[Found, ...]:
    """The layers, each with those of the tensors beside it that may be added to its matrices.

    These are parameters of the module around that of the layer, as large as one of its matrices, or whose
    product is and is of lower rank than it might be. A square one alone may be anything.
    """
    if not any(layer.module and layer.arrays for layer in layers):
        return tuple(layers)
    near: dict[str, list[str]] = {}
    for name in others:
        path, _ = _split(name)
        around, last = _split(path)
        near.setdefault(around if _NAMED.fullmatch(last) else path, []).append(name)
    return tuple(
        replace(layer, adapters=_adapters(layer, near.get(_split(layer.module)[0], ()), tensors))
        if layer.arrays and layer.module
        else layer
        for layer in layers
    )


def is_adapter(name: str) -> bool:
    """Whether what is under this name may be added to weights, or multiplied with them."""
    return _NAMED.fullmatch(name) is not None


def _split(name: str) -> tuple[str, str]:
    """What holds a module or a tensor, and its own name."""
    around, _, last = name.replace("/", ".").rpartition(".")
    return around, last


def _adapters(layer: Found, near: Sequence[str], tensors: Tensors) -> tuple[str, ...]:
    """Those of the tensors near a layer."""
    if not near or len(near) > _MOST or sum(tensors[name].size for name in near) > _MOST_BYTES:
        return ()
    shapes = {name: shape for name in near if len(shape := _shape(tensors[name])) == 2}
    sizes = {shape for key in layer.keys if shapes and len(shape := _shape(tensors[key])) == 2}
    found = {name for name, shape in shapes.items() if shape in sizes and _tells(name, shape)}
    for pair in itertools.permutations(shapes, 2):
        if _product(*(shapes[name] for name in pair)) in sizes:
            found.update(pair)
    return tuple(name for name in near if name in found)


def _tells(name: str, shape: Shape) -> bool:
    return shape[0] != shape[1] or any(map(_NAMED.fullmatch, (_split(name)[1], _split(_split(name)[0])[1])))


def _product(one: Shape, other: Shape) -> Shape | None:
    """The shape of a product of lower rank than it might have, None where there is none."""
    (rows, rank), (same, columns) = one, other
    return (rows, columns) if rank == same and rank < min(rows, columns) else None


def _shape(tensor: Tensor) -> Shape:
    try:
        return tensor.load().shape
    except InputError:  # of no numbers
        return ()
